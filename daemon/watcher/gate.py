"""May anything be put into the spool now?"""

from __future__ import annotations

import time

from config.layout import Layout
from config.tables.intake import SpoolSettings
from daemon.room import Note, Room


class SpoolGate:
    """Look whether spool and archive are ours, writable, and have room; one for all folders."""

    def __init__(self, layout: Layout, settings: SpoolSettings, note: Note | None = None) -> None:
        self._room = Room(layout, settings, "watcher", note)

    def reason(self, size: int = 0) -> str | None:
        """Say why nothing, or nothing of `size` bytes, may be written now; or None."""
        return self._room.refusal(size, time.monotonic())

    def took(self, size: int) -> None:
        """Count what was copied into the spool."""
        self._room.took(size)
