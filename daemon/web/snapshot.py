"""The overview's facts, gathered once for everybody who looks, and not more often than is cheap."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from daemon.looking import Status, look
from daemon.room import measure
from daemon.web.reading import Installation
from workers import clock
from workers.errors import IndexUnusable
from workers.index.arriving import Hour, HourCounts
from workers.index.queries import list_studies
from workers.index.searching import WantedStudies, page_of_studies, with_ids

LATELY_SECONDS = 15 * 60
_MOST_ARRIVING = 6
_MOST_HELD = 5
_FRESH_SECONDS = 1.0
_REST = 10.0
"""Gathering takes at most about a tenth of one core: it rests so many times as long as it took."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What one store's disk has, in bytes."""

    names: str
    free: int
    total: int
    reserve: int

    @property
    def used_fraction(self) -> float:
        return 1 - self.free / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the overview shows."""

    status: Status
    hours: tuple[Hour, ...]
    arriving: tuple[dict[str, Any], ...]
    """Studies of which something was filed within `LATELY_SECONDS`, the newest first."""
    held: tuple[dict[str, Any], ...]
    """Some of the held studies, the newest first."""
    disks: tuple[Disk, ...]


class Snapshots:
    """The newest snapshot of one installation."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._lock = threading.Lock()
        self._hours = HourCounts()
        self._snapshot: Snapshot | None = None
        self._good_until = 0.0

    def newest(self) -> Snapshot:
        """Return a snapshot that is fresh enough; gather one where there is none."""
        with self._lock:
            began = time.monotonic()
            if self._snapshot is None or began >= self._good_until:
                self._snapshot = self._gather()
                ended = time.monotonic()
                self._good_until = ended + max(_FRESH_SECONDS, _REST * (ended - began))
            return self._snapshot

    def _gather(self) -> Snapshot:
        installation = self._installation
        status = look(installation.settings)
        hours: tuple[Hour, ...] = ()
        arriving: list[dict[str, Any]] = []
        held: list[dict[str, Any]] = []
        try:
            index = installation.index
        except IndexUnusable:
            pass  # `look` says so, in words
        else:
            lately = WantedStudies(since=clock.utc_of(clock.wall() - LATELY_SECONDS))
            with index.read() as connection:
                hours = self._hours.update(connection, datetime.now(UTC))
                arriving = page_of_studies(connection, lately, _MOST_ARRIVING)
                held = list_studies(connection, limit=_MOST_HELD, state="held")
                held = with_ids(connection, held)
        return Snapshot(status, hours, tuple(arriving), tuple(held), _disks(installation))


def _disks(installation: Installation) -> tuple[Disk, ...]:
    """Measure the disks of spool and archive; one where both lie on the same."""
    layout = installation.settings.layout
    reserve = installation.settings.spool.minimum_free_mb << 20
    found: dict[int, Disk] = {}
    for name, folder in (("archive", layout.output), ("spool", layout.spool)):
        try:
            device = folder.stat().st_dev
            room, (used, _) = measure(name, folder)
        except OSError:
            continue  # `look` says so, in words
        names = f"{found[device].names} and {name}" if device in found else name
        free = room.free.bytes_free
        found[device] = Disk(names, free, used + free, reserve)
    return tuple(found.values())
