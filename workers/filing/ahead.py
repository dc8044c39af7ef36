"""How far the expansion of an archive may run ahead of the filing of its members.

Without a bound the spool would hold the whole archive unpacked, beside the archive itself, wherever
unpacking is quicker than filing. A member that filing could not take (left.py) is not waited for:
it may stay for ever, and what is behind it can be filed. The room in the spool bounds those.
"""

from __future__ import annotations

import os
from contextlib import suppress

from config.layout import Layout
from workers.filing.left import noted
from workers.spool.batches import EntryName

_BLOCK = 512  # of st_blocks


class Ahead:
    """The members that were published and may not be filed yet."""

    def __init__(
        self, layout: Layout, most_bytes: int = 256 << 20, most_entries: int = 5000
    ) -> None:
        """Bound what waits; `most_entries` is less than what a dispatcher remembers."""
        self._layout = layout
        self._most = (most_bytes, most_entries)
        self._waiting: dict[EntryName, int] = {}
        self._bytes = 0

    def add(self, member: EntryName) -> None:
        """Count a member that was published, unless it is filed already."""
        with suppress(FileNotFoundError):
            size = os.lstat(member.where(self._layout)).st_blocks * _BLOCK
            self._waiting[member] = size
            self._bytes += size

    def is_too_far(self) -> bool:
        """Tell whether to wait; looks into the spool only when that seems so."""
        if not self._beyond():
            return False
        left = noted(self._layout)
        for one in [one for one in self._waiting if not self._is_awaited(one, left)]:
            self._bytes -= self._waiting.pop(one)
        return self._beyond()

    def _is_awaited(self, member: EntryName, left: frozenset[str]) -> bool:
        waits = os.path.lexists(member.where(self._layout))
        return waits and not (left and member.identifier in left)

    def _beyond(self) -> bool:
        most_bytes, most_entries = self._most
        return self._bytes > most_bytes or len(self._waiting) > most_entries
