"""Give the whole quarantine back in a thread of its own: a page that did it would seem to hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from config.layout import Layout
from config.logs import get_logger
from workers import clock
from workers.errors import WorkersError
from workers.filing.releasing import count_set_aside, retry_all
from workers.index.engine import MetadataIndex
from workers.spool.batches import EntryName

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is."""

    begun_at: str
    total: int
    given: int = 0
    left: int = 0
    """Those that could not be given back, and stay."""
    running: bool = True
    trouble: str = ""
    """Why it ended before all were tried."""

    @property
    def done(self) -> int:
        return self.given + self.left


class Retrying:
    """One run at a time; the last one is told until the next begins."""

    def __init__(self, layout: Layout, offer: Callable[[EntryName], None]) -> None:
        self._layout = layout
        self._offer = offer
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.progress: Progress | None = None

    def begin(self, index: MetadataIndex, by: str) -> bool:
        """Begin with what lies in quarantine now; False where a run goes on already."""
        total = count_set_aside(index)
        with self._lock:
            if self._stopping.is_set() or (self._thread is not None and self._thread.is_alive()):
                return False
            self.progress = Progress(clock.utc_now(), total)
            self._thread = threading.Thread(target=self._run, args=(index, by), name="retrying")
            self._thread.start()
            return True

    def close(self) -> None:
        """End the run behind the entry in hand; what was not given back stays in quarantine."""
        with self._lock:
            self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, index: MetadataIndex, by: str) -> None:
        trouble = ""
        try:
            for name in retry_all(index, self._layout, by):
                self._count(name)
                if self._stopping.is_set():
                    trouble = "the page was stopped"
                    break
        except (WorkersError, sa.exc.DBAPIError) as error:
            log.warning("retrying-ended", error=type(error).__name__)
            trouble = "the index cannot be written"
        except Exception as error:  # the boundary of a thread: its page must say that it ended
            log.exception("retrying-failed")
            trouble = f"an unexpected error ({type(error).__name__})"
        if self.progress is not None:
            self.progress = replace(self.progress, running=False, trouble=trouble)

    def _count(self, name: EntryName | None) -> None:
        assert self.progress is not None  # noqa: S101 - there is one as long as the thread lives
        if name is None:
            self.progress = replace(self.progress, left=self.progress.left + 1)
        else:
            self._offer(name)
            self.progress = replace(self.progress, given=self.progress.given + 1)
