"""When has a file settled?

There is no event that says "whole": a rename or a hard link closes nothing, network file systems
tell nothing, and a stalled copy looks like a finished one. So a file has settled when its inode,
size and mtime stayed the same for `settle_seconds` since we first saw them so. Only our own
monotonic time counts: an mtime in the future or of last year means nothing. Whether somebody still
has it open for writing is asked last (leases.py).
"""

from __future__ import annotations

import heapq
import os
import stat
from dataclasses import dataclass

_DEAD_NOTES = 1000


@dataclass(frozen=True, slots=True)
class FileState:
    """What must not change while a file settles."""

    inode: int
    size: int  # bytes
    mtime_ns: int


def state_of(facts: os.stat_result) -> FileState | None:
    """Return the state of a regular file; None for everything else."""
    if not stat.S_ISREG(facts.st_mode):
        return None
    return FileState(facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(slots=True)
class _Waiting:
    state: FileState
    since: float
    due: float
    patience: float


class Settling:
    """Keep the files that are not settled yet; `now` is monotonic seconds, given by the caller.

    A path is told with `saw` whenever somebody looked at it. `due` names the paths worth another
    look, each again after its patience, so that none is forgotten; `confirm` takes that look's
    result.
    """

    def __init__(self, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self._waiting: dict[str, _Waiting] = {}
        self._dues: list[tuple[float, str]] = []

    def saw(self, path: str, state: FileState, now: float, at_least: float = 0.0) -> None:
        """Note a look at a file; a state that we did not know starts its time anew.

        `at_least` seconds are waited where the name asks for more than `settle_seconds`.
        """
        known = self._waiting.get(path)
        if known is None or known.state != state:
            patience = max(self._settle_seconds, at_least)
            self._waiting[path] = _Waiting(state, now, now + patience, patience)
            self._push(now + patience, path)

    def due(self, now: float, limit: int = 1000) -> list[str]:
        """Name up to `limit` paths that may have settled, longest waiting first."""
        paths: list[str] = []
        again: list[tuple[float, str]] = []
        while self._dues and self._dues[0][0] <= now and len(paths) < limit:
            due, path = heapq.heappop(self._dues)
            waiting = self._waiting.get(path)
            if waiting is None or waiting.due != due:
                continue  # forgotten, or seen anew since
            paths.append(path)
            waiting.due = now + max(waiting.patience, 0.01)
            again.append((waiting.due, path))
        for item in again:
            heapq.heappush(self._dues, item)
        return paths

    def confirm(self, path: str, state: FileState, now: float) -> bool:
        """Take another look's result; True when the file has settled."""
        known = self._waiting.get(path)
        if known is not None and known.state == state:
            return now - known.since >= known.patience
        self.saw(path, state, now, known.patience if known else 0.0)
        return False

    def postpone(self, path: str, until: float) -> None:
        """Do not name a path again before `until`, unless it changes."""
        waiting = self._waiting.get(path)
        if waiting is not None:
            waiting.due = until
            self._push(until, path)

    def _push(self, due: float, path: str) -> None:
        """Note when a path is due; a file that changes all the time leaves dead notes behind."""
        heapq.heappush(self._dues, (due, path))
        if len(self._dues) > 2 * len(self._waiting) + _DEAD_NOTES:
            self._dues = [(waiting.due, path) for path, waiting in self._waiting.items()]
            heapq.heapify(self._dues)

    def forget(self, path: str) -> None:
        """Stop waiting for a path: it was taken, or it is gone."""
        self._waiting.pop(path, None)

    def next_due(self) -> float | None:
        """Return when `due` will name something, or None when nothing waits."""
        while self._dues:
            due, path = self._dues[0]
            waiting = self._waiting.get(path)
            if waiting is not None and waiting.due == due:
                return due
            heapq.heappop(self._dues)
        return None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, path: str) -> bool:
        return path in self._waiting
