"""Whether the spool can take an instance now: it is ours, and it has room."""

from __future__ import annotations

import threading
from collections.abc import Callable

from config.layout import Layout
from config.logs import get_logger
from config.settings import SpoolSettings
from workers.durable import FreeSpace, free_space
from workers.errors import StoreUnavailable
from workers.identity import PinnedStores

MEASURE_SECONDS = 0.2
"""How long a measurement counts."""

_LARGE_BYTES = 16 << 20

log = get_logger(__name__)


class Room:
    """Answer before each write whether the spool may be written to; safe for several threads.

    Spool and archive must be the stores that were there first (design.md 2): what could not be
    filed for a missing disk is better kept by its sender.
    """

    def __init__(
        self,
        layout: Layout,
        spool: SpoolSettings,
        measure: Callable[[Layout], FreeSpace] = lambda layout: free_space(layout.incoming),
    ) -> None:
        self._layout = layout
        self._minimum_bytes = spool.minimum_free_mb << 20
        self._minimum_inodes = spool.minimum_free_inodes
        self._measure = measure
        self._lock = threading.Lock()
        self._stores = PinnedStores(layout)
        self._measured_at = float("-inf")
        self._free: FreeSpace | None = None
        self._trouble: str | None = None
        self._refusing = False

    def refusal(self, size: int, now: float) -> str | None:
        """Say why `size` bytes cannot be taken, or return None; `now` is monotonic seconds."""
        with self._lock:
            if now - self._measured_at >= MEASURE_SECONDS or size >= _LARGE_BYTES:
                self._look()
                self._measured_at = now
            reason = self._trouble
            if reason is None and self._free is not None:
                reason = self._free.lacks(self._minimum_bytes + size, self._minimum_inodes)
            self._tell(reason)
            return reason

    def _look(self) -> None:
        """Check identity and measure what is left."""
        self._free = None
        self._trouble = None
        try:
            self._stores.check()
            self._free = self._measure(self._layout)
        except (OSError, StoreUnavailable) as error:
            self._trouble = str(error)

    def _tell(self, reason: str | None) -> None:
        """Log the turns alone, not every refused instance."""
        if (reason is not None) == self._refusing:
            return
        self._refusing = reason is not None
        if reason is None:
            log.info("spool-takes-again")
        else:
            log.warning("spool-refuses", reason=reason)
