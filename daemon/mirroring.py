"""The role `mirror`: send what is new, for ever; where the store is away, wait and go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import sqlalchemy as sa

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import AlreadyRunning
from workers import clock, durable
from workers.errors import IndexUnusable, MirrorStopped, MirrorUnusable, StoreUnavailable
from workers.index.engine import open_index
from workers.mirroring.mirror import Mirror, Tell
from workers.mirroring.sending import Sender, Sent
from workers.mirroring.store import ObjectStore

_LOOK_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 300.0
_TROUBLE = "mirror.trouble"

log = get_logger(__name__)


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20), _LONGEST_PAUSE_SECONDS)


@contextmanager
def mirroring(
    settings: Settings, stop: threading.Event, tell: Tell = lambda *_: None, *, alone: bool = True
) -> Iterator[Mirror]:
    """Open index and store; of those who are `alone` there is one at a time on a root.

    Raises AlreadyRunning, IndexUnusable, MirrorUnusable.
    """
    if not settings.mirror.enabled:
        raise MirrorUnusable('none is given: mirror.url = "s3://bucket/prefix"')
    with open(settings.layout.locks / "mirror", "ab") as lock:
        if alone and not durable.try_lock(lock.fileno()):
            raise AlreadyRunning(
                "another process mirrors this root: `petct-ingest run` has the role"
            )
        store = ObjectStore(settings.mirror, settings.root.absolute())
        with (
            closing(open_index(settings)) as index,
            Sender(store, settings.mirror, stop) as sender,
        ):
            yield Mirror(index, settings, sender, tell)


def mirror_once(mirror: Mirror, stop: threading.Event) -> Sent:
    """Send all that the store lacks now."""
    sent, more = Sent(), True
    while more and not stop.is_set():
        some, more = mirror.step(clock.monotonic())
        sent.add(some)
    return sent


def run_mirror(settings: Settings, stop: threading.Event) -> None:
    """Mirror until `stop` is set."""
    trouble = _Trouble(settings)
    while not stop.is_set():
        try:
            with mirroring(settings, stop) as mirror:
                log.info("mirroring", what=settings.mirror.what)
                while not stop.is_set():
                    _step(mirror, stop)
                    trouble.over()
        except MirrorStopped:
            break
        except (
            MirrorUnusable, StoreUnavailable, IndexUnusable, AlreadyRunning, OSError,
            sa.exc.DBAPIError,
        ) as error:  # fmt: skip
            stop.wait(trouble.met(error))
    trouble.forget()


def _step(mirror: Mirror, stop: threading.Event) -> None:
    sent, more = mirror.step(clock.monotonic())
    if sent.objects:
        log.info("mirrored", objects=sent.objects, bytes=sent.bytes, behind=mirror.behind)
    if not more:
        stop.wait(_LOOK_SECONDS)


class _Trouble:
    """Tell a trouble once, in the log and for `status`; wait longer each time."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.layout.run / _TROUBLE
        self._words = ""
        self._failures = 0

    def met(self, error: Exception) -> float:
        """Note an error; return how long to wait (seconds)."""
        words = getattr(error, "strerror", None) or str(error)
        if isinstance(error, sa.exc.DBAPIError):
            words = f"the index cannot be read: {type(error).__name__}"
        self._failures += 1
        if words != self._words:
            log.warning("mirror-waits", reason=words)
            self._words = words
            said = f"{os.getpid()} {words} (since {clock.utc_now()}); it is tried again"
            with suppress(OSError):  # a full disk may be the very trouble; the log has it
                durable.replace_file(self._file, said.encode())
        return pause_after(self._failures)

    def over(self) -> None:
        """Note that all is well."""
        if self._words:
            log.info("mirror-goes-on")
            self.forget()
        self._failures, self._words = 0, ""

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)
