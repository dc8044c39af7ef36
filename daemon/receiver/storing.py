"""Answer C-STORE: durable in the spool first, then 0x0000 (PS3.4 B.2.3).

Nothing here decodes a data set, and nothing waits for a queue or a database. Every association
writes one batch of its own, begun with its first instance and closed with the association.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset

from config.layout import Layout
from config.logs import get_logger, short
from daemon.receiver.part10 import Encoding, file_head, uid_problem
from daemon.receiver.room import Room
from workers.spool.batches import BatchSource, BatchWriter, EntryName

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
UNEXPECTED = 0xC211

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command set of a C-STORE says, and its data set as received."""

    sop_class: str | None
    sop_instance: str | None
    transfer_syntax: str
    data_set: BytesIO | None


@dataclass(frozen=True, slots=True)
class Spooling:
    """Where instances go."""

    layout: Layout
    room: Room
    offer: Callable[[EntryName], None]


class AssociationStore:
    """Store what one association sends; its methods may be called from any thread."""

    def __init__(self, spooling: Spooling, source: BatchSource) -> None:
        self.source = source
        self.stored = 0
        self.refused = 0
        self._spooling = spooling
        self._lock = threading.Lock()
        self._writer: BatchWriter | None = None
        self._closed = False

    def store(self, request: Request) -> int | Dataset:
        """Make one instance durable and return the status to answer with."""
        with self._lock:
            problem = _problem(request)
            answer = self._answer(request) if problem is None else self._refusal(problem)
            if answer == SUCCESS:
                self.stored += 1
            else:
                self.refused += 1
            return answer

    def refuse(self, problem: str) -> Dataset:
        """Return the status for an instance that cannot be written down as a file."""
        with self._lock:
            self.refused += 1
            return self._refusal(problem)

    def close(self) -> bool:
        """Let the batch go, once; later instances are refused. False if it was closed before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            return True

    def _answer(self, request: Request) -> int | Dataset:
        try:
            return self._publish(request)
        except OSError as error:
            log.warning(
                "c-store-not-written",
                source=self.source.key,
                errno=error.errno,
                reason=error.strerror,
            )
            return failure(OUT_OF_RESOURCES, "the instance could not be written")
        # the one place where every other error ends: the peer gets an answer, the rest goes on
        except Exception:
            log.exception("c-store-failed", source=self.source.key)
            return failure(UNEXPECTED, "unexpected error, see the log of the receiver")

    def _publish(self, request: Request) -> int | Dataset:
        data = request.data_set or BytesIO()
        with data.getbuffer() as view:  # no copy; pynetdicom lets the buffer go after the answer
            reason = self._spooling.room.refusal(len(view), time.monotonic())
            if self._closed:
                reason = "the association has ended"
            if reason is not None:
                return failure(OUT_OF_RESOURCES, "the spool takes nothing now")
            encoding = Encoding(request.transfer_syntax, self.source.calling_ae)
            head = file_head(str(request.sop_class), str(request.sop_instance), encoding)
            if self._writer is None:
                self._writer = BatchWriter(self._spooling.layout, self.source)
            entry = self._writer.publish((head, view))
            size = len(view)
        self._spooling.offer(entry)
        log.debug("stored", entry=entry.identifier, uid=short(str(request.sop_instance)), size=size)
        return SUCCESS

    def _refusal(self, problem: str) -> Dataset:
        log.warning("c-store-refused", source=self.source.key, reason=problem)
        return failure(CANNOT_UNDERSTAND, problem)


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


def failure(status: int, comment: str) -> Dataset:
    """Return a status with an Error Comment (0000,0902) of at most 64 characters."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]
    return answer
