"""How far the expansion of an archive may run ahead of the filing of its members.

Without a bound the spool would hold the whole archive unpacked, beside the archive itself, wherever
unpacking is quicker than filing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_BLOCK = 512  # of st_blocks


class Ahead:
    """The members that were published and may not be filed yet."""

    def __init__(self, most_bytes: int = 256 << 20, most_entries: int = 5000) -> None:
        """Bound what waits; `most_entries` is less than what a dispatcher remembers."""
        self._most = (most_bytes, most_entries)
        self._waiting: dict[Path, int] = {}
        self._bytes = 0

    def add(self, path: Path) -> None:
        """Count a member that was published, unless it is filed already."""
        with suppress(FileNotFoundError):
            size = os.lstat(path).st_blocks * _BLOCK
            self._waiting[path] = size
            self._bytes += size

    def is_too_far(self) -> bool:
        """Tell whether to wait; looks into the spool only when that seems so."""
        if not self._beyond():
            return False
        for path in [path for path in self._waiting if not os.path.lexists(path)]:
            self._bytes -= self._waiting.pop(path)
        return self._beyond()

    def _beyond(self) -> bool:
        most_bytes, most_entries = self._most
        return self._bytes > most_bytes or len(self._waiting) > most_entries
