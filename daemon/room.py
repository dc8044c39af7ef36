"""Whether an intake may put something into the spool now: the stores are ours, and have room.

What could not be filed for a missing, read-only or full disk is better kept by its sender: so the
archive is looked at too, and what lies in a spool on another file system counts against its room.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from config.layout import Layout
from config.logs import get_logger
from config.tables.intake import SpoolSettings
from workers.durable import FreeSpace
from workers.errors import StoreUnavailable
from workers.identity import PinnedStores
from workers.watermark import Reserve, StoreRoom, judge_room

MEASURE_SECONDS = 0.2
"""How long a measurement counts."""

_LARGE_BYTES = 16 << 20

Note = Callable[..., None]
"""`NoteWriter.note`."""

log = get_logger(__name__)


class Room:
    """Answer before each write whether the spool may be written to; safe for several threads.

    Parameters
    ----------
    who : str
        The role that asks; it names itself in logs, in notes and in `status`.
    note : callable, optional
        Is told the turns, for the audit.
    """

    def __init__(
        self,
        layout: Layout,
        spool: SpoolSettings,
        who: str = "receiver",
        note: Note | None = None,
    ) -> None:
        self._layout = layout
        self._who = who
        self._note = note
        self._reserve = reserve_of(spool)
        self._backlog = _Backlog(layout)
        self._lock = threading.Lock()
        self._stores = PinnedStores(layout)
        self._measured_at = float("-inf")
        self._rooms: tuple[StoreRoom, ...] = ()
        self._taken = (0, 0)
        self._trouble: str | None = None
        self._low = False
        self._refusing: bool | None = None

    def refusal(self, size: int, now: float) -> str | None:
        """Say why `size` bytes cannot be taken, or return None; `now` is monotonic seconds."""
        with self._lock:
            if now - self._measured_at >= MEASURE_SECONDS or size >= _LARGE_BYTES:
                self._look(now)
                self._measured_at = now
            reason = self._trouble
            rooms = [_owing(room, *self._taken) for room in self._rooms]
            too_large = None
            if reason is None:
                verdict = judge_room(rooms, self._reserve, low=self._low, size=size)
                if verdict.reason is not None:
                    # one instance too large for the room closes it for no other
                    too_large = verdict.reason
                    verdict = judge_room(rooms, self._reserve, low=self._low)
                self._low, reason = verdict.low, verdict.reason
            self._tell(reason)
            return reason or too_large

    def took(self, size: int) -> None:
        """Count what was put into the spool: the next measurement may be a moment away."""
        with self._lock:
            taken, entries = self._taken
            self._taken = taken + size, entries + 1

    def _look(self, now: float) -> None:
        """Check identity and measure what is left."""
        self._trouble, self._taken = None, (0, 0)
        try:
            self._stores.check()
            os.stat(self._layout.ready)
            self._rooms = self._measured(now)
        except OSError as error:
            self._trouble = f"the stores cannot be measured: {error.strerror}"
        except StoreUnavailable as error:
            self._trouble = str(error)

    def _measured(self, now: float) -> tuple[StoreRoom, ...]:
        spool, used = measure("spool", self._layout.incoming)
        archive, _ = measure("archive", self._layout.archive)
        if os.stat(self._layout.incoming).st_dev == os.stat(self._layout.archive).st_dev:
            return spool, archive
        # all that the spool's disk holds is more than what waits: mostly that is enough to know
        if judge_room([_owing(archive, *used)], self._reserve, low=True).reason is None:
            return spool, archive
        return spool, _owing(archive, *self._backlog.owed(now))

    def _tell(self, reason: str | None) -> None:
        """Tell the turns alone, not every refused instance."""
        if (reason is not None) == self._refusing:
            return
        before, self._refusing = self._refusing, reason is not None
        _write_state(self._layout, self._who, reason)
        if reason is not None:
            log.warning("intake-refused", who=self._who, reason=reason)
            if self._note is not None:
                self._note("intake-refused", by=self._who, reason=reason)
        elif before is not None:
            log.info("intake-resumes", who=self._who)
            if self._note is not None:
                self._note("intake-resumes", by=self._who)


class _Backlog:
    """What waits in the spool, counted as often as that costs a twentieth of the time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._until = float("-inf")
        self._owed = (0, 0)

    def owed(self, now: float) -> tuple[int, int]:
        """Return the bytes and the number of the entries that wait."""
        if now >= self._until:
            began = time.monotonic()
            self._owed = _count(self._layout.ready)
            self._until = now + max(MEASURE_SECONDS, 20 * (time.monotonic() - began))
        return self._owed


def _count(folder: Path) -> tuple[int, int]:
    size = entries = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # filed meanwhile
                size += os.lstat(os.path.join(top, name)).st_size
                entries += 1
    return size, entries


def measure(name: str, folder: Path) -> tuple[StoreRoom, tuple[int, int]]:
    """Measure a store: what it has, and the bytes and inodes that its whole disk holds."""
    facts = os.statvfs(folder)
    inodes_free = facts.f_favail if facts.f_files else None  # some file systems do not count them
    free = FreeSpace(facts.f_bavail * facts.f_frsize, inodes_free)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize, facts.f_files - facts.f_ffree
    return StoreRoom(name, free, bool(facts.f_flag & os.ST_RDONLY)), used


def _owing(store: StoreRoom, more_bytes: int, more_entries: int) -> StoreRoom:
    return replace(
        store,
        owed_bytes=store.owed_bytes + more_bytes,
        owed_entries=store.owed_entries + more_entries,
    )


def reserve_of(spool: SpoolSettings) -> Reserve:
    """Return what the settings keep free."""
    return Reserve(spool.minimum_free_mb << 20, spool.minimum_free_inodes, spool.resume_factor)


def _write_state(layout: Layout, who: str, reason: str | None) -> None:
    """Leave word for `status`; a disk that takes not even this is seen there anyway."""
    path = layout.run / f"refusing-{who}"
    with suppress(OSError):
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(f"{os.getpid()}\n{reason}\n", encoding="utf-8")


def refusals(layout: Layout) -> dict[str, str]:
    """Return why the running intakes take nothing now, by role."""
    found = {}
    for who in ("receiver", "watcher", "expander"):
        with suppress(OSError, ValueError):
            process, reason = (layout.run / f"refusing-{who}").read_text("utf-8").split("\n", 1)
            os.kill(int(process), 0)  # ProcessLookupError: it has ended meanwhile
            found[who] = reason.strip()
    return found
