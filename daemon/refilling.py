"""Fill the queues anew: with entries and pairs that wait and have no job.

What is in the queue server is a hint; spool and index know what is to be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import redis
import sqlalchemy as sa

from config.logs import get_logger
from config.settings import Settings
from workers import queues
from workers.filing.expanding import is_archive
from workers.index.engine import MetadataIndex
from workers.index.tables import pair
from workers.spool.batches import EntryName, waiting_entries

log = get_logger(__name__)

_AGAIN_SECONDS = 600.0
_MOST_ENTRIES = 5000
_MOST_PAIRS = 1000
"""So many due pairs are looked at: some may be in vain for long, and others come behind them."""

_DUE_PAIRS = (
    sa.select(pair.c.id, pair.c.generation)
    .where(
        pair.c.state == "pending",
        pair.c.generation > pair.c.done_generation,
        pair.c.generation > pair.c.failed_generation,
    )
    .order_by(pair.c.id)
    .limit(_MOST_PAIRS)
)


class _Patience:
    """Ask again for the same thing after 2, 4, … 60 s: what failed at once fails at once again."""

    def __init__(self) -> None:
        self._what = ""
        self._seconds = 0.0
        self._asked_at = float("-inf")

    def is_over(self, what: str, now: float) -> bool:
        """Tell whether `what` may be asked for now; if so, that counts as asking."""
        if what == self._what and now - self._asked_at < self._seconds:
            return False
        self._seconds = min(60.0, 2 * self._seconds) if what == self._what else 2.0
        self._what, self._asked_at = what, now
        return True


class QueueFiller:
    """What asks for work that nobody does; it remembers what it asked for."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._queue = queues.filing_queue(settings.spool.name)
        self._trouble = ""
        self._entries_asked = 0.0
        self._oldest: str | None = None
        self._entries_wait = _Patience()
        self._pairs_wait: dict[tuple[int, int], _Patience] = {}

    def fill(self, now: float) -> None:
        """Queue what waits at `now` (monotonic seconds); a server that is away is told of once."""
        try:
            # anew each time: a connection that stands may be to a server that nobody else can find
            with queues.connect(self._settings) as connection:
                if not self._settings.redis.url and queues.is_full(connection):
                    # ours alone, and all in it is a hint: jobs are made anew from spool and index
                    connection.flushall()
                    log.warning("queue-server-emptied", reason="its memory was full")
                self.dispatch(connection, now)
                self._ask_for_due_pairs(connection, now)
            if self._trouble:
                log.info("queue-server-answers-again")
            self._trouble = ""
        except redis.RedisError as error:
            if queues.why(error) != self._trouble:
                self._trouble = queues.why(error)
                log.warning("queue-server-unusable", reason=self._trouble)

    def dispatch(self, connection: redis.Redis, now: float) -> None:
        """Queue waiting entries when the queue has nothing to do, or after ten minutes.

        The oldest must have been there at the last look (or at the start): what comes in now has a
        dispatcher of its own.
        """
        first = next(self._waiting_for_a_worker(), None)
        before, self._oldest = self._oldest, first.identifier if first else ""
        if first is None:
            self._entries_asked = now
            return
        if before not in (None, first.identifier):
            return
        again = now - self._entries_asked >= _AGAIN_SECONDS
        if not again and not queues.idle(connection, self._queue):
            return
        if not self._entries_wait.is_over(first.identifier, now):
            return
        self._entries_asked = now
        entries = list(islice(self._waiting_for_a_worker(), _MOST_ENTRIES))
        size = self._settings.filing.batch_entries
        for start in range(0, len(entries), size):
            batch = entries[start : start + size]
            if not queues.enqueue_filing(connection, batch, self._settings.spool.name):
                break
        log.info("dispatched-again", entries=len(entries))

    def _waiting_for_a_worker(self) -> Iterator[EntryName]:
        """Yield what waits but archives, which no worker takes (filing/expanding.py)."""
        for entry in waiting_entries(self._layout):
            try:
                if is_archive(entry, entry.where(self._layout)):
                    continue
            except OSError:
                pass  # a worker meets the error too, and says so
            yield entry

    def _ask_for_due_pairs(self, connection: redis.Redis, now: float) -> None:
        """Queue each due pair that has no job: none was made, it is lost, or its worker is dead."""
        if not self._settings.pairing.enabled:
            return
        if not self._due_pairs():
            self._pairs_wait = {}
            return
        with_job = queues.pairs_with_a_job(connection)  # what is done by now is due no more
        due = self._due_pairs()
        self._pairs_wait = {one: self._pairs_wait.get(one) or _Patience() for one in due}
        for one, patience in self._pairs_wait.items():
            if one in with_job or not patience.is_over("pair", now):
                continue
            if not queues.enqueue_pairing(connection, *one):
                break

    def _due_pairs(self) -> list[tuple[int, int]]:
        with self._index.read() as connection:
            rows = connection.execute(_DUE_PAIRS)
            return [(row.id, row.generation) for row in rows]
