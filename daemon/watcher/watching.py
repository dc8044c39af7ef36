"""Watch every folder of the settings and claim into the spool whatever has settled there.

Each watched folder has a thread of its own, so that a hung network mount holds up nobody else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from config.layout import Layout
from config.logs import get_logger, short
from config.settings import Settings
from daemon.dispatcher import Dispatcher
from daemon.watcher.folder import WatchedFolder
from daemon.watcher.gate import SpoolGate
from daemon.watcher.territory import refusal
from daemon.watcher.troubles import Troubles
from workers import durable
from workers.spool.batches import EntryName
from workers.spool.notes import NoteWriter

_STOP_SECONDS = 10.0

log = get_logger(__name__)


def run_watcher(settings: Settings, stop: threading.Event) -> None:
    """Watch every folder of the settings until `stop` is set.

    Raises whatever ended one of its threads: the process is then to be started again.
    """
    layout = settings.layout
    if settings.watch is None and layout.root.is_dir():
        layout.inbox.mkdir(exist_ok=True)
    with _only_watcher(layout, stop) as alone:
        if not alone:
            return
        dispatcher, notes = Dispatcher(settings), NoteWriter(layout, "watcher")
        gate = SpoolGate(layout, settings.spool, notes.note)
        try:
            _watch_all(settings, gate, dispatcher.offer, stop)
        finally:
            dispatcher.close()
            notes.close()


@contextmanager
def _only_watcher(layout: Layout, stop: threading.Event) -> Iterator[bool]:
    """Wait until no other watcher works on this root; False when `stop` came first."""
    descriptor = -1
    troubles = Troubles(log)
    try:
        while not stop.is_set():
            try:
                if descriptor < 0:
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    descriptor = os.open(layout.run / "watcher.lock", flags, 0o600)
                if durable.try_lock(descriptor):
                    yield True
                    return
                troubles.tell("lock", "another-watcher-runs", root=str(layout.root))
            except FileNotFoundError as error:  # the root is not made or not mounted yet
                troubles.tell("lock", "root-missing", error, root=str(layout.root))
            stop.wait(0.5)
        yield False
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _watch_all(
    settings: Settings,
    gate: SpoolGate,
    offer: Callable[[EntryName], None],
    stop: threading.Event,
) -> None:
    failures: list[BaseException] = []
    threads = []
    for number, watch in enumerate(settings.watched):
        reason = refusal(watch.path, settings.layout)
        if reason is not None:
            log.error("folder-not-watched", folder=short(str(watch.path)), reason=reason)
            continue
        folder = WatchedFolder(settings, watch, offer, gate=gate)
        thread = threading.Thread(
            target=_run_one, args=(folder, stop, failures), name=f"watch-{number}", daemon=True
        )
        threads.append(thread)
        thread.start()
    log.info("watching", folders=len(threads))
    stop.wait()
    deadline = time.monotonic() + _STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if failures:
        raise failures[0]


def _run_one(folder: WatchedFolder, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        folder.run(stop)
    except Exception as error:  # noqa: BLE001 - the thread's boundary: the process ends with it
        failures.append(error)
        stop.set()
