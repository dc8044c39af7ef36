"""Follow the index and send what the store lacks; remember how far that came.

The marks stand in the index and only say where to look next: what is sent again is compared with a
listing first, so a kill at any line, and a lost mark, cost time alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from config.logs import get_logger
from config.settings import Settings
from workers.errors import MirrorUnusable
from workers.filing.journal import NAME
from workers.identity import check_archive
from workers.index.engine import MetadataIndex
from workers.index.following import newest_event
from workers.index.marks import read_mark, write_mark
from workers.mirroring.planning import (
    IDENTITY,
    JOURNAL,
    Segment,
    by_folder,
    covered,
    judge,
    lacking,
    segments_of,
)
from workers.mirroring.publishing import publish
from workers.mirroring.reading import (
    events_after,
    instances_after,
    instances_of,
    newest_instance,
    pair_of,
)
from workers.mirroring.sending import Sender, Sent, in_tree

log = get_logger(__name__)

MARKS = "mirror:"
JOURNAL_SECONDS = 600.0
"""The journal grows by a piece at most so often."""
_SEGMENT_BYTES = 8 << 20

Tell = Callable[[str, int, int], None]


@dataclass
class Mirror:
    """One archive and one store; for one thread."""

    index: MetadataIndex
    settings: Settings
    sender: Sender
    tell: Tell = field(default=lambda _what, _done, _of: None)
    behind: int = 0
    """Instances that were not looked at yet."""

    def __post_init__(self) -> None:
        self._journal_at = float("-inf")
        self._all = self.settings.mirror.what == "all"
        address = f"{self.settings.mirror.url} {self.settings.mirror.endpoint_url or ''}"
        name = hashlib.sha256(address.encode()).hexdigest()[:12]
        self._keys = {what: f"{MARKS}{name}:{what}" for what in ("instances", "events")}
        self._listed: tuple[str, dict[str, int]] = ("", {})
        self._begin()

    def step(self, now: float) -> tuple[Sent, bool]:
        """Send the next page of each; tell what was sent, and whether more waits at once.

        `now` is monotonic seconds. Raises MirrorUnusable, StoreUnavailable, OSError.
        """
        check_archive(self.settings.layout, self.index.identities().archive)
        sent = Sent()
        more = self._follow_events(sent)
        if self._all:
            more = self._follow_instances(sent) or more
            if now - self._journal_at >= JOURNAL_SECONDS:
                self.send_journal(sent)
                self._journal_at = now
        return sent, more

    def send_journal(self, sent: Sent) -> None:
        """Send what the archive's journal has grown by, in whole lines."""
        store, private = self.sender.store, self.settings.layout.archive_private
        start = covered(segments_of(store.listed(f"{JOURNAL}/")))
        try:
            with open(private / NAME, "rb") as file:
                file.seek(start)
                while data := _whole_lines(file):
                    piece = Segment(start, start + len(data))
                    store.put(piece.key, data, hashlib.sha256(data).hexdigest())
                    sent.objects, sent.bytes = sent.objects + 1, sent.bytes + len(data)
                    start = piece.end
                    file.seek(start)
        except FileNotFoundError:
            return  # nothing was ever filed

    def _begin(self) -> None:
        """Raise MirrorUnusable where the bucket cannot be used, or holds another archive."""
        ours = self.index.identities().archive.encode()
        there = self.sender.store.get(IDENTITY)
        if there is None:
            self.sender.store.put(IDENTITY, ours, hashlib.sha256(ours).hexdigest())
        elif there != ours:
            raise MirrorUnusable("another archive is mirrored there: give mirror.url a prefix")

    def _follow_events(self, sent: Sent) -> bool:
        after = self._mark("events")
        with self.index.read() as connection:
            until = newest_event(connection)
            after = min(after, until)  # a backup of the index was put back
            happened = events_after(connection, after, until)
        for done, study_id in enumerate(happened.pairs, 1):
            with self.index.read() as connection:
                made = pair_of(connection, study_id)
            if made is not None:
                sent.add(publish(self.sender, self.settings.layout, made))
            self.tell("pairs", done, len(happened.pairs))
        for study_id in happened.replaced if self._all else ():
            self._send_replaced(study_id, sent)
        self._move("events", happened.last)
        return happened.full

    def _follow_instances(self, sent: Sent) -> bool:
        after = self._mark("instances")
        with self.index.read() as connection:
            until = newest_instance(connection)
            after = min(after, until)
            wanted, last = instances_after(connection, after, until)
        for folder, objects in by_folder(wanted).items():
            missing = lacking(objects, self._listing(folder))
            sent.add(self.sender.send(missing, in_tree(self.settings.layout.archive)))
        if last == until:
            self._listed = ("", {})  # what comes next may come late
        self._move("instances", last)
        self.behind = until - last
        self.tell("instances", last, until)
        return last < until

    def _listing(self, folder: str) -> dict[str, int]:
        """List a folder; the same again at once, page by page of a large one, is asked for once."""
        if self._listed[0] != folder:
            self._listed = (folder, self.sender.store.listed(folder))
        return self._listed[1]

    def _send_replaced(self, study_id: int, sent: Sent) -> None:
        """Compare every file of a study by its digest: a listing tells only sizes."""
        with self.index.read() as connection:
            wanted = instances_of(connection, study_id)
        stored = self.sender.pool.map(lambda one: self.sender.store.head(one.key), wanted)
        other = [one for one, have in zip(wanted, stored, strict=True) if judge(one, have)]
        sent.add(self.sender.send(other, in_tree(self.settings.layout.archive)))

    def _mark(self, what: str) -> int:
        return int(read_mark(self.index, self._keys[what]) or 0)

    def _move(self, what: str, last: int) -> None:
        if last != self._mark(what):
            write_mark(self.index, self._keys[what], str(last))


def _whole_lines(file: BinaryIO) -> bytes:
    """Return the next lines, at most some megabytes; none while the last is being written."""
    data = file.read(_SEGMENT_BYTES)
    return data[: data.rfind(b"\n") + 1]
