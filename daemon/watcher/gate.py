"""May anything be put into the spool now?"""

from __future__ import annotations

import os

from config.layout import Layout
from config.settings import SpoolSettings
from workers.durable import free_space
from workers.errors import StoreUnavailable
from workers.identity import check_identity, read_identity


class SpoolGate:
    """Look whether the spool is ours, writable and has room.

    The first identity that is found is the one that is meant; without any nothing is written,
    because an unmounted disk's empty mount point has none either (design.md 2).
    """

    def __init__(self, layout: Layout, settings: SpoolSettings) -> None:
        self._layout = layout
        self._settings = settings
        self._identity: str | None = None

    def reason(self, size: int = 0) -> str | None:
        """Say why nothing, or nothing of `size` bytes, may be written now; or None."""
        try:
            if self._identity is None:
                self._identity = read_identity(self._layout.spool)
            if self._identity is None:
                return f"the spool at {self._layout.spool} has no identity yet (.petct/id)"
            check_identity(self._layout.spool, self._identity, "spool")
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
