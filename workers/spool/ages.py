"""Since when does an entry wait? Told on the clock that nobody sets.

An entry's st_ctime is wall time, and that clock may be set by hours. What was published before we
looked first, or before a step that we noticed, tells nothing: it counts as older than everything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from config.layout import Layout
from workers.spool.batches import waiting_entries

STEP_SECONDS = 1.0
"""How far the clocks may come apart before the wall clock counts as set."""

UNKNOWN = float("-inf")


class Ages:
    """Translate wall times of entries into monotonic ones, never into too late a one."""

    def __init__(self) -> None:
        self._offset: float | None = None  # wall - monotonic
        self._trusted_from = UNKNOWN
        self._wall = UNKNOWN

    def look(self, wall: float, now: float, newest: Callable[[], float]) -> None:
        """Compare the clocks, as often as can be; `newest` tells when the last entry came."""
        offset = wall - now
        self._wall = wall
        if self._offset is not None and abs(offset - self._offset) <= STEP_SECONDS:
            return
        unstepped = wall if self._offset is None else self._offset + now
        self._trusted_from = max(self._trusted_from, wall, unstepped, newest())
        self._offset = offset

    def published(self, changed: float) -> float:
        """Return the monotonic time of an entry's st_ctime; `UNKNOWN`, which is before all else,
        where it says nothing.
        """
        if changed == float("inf"):
            return changed
        if self._offset is None or not self._trusted_from < changed <= self._wall + STEP_SECONDS:
            return UNKNOWN
        return changed - self._offset - STEP_SECONDS


def waiting_times(layout: Layout) -> tuple[float, float]:
    """Return when the oldest and the newest waiting entry were published, by the wall clock;
    infinity and `UNKNOWN` where none waits.

    An entry that is linked into the tree, but not committed, has the time of its link: it counts as
    oldest of all.
    """
    waiting = look_at_waiting(layout)
    return waiting.oldest, waiting.newest


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a spool; when it was published, as `waiting_times` tells."""

    entries: int = 0
    oldest: float = float("inf")
    newest: float = UNKNOWN


def look_at_waiting(layout: Layout) -> Waiting:
    """Count the waiting entries; find the oldest and the newest."""
    entries, oldest, newest = 0, float("inf"), UNKNOWN
    for entry in waiting_entries(layout):
        try:
            facts = os.lstat(entry.where(layout))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode):
            entries += 1
            oldest = min(oldest, facts.st_ctime if facts.st_nlink == 1 else UNKNOWN)
            newest = max(newest, facts.st_ctime)
    return Waiting(entries, oldest, newest)
