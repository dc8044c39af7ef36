"""Decide storage commitment in a thread of the sweeper's: reading files back takes its time."""

from __future__ import annotations

import threading
import time
from typing import Self

import sqlalchemy as sa

from config.logs import get_logger
from config.settings import Settings
from workers.commitment.deciding import Commitments
from workers.errors import IndexAway
from workers.index.engine import MetadataIndex

_LOOK_SECONDS = 0.5
_IDLE_SHARE = 4.0
"""Looking at a full spool again and again takes at most a fifth of the time."""

log = get_logger(__name__)


class Committing:
    """Decide what the receiver was asked, until closed."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._stop = threading.Event()
        self._commitments = Commitments(index, settings, self._stop.is_set)
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RuntimeError where the thread has ended: whoever supervises starts all anew."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that decides storage commitment has ended")

    def _run(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            began = time.monotonic()
            decided = 0
            try:
                decided = self._commitments.work()
            except (OSError, IndexAway, sa.exc.DBAPIError) as error:  # the next look tries again
                log.warning("commitment-failed", error=type(error).__name__)
            took = 0.0 if decided else time.monotonic() - began
            wait = max(_LOOK_SECONDS, _IDLE_SHARE * took)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
