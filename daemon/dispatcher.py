"""Turn the names of new entries into filing jobs, beside the intake and never in its way.

The names in memory are a hint: what does not fit, or is lost with the process, lies in the spool
all the same and is found by the sweeper.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import redis

from config.logs import get_logger
from config.settings import Settings
from workers.queues import connect, enqueue_filing, why
from workers.spool.batches import EntryName

NAMES_LIMIT = 10_000
"""Names held in memory at most."""

_LONGEST_BATCHES = 5
_SHORTEST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

log = get_logger(__name__)


class Dispatcher:
    """Collect entry names and queue them in batches, from a thread of its own.

    A job is made of up to `filing.batch_entries` names, or of those after which none came for
    `filing.batch_seconds`; none waits more than five times as long. A server that is away or a
    full queue is tried again with a growing wait; meanwhile the oldest `NAMES_LIMIT` names are kept
    and later ones are dropped.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names: deque[EntryName] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._newest = 0.0
        self._dropped = 0
        self._connection: redis.Redis | None = None
        self._thread = threading.Thread(target=self._work, name="dispatcher", daemon=True)
        self._thread.start()

    def offer(self, entry: EntryName) -> None:
        """Take the name of an entry that is durable in the spool; returns at once."""
        with self._changed:
            if len(self._names) >= NAMES_LIMIT or self._closing:
                self._dropped += 1
                return
            self._names.append(entry)
            self._newest = time.monotonic()
            # the thread sleeps until a first name comes, then until its batch is full or due
            if len(self._names) in (1, self._settings.filing.batch_entries):
                self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Queue what is held, if the server takes it at once, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        wait = _SHORTEST_WAIT_SECONDS
        while batch := self._next_batch():
            trouble = self._enqueue(batch)
            if trouble is None:
                if wait > _SHORTEST_WAIT_SECONDS:
                    log.info("dispatch-resumed", names_left_to_the_sweeper=self._forget_dropped())
                wait = _SHORTEST_WAIT_SECONDS
                continue
            if self._closing:
                log.info("dispatch-left-to-the-sweeper", names=len(batch), reason=trouble)
                break
            if wait == _SHORTEST_WAIT_SECONDS:
                log.warning("dispatch-waits", reason=trouble)
            self._put_back(batch)
            self._pause(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        if self._connection is not None:
            self._connection.close()

    def _next_batch(self) -> list[EntryName]:
        """Wait for a full or due batch; an empty one means that all is done."""
        size, seconds = self._settings.filing.batch_entries, self._settings.filing.batch_seconds
        with self._changed:
            while not self._names and not self._closing:
                self._changed.wait()
            latest = time.monotonic() + _LONGEST_BATCHES * seconds
            while len(self._names) < size and not self._closing:
                # a sender that goes on gets fewer, larger batches: each syncs the disk some times
                left = min(self._newest + seconds, latest) - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._names.popleft() for _ in range(min(size, len(self._names)))]

    def _enqueue(self, batch: list[EntryName]) -> str | None:
        """Queue a batch; say in words why it could not be."""
        try:
            if self._connection is None:
                self._connection = connect(self._settings)
            taken = enqueue_filing(self._connection, batch, self._settings.spool.name)
            return None if taken else "the queue is full"
        except redis.RedisError as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None  # the next one reads the password anew
            return why(error)
        except Exception as error:  # this thread must live as long as entries come in
            log.exception("dispatch-failed")
            return f"unexpected error ({type(error).__name__})"

    def _put_back(self, batch: list[EntryName]) -> None:
        with self._changed:
            self._names.extendleft(reversed(batch))
            while len(self._names) > NAMES_LIMIT:
                self._names.pop()
                self._dropped += 1

    def _pause(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        with self._changed:
            while not self._closing and (left := due - time.monotonic()) > 0:
                self._changed.wait(left)

    def _forget_dropped(self) -> int:
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped
