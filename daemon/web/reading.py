"""The index as the page uses it: opened when it is first needed, for a page may come up first."""

from __future__ import annotations

import threading

from config.settings import Settings
from workers.index.engine import MetadataIndex, open_index


class Installation:
    """One installation: its settings, and its index, which every thread of this process shares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._index: MetadataIndex | None = None

    @property
    def index(self) -> MetadataIndex:
        """The index. Raises IndexUnusable where there is none yet, or of another version."""
        with self._lock:
            if self._index is None:
                self._index = open_index(self.settings)
            return self._index

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None
