"""One channel: follow the events, send what is due, and remember how far that came.

The mark is written after the other side took a message and before the next one: who is killed
between the two sends the same again, with the same ids. Nothing is left out, and order is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import Undelivered
from daemon.notifying.disks import disk_notice, measure_disks, turns, warning_reserve
from daemon.notifying.notices import Notice
from daemon.notifying.pacing import Pace
from daemon.notifying.reading import Page, read_page
from workers import clock
from workers.index.engine import MetadataIndex
from workers.index.following import newest_event
from workers.index.marks import origin_of, read_mark, write_mark

MARKS = "notify:"
"""Marks of ours begin so."""

_DISK_SECONDS = 10.0
_MARK_EVENTS = 1000
"""After so many events that nobody is told of, the mark moves too."""

log = get_logger(__name__)


class Sender(Protocol):
    """Somebody who is told."""

    name: str
    most: int
    """Notices of one message."""

    def send(self, notices: Sequence[Notice]) -> None:
        """Send one message. Raises Undelivered."""


class Channel:
    """Tell one sender of all that happens from its first start on; for one thread."""

    def __init__(self, index: MetadataIndex, settings: Settings, sender: Sender) -> None:
        self._index = index
        self._settings = settings
        self._sender = sender
        self._origin = origin_of(index)
        self._pace = Pace(settings.notify.batch_seconds)
        self._after = self._marked = self._first_mark()
        self._told_low: dict[str, bool] = json.loads(self._mark("disks") or "{}")
        self._low = dict(self._told_low)
        self._disks: list[Notice] = []
        self._disks_at = float("-inf")
        self._trouble = ""

    def tick(self, now: float) -> bool:
        """Do what is due at `now` (monotonic seconds); tell whether more is to be done at once."""
        self._look_at_disks(now)
        with self._index.read() as connection:
            until = newest_event(connection)
        page = self._next_page(until)
        notices = (*page.notices, *([] if page.full else self._disks))
        if not notices:
            self._move(page.last, at_once=page.last - self._marked >= _MARK_EVENTS)
            return False
        if not self._pace.is_due(now, full=page.full):
            return False
        try:
            self._sender.send(notices)
        except Undelivered as error:
            self._failed(str(error), now)
            return False
        self._succeeded(len(notices), page)
        return page.full

    def _next_page(self, until: int) -> Page:
        if until < self._after:  # a backup of the index was put back
            self._after = until
        return read_page(
            self._index,
            self._settings.notify,
            self._origin,
            after=self._after,
            until=until,
            limit=self._sender.most,
        )

    def _succeeded(self, count: int, page: Page) -> None:
        self._pace.sent()
        if not page.full:
            self._disks = []
            if self._told_low != self._low:
                self._told_low = dict(self._low)
                write_mark(self._index, self._key("disks"), json.dumps(self._told_low))
        self._move(page.last, at_once=True)
        if self._trouble:
            log.info("notify-goes-on", channel=self._sender.name)
        self._trouble = ""
        log.info("notified", channel=self._sender.name, events=count)

    def _failed(self, reason: str, now: float) -> None:
        pause = self._pace.failed(now)
        if reason != self._trouble:
            log.warning(
                "notify-failed", channel=self._sender.name, reason=reason, again_in_seconds=pause
            )
        self._trouble = reason

    def _look_at_disks(self, now: float) -> None:
        if "disk" not in self._settings.notify.on or now - self._disks_at < _DISK_SECONDS:
            return
        self._disks_at = now
        rooms = measure_disks(self._settings.layout)
        for store, (low, words) in turns(rooms, self._low, warning_reserve(self._settings)).items():
            self._low[store] = low
            self._disks.append(disk_notice(self._origin, store, low, words, clock.utc_now()))

    # marks ----------------------------------------------------------------------------------------

    def _first_mark(self) -> int:
        """Return where to go on: at the first start behind what has happened so far."""
        mark = self._mark("after")
        if mark is not None:
            return int(mark)
        with self._index.read() as connection:
            newest = newest_event(connection)
        write_mark(self._index, self._key("after"), str(newest))
        return newest

    def _move(self, last: int, *, at_once: bool) -> None:
        self._after = last
        if at_once and last != self._marked:
            write_mark(self._index, self._key("after"), str(last))
            self._marked = last

    def _mark(self, what: str) -> str | None:
        return read_mark(self._index, self._key(what))

    def _key(self, what: str) -> str:
        return f"{MARKS}{self._sender.name}:{what}"
