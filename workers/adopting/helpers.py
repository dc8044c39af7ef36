"""Processes that help one, and end with it however it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process


@contextmanager
def open_helpers(processes: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """Start `processes` of them when the first task comes; `module` is loaded once for them all."""
    # not fork: this process has an open database, and perhaps threads
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses Ctrl-C means the one that is helped
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of who is helped: killed, it tells nobody, and its queue stays open."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
