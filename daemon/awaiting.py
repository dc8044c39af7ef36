"""Wait at the start for the index's server: after a power cut, machines come up in any order.

What a person must mend (a wrong password, a schema of another version) ends a role at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from config.logs import get_logger
from config.settings import Settings
from daemon.processes import Notifier
from workers.errors import IndexUnreached

_AGAIN_SECONDS = 1.0

T = TypeVar("T")
log = get_logger(__name__)


def awaited(attempt: Callable[[], T], stop: threading.Event) -> T | None:
    """Try until the index's server answers; return what was tried for, None when stopped.

    Each new reason is told once, in the log and to whoever supervises.
    """
    told = ""
    while True:
        try:
            found = attempt()
        except IndexUnreached as error:
            reason = str(error)
        else:
            if told:
                log.info("index-answers")
                Notifier.from_environment().status("")  # a role may be ready, and says no more
            return found
        if reason != told:
            log.warning("index-awaited", reason=reason)
            Notifier.from_environment().status(f"waits: {reason}")
            told = reason
        if stop.wait(_AGAIN_SECONDS):
            return None


def await_index(settings: Settings) -> None:
    """Wait until the index's server lets this process in; an index that is a file has none.

    Raises IndexUnusable where waiting would not help.
    """
    from workers.index.engine import open_index  # heavy, and here alone

    if settings.index_url.startswith("postgresql"):
        awaited(lambda: open_index(settings).close(), threading.Event())
