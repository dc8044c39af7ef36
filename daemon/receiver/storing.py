"""Store what a C-STORE carries as it arrives: durable first, then 0x0000 (PS3.4 B.2.3).

Nothing here decodes a data set or holds one in memory, and nothing waits for a queue or a
database. Every association writes one batch of its own, begun with its first instance and closed
with the association.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from config.layout import Layout
from config.logs import get_logger, short
from daemon.receiver.part10 import Encoding, file_head, uid_problem
from daemon.room import Room
from workers.measuring import Counted, Measures, Timed
from workers.spool.batches import BatchSource, BatchWriter, EntryName, Unpublished

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
UNEXPECTED = 0xC211

ROOM_BYTES = 4 << 20
"""After so many bytes of an instance the room that is left is asked for again."""

_ENDED = "the association has ended"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command set of a C-STORE and its presentation context say."""

    sop_class: str | None
    sop_instance: str | None
    transfer_syntax: str


class Refusal(StrEnum):
    """Why an instance was not taken, for the metrics."""

    NO_ROOM = "no-room"  # a disk is full, missing or read-only
    NOT_WRITTEN = "not-written"
    TOO_LARGE = "too-large"
    BAD_REQUEST = "bad-request"
    ENDED = "association-ended"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and an Error Comment (0000,0902) and a reason where it is no success."""

    status: int
    comment: str = ""
    refusal: Refusal = Refusal.UNEXPECTED


_STORED = Answer(SUCCESS)
_TOO_LATE = Answer(OUT_OF_RESOURCES, _ENDED, Refusal.ENDED)


@dataclass(frozen=True, slots=True)
class Spooling:
    """Where instances go, how large one may be, and where they are counted."""

    layout: Layout
    room: Room
    offer: Callable[[EntryName], None]
    maximum_bytes: int
    measures: Measures


class AssociationStore:
    """Store what one association sends, one instance after the other.

    `begin`, `write` … `finish` belong to one thread; `close` may come from any other meanwhile.
    None of them raises: an instance that cannot be stored is swallowed, and `finish` says why.
    """

    def __init__(self, spooling: Spooling, source: BatchSource) -> None:
        self.source = source
        self.stored = 0
        self.refused = 0
        self._spooling = spooling
        self._lock = threading.Lock()
        self._writer: BatchWriter | None = None
        self._entry: Unpublished | None = None
        self._head = b""  # of its file, until it is written
        self._published: EntryName | None = None
        self._answer: Answer | None = None
        self._sop_instance = ""
        self._size = 0
        self._measured = 0
        self._began = self._took = 0.0
        self._closed = False

    def begin(self, request: Request) -> None:
        """Begin an instance; its file is there when this returns, unless it is refused."""
        self._answer = None
        self._began = time.monotonic()
        self._size = self._measured = 0
        self._sop_instance = str(request.sop_instance)
        problem = _problem(request)
        if problem is not None:
            self._refuse(CANNOT_UNDERSTAND, problem, Refusal.BAD_REQUEST)
            return
        self._try(lambda: self._begin(request))

    def write(self, *pieces: memoryview) -> None:
        """Take the next bytes of the data set."""
        self._size += sum(map(len, pieces))
        if self._entry is None:
            return
        if self._size > self._spooling.maximum_bytes:
            problem = "larger than receiver.maximum_instance_mb allows"
            self._refuse(OUT_OF_RESOURCES, problem, Refusal.TOO_LARGE)
            return
        self._try(lambda: self._write(pieces))

    def finish(self) -> Answer:
        """Make the instance durable; return what to answer. `settle` follows behind the answer."""
        if self._entry is not None and not self._size:
            self._refuse(CANNOT_UNDERSTAND, "there is no data set", Refusal.BAD_REQUEST)
        if self._entry is not None:
            self._try(self._publish)
        answer = self._answer or _TOO_LATE
        self._took = time.monotonic() - self._began
        self.stored += answer.status == SUCCESS
        self.refused += answer.status != SUCCESS
        return answer

    def settle(self) -> None:
        """Do what no peer needs to wait for: hand the last instance on, count it, and make a file
        for the next one.
        """
        name, self._published = self._published, None
        answer, self._answer = self._answer, None
        measures = self._spooling.measures
        if name is None:
            measures.count(Counted.REFUSED, (answer or _TOO_LATE).refusal)
            return
        self._spooling.offer(name)
        measures.count(Counted.RECEIVED)
        measures.count(Counted.RECEIVED_BYTES, by=self._size)
        measures.observe(Timed.RECEIVE, self._took)
        if log.says_debug:
            uid = short(self._sop_instance)
            log.debug("stored", entry=name.identifier, uid=uid, size=self._size)
        if self.stored > 1:  # where two came a third is likely
            with self._lock:
                if self._writer is not None:
                    self._writer.prepare()

    def abandon(self) -> None:
        """Forget an instance that is not finished."""
        with self._lock:
            self._abandon()

    def close(self) -> bool:
        """Let the batch go, once; later instances are refused. False if it was closed before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            self._abandon()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            return True

    def _try(self, step: Callable[[], None]) -> None:
        """Do one step; what goes wrong becomes the answer."""
        try:
            with self._lock:
                if not self._closed:
                    step()
                    return
            self._refuse(OUT_OF_RESOURCES, _ENDED, Refusal.ENDED)
        except OSError as error:
            self.abandon()
            self._answer = Answer(
                OUT_OF_RESOURCES, "the instance could not be written", Refusal.NOT_WRITTEN
            )
            log.warning(
                "c-store-not-written",
                source=self.source.key,
                errno=error.errno,
                reason=error.strerror,
            )
        # the one place where every other error ends: the peer gets an answer, the rest goes on
        except Exception:
            self.abandon()
            self._answer = Answer(UNEXPECTED, "unexpected error, see the log of the receiver")
            log.exception("c-store-failed", source=self.source.key)

    def _begin(self, request: Request) -> None:
        encoding = Encoding(request.transfer_syntax, self.source.calling_ae)
        self._head = file_head(str(request.sop_class), str(request.sop_instance), encoding)
        if not self._has_room(len(self._head)):
            return
        if self._writer is None:
            self._writer = BatchWriter(self._spooling.layout, self.source)
        self._entry = self._writer.begin()

    def _write(self, pieces: Sequence[memoryview]) -> None:
        if self._size - self._measured >= ROOM_BYTES:
            self._measured = self._size
            if not self._has_room(ROOM_BYTES):
                return
        if self._entry is not None:
            head, self._head = self._head, b""
            self._entry.write(*((head, *pieces) if head else pieces))

    def _publish(self) -> None:
        if self._entry is None:
            return
        self._published = self._entry.publish()
        self._entry = None
        self._answer = _STORED
        self._spooling.room.took(self._size)

    def _has_room(self, size: int) -> bool:
        if self._spooling.room.refusal(size, time.monotonic()) is None:
            return True
        self._abandon()  # the room itself logs its turns
        self._answer = Answer(OUT_OF_RESOURCES, "the spool takes nothing now", Refusal.NO_ROOM)
        return False

    def _refuse(self, status: int, problem: str, refusal: Refusal) -> None:
        self.abandon()
        self._answer = Answer(status, problem, refusal)
        log.warning("c-store-refused", source=self.source.key, reason=problem)

    def _abandon(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            try:
                entry.abandon()
            except OSError as error:  # the sweeper removes it when it is old
                log.warning("c-store-not-removed", errno=error.errno, reason=error.strerror)


def _problem(request: Request) -> str | None:
    """Say why no file header can be made of a request; the UIDs themselves stay unsaid."""
    for name, uid in (
        ("AffectedSOPClassUID", request.sop_class),
        ("AffectedSOPInstanceUID", request.sop_instance),
        ("transfer syntax", request.transfer_syntax),
    ):
        problem = uid_problem(uid)
        if problem is not None:
            return f"{name} {problem}"
    return None
