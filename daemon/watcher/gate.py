"""May anything be put into the spool now?"""

from __future__ import annotations

import os

from config.layout import Layout
from config.settings import SpoolSettings
from workers.durable import free_space
from workers.errors import StoreUnavailable
from workers.identity import PinnedStores


class SpoolGate:
    """Look whether spool and archive are ours, and the spool is writable and has room."""

    def __init__(self, layout: Layout, settings: SpoolSettings) -> None:
        self._layout = layout
        self._settings = settings
        self._stores = PinnedStores(layout)

    def reason(self, size: int = 0) -> str | None:
        """Say why nothing, or nothing of `size` bytes, may be written now; or None."""
        try:
            self._stores.check()
        except StoreUnavailable as error:
            return str(error)
        try:
            if not (os.access(self._layout.incoming, os.W_OK) and self._layout.ready.is_dir()):
                return f"the spool at {self._layout.spool} cannot be written to"
            return free_space(self._layout.spool).lacks(
                (self._settings.minimum_free_mb << 20) + size, self._settings.minimum_free_inodes
            )
        except OSError as error:
            return f"the spool at {self._layout.spool} cannot be used: {error.strerror}"
