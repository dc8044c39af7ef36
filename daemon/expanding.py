"""A thread that expands the archives in the spool, beside the sweeper's ticks.

It has no time limit as a job has: an archive of hundreds of gigabytes takes its hours, and its
members are filed meanwhile.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from config.logs import get_logger
from config.settings import Settings
from daemon.dispatcher import Dispatcher
from daemon.room import Room
from workers.filing.expanding import expand_entry, waiting_archives
from workers.filing.left import note_left, why_left
from workers.index.engine import MetadataIndex
from workers.spool.batches import EntryName
from workers.spool.uploads import add_entries

_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 30.0
_PAUSE_SECONDS = 0.2
_PAUSE_TIMES = 10
"""A pause lasts so many times what the look before it took, however large the spool."""

log = get_logger(__name__)


class ExpanderThread:
    """Expand one archive after the other until stopped."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._stop = threading.Event()
        self._not_before: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="expander", daemon=True)

    def __enter__(self) -> ExpanderThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)  # what is being expanded is taken up again at the next start

    def check(self) -> None:
        """Raise RuntimeError where the thread has ended: whoever supervises starts all anew."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that expands archives has ended")

    def _run(self) -> None:
        dispatcher = Dispatcher(self._settings)
        room = Room(self._settings.layout, self._settings.spool, "expander")
        try:
            wait = _LOOK_SECONDS
            while not self._stop.wait(wait):
                looked = self._expand_all(dispatcher, room)
                wait = max(_LOOK_SECONDS, _PAUSE_TIMES * looked)
        finally:
            dispatcher.close()

    def _expand_all(self, dispatcher: Dispatcher, room: Room) -> float:
        """Return how many seconds it took to find what there is to expand."""
        began = time.monotonic()
        try:
            archives = list(waiting_archives(self._settings))
        except OSError as error:  # a passing trouble: the next look tries
            log.warning("archives-not-listed", reason=error.strerror)
            return 0.0
        looked = time.monotonic() - began
        there = {entry.identifier for entry in archives}
        self._not_before = {key: at for key, at in self._not_before.items() if key in there}
        for entry in archives:
            if self._stop.is_set():
                break
            if time.monotonic() < self._not_before.get(entry.identifier, 0.0):
                continue
            try:
                expand_entry(
                    self._index,
                    self._settings,
                    entry,
                    lambda: self._refusal(room),
                    partial(self._offer, dispatcher, entry.batch),
                    lambda: self._stop.wait(_PAUSE_SECONDS),
                )
            # the thread's boundary: one archive must not hold up the others
            except Exception as error:  # noqa: BLE001 - logged, and told by `status`
                if self._stop.is_set():
                    break  # it is taken up again at the next start
                log.warning("archive-waits", entry=entry.identifier, error=type(error).__name__)
                note_left(self._settings.layout, entry, why_left(error))
                self._not_before[entry.identifier] = time.monotonic() + _AGAIN_SECONDS
        return looked

    def _offer(self, dispatcher: Dispatcher, batch: str, member: EntryName) -> None:
        add_entries(self._settings.layout, batch, (member,))  # where the archive was uploaded
        dispatcher.offer(member)

    def _refusal(self, room: Room) -> str | None:
        if self._stop.is_set():
            return "a stop was asked for"
        return room.refusal(0, time.monotonic())
