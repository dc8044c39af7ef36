"""Listen to the kernel for what happens in a watched folder; all of it is only a hint.

The default mask of watchdog includes every opening of a file and overflows by itself, hence the
filter. Three things are silent in its events, and told here: an overflow (events were lost), a
reached limit of watches (part of the tree is not heard), and a listener that has died. Each asks
for scans instead.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

HINTS_LIMIT = 50_000
"""Paths held between two looks at most; a scan is cheaper than more."""

EVENTS_LIMIT = 20_000
"""Events of the library that wait for us at most; then the kernel's own bounded queue fills, and
says when it overflows."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was heard since the last look; full paths."""

    files: frozenset[str]
    folders: frozenset[str]
    lost: bool


class Hints(FileSystemEventHandler):
    """Hear of new files and folders below one folder.

    Parameters
    ----------
    root : str
        The folder's real path.
    wanted : callable
        Says of a folder's full path whether it is to be listened to.
    """

    def __init__(self, root: str, wanted: Callable[[str], bool]) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._lost = False
        self._limited = False
        # a folder that is told twice (created, and found in its parent) is no reason to complain
        warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning)
        self._ear = _Ear(wanted, self._on_lost, self._on_limit)
        self._observer = _Observer(self._ear)

    def start(self) -> None:
        """Begin to listen; raises OSError where the kernel refuses (limits, no inotify)."""
        self._ear.start()
        self._observer.schedule(
            self,
            self._root,
            recursive=True,
            event_filter=[
                FileCreatedEvent,
                FileClosedEvent,
                FileMovedEvent,
                DirCreatedEvent,
                DirMovedEvent,
            ],
        )
        try:
            self._observer.start()
        except BaseException:
            self._ear.stop()
            self._ear.join()
            raise

    def take(self) -> Told:
        """Return what was heard since the last call."""
        with self._lock:
            told = Told(frozenset(self._files), frozenset(self._folders), self._lost)
            self._files.clear()
            self._folders.clear()
            self._lost = False
        return told

    @property
    def limited(self) -> bool:
        """Part of the tree could not be listened to: the kernel's limit of watches is reached."""
        return self._limited

    @property
    def alive(self) -> bool:
        return (
            self._ear.is_alive()
            and self._observer.is_alive()
            and all(emitter.is_alive() for emitter in self._observer.emitters)
        )

    def close(self) -> None:
        """Stop listening and end the threads."""
        self._observer.stop()
        self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note where something happened; called by the observer's thread."""
        path = os.fsdecode(event.dest_path or event.src_path)
        with self._lock:
            (self._folders if event.is_directory else self._files).add(path)
            if len(self._files) + len(self._folders) > HINTS_LIMIT:
                self._files.clear()
                self._folders.clear()
                self._lost = True

    def _on_lost(self) -> None:
        with self._lock:
            self._lost = True

    def _on_limit(self) -> None:
        self._limited = True


class _Ear(InotifyFD):
    """The inotify descriptor, telling what the library only logs or swallows."""

    def __init__(
        self,
        wanted: Callable[[str], bool],
        on_lost: Callable[[], None],
        on_limit: Callable[[], None],
    ) -> None:
        super().__init__()
        self._wanted = wanted
        self._on_lost = on_lost
        self._on_limit = on_limit
        self.crowded: Callable[[], bool] = lambda: False

    def handle_event(self, event: InotifyEvent) -> None:
        while self.crowded() and not self.stopped_event.wait(0.01):
            pass  # the library's queues have no bound of their own
        super().handle_event(event)
        if event.is_queue_overflow:
            # after the library has renewed its watches, so that the scan misses nothing
            self._on_lost()

    def add_callback(
        self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId
    ) -> WatchDescriptor:
        """Add a watch; raises OSError where the folder is not wanted, not readable or too many."""
        if not self._wanted(os.fsdecode(path)):
            raise OSError(errno.EPERM, "not listened to")
        if not os.access(path, os.R_OK):  # the library takes EACCES for a watch
            raise OSError(errno.EACCES, "not readable")
        try:
            return super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._on_limit()
            raise


class _Observer(BaseObserver):
    """An observer on our own descriptor."""

    def __init__(self, ear: _Ear) -> None:
        super().__init__(InotifyEmitter, timeout=1.0, inotify_fd=ear)
        self._ear = ear
        ear.crowded = lambda: self.event_queue.qsize() >= EVENTS_LIMIT

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._ear.stop()
        self._ear.join()
