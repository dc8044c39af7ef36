"""The index as the page uses it: opened when it is first needed, for a page may come up first."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from config.settings import Settings
from daemon.web.taking import FOLDER
from workers.index.engine import MetadataIndex, open_index
from workers.spool.batches import BatchSource

_KINDS = ("folder", "archive")


class Installation:
    """One installation: its settings, and its index, which every thread of this process shares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._index: MetadataIndex | None = None
        paths = [*(watch.path for watch in settings.watched), settings.layout.root / FOLDER]
        self._folders = {
            BatchSource(kind="folder", folder=os.fspath(path)).key: path for path in paths
        }

    @property
    def index(self) -> MetadataIndex:
        """The index. Raises IndexUnusable where there is none yet, or of another version."""
        with self._lock:
            if self._index is None:
                self._index = open_index(self.settings)
            return self._index

    def called(self, source: str) -> str:
        """Name a source for people: the index knows a folder by its hash alone."""
        kind, _, digits = source.partition(":")
        path = self._folders.get(f"folder:{digits}") if kind in _KINDS else None
        return f"{kind} {path}" if path else source

    @property
    def port(self) -> int:
        """The port of the receiver, as it is or as it is set."""
        with suppress(OSError, ValueError):
            return int((self.settings.layout.run / "receiver.port").read_text("ascii"))
        return self.settings.receiver.port

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None
