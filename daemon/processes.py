"""What every process of ours does about its parent, its signals and the one that supervises it.

A process that another of ours starts dies with it, however that one ends: Linux sends it SIGKILL
(PR_SET_PDEATHSIG, kept over exec). The signal comes when the parent *thread* ends, so children are
started from main threads; a parent that died before the call is found by getppid.

Readiness and life are told in systemd's own words (sd_notify(3)), to systemd or to `petct-ingest
run`, which listens in the same way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from config.logs import get_logger

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_libc = ctypes.CDLL(None, use_errno=True)

log = get_logger(__name__)


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when `parent` (a process id) ends; end now if it has.

    Runs between fork and exec, so it touches nothing that a lock could guard.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def keep_private() -> None:
    """Let whatever this process makes be its user's alone.

    What others may read (`files.mode`, `files.folder_mode`) is given its permissions one by one.
    """
    os.umask(0o077)


def log_failing_threads() -> None:
    """Let an exception that ends a thread be a line of our log, which quotes no patient."""

    def tell(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            told = (failed.exc_type, failed.exc_value, failed.exc_traceback)
            name = failed.thread.name if failed.thread is not None else "?"
            log.exception("thread-failed", told, thread=name)

    threading.excepthook = tell


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM or SIGINT sets; a second signal ends the process at once.

    Call it in the main thread. The event is set by a thread of its own: a Python signal handler
    that sets an event can meet the main thread inside the very lock that it needs. Blocking the
    signals for that thread to wait for would not do: threads that a library (OpenBLAS) started on
    import do not inherit it.
    """
    stop = threading.Event()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        for count in range(1, 3):
            while not (heard := reading.recv(1)) or heard[0] not in _STOP_SIGNALS:
                pass
            if count > 1:
                os._exit(128 + heard[0])
            stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells the supervisor of this process what goes on; says nothing where nobody listens."""

    address: str | None
    watchdog_seconds: float | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as sd_watchdog_enabled(3) does."""
        environ = os.environ if environ is None else environ
        seconds = None
        usec = environ.get("WATCHDOG_USEC", "")
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if for_us and usec.isascii() and usec.isdigit() and int(usec) > 0:
            seconds = int(usec) / 1e6
        return cls(environ.get("NOTIFY_SOCKET") or None, seconds)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, words: str) -> None:
        """Say in one line what goes on, or what is in the way of getting ready; "" takes it back.

        A server's error may have several lines, and a line is a word of this protocol.
        """
        line = "".join(char if char.isprintable() else " " for char in words)
        self._send(f"STATUS={' '.join(line.split())}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1)
                sender.sendto(text.encode(), address)
        except OSError:
            pass  # whoever listened is gone; this process goes on working


class Heartbeat:
    """A thread that says ready once, and then feeds the watchdog, while a check holds.

    Parameters
    ----------
    notifier : Notifier
    check : callable
        Returns None while the role is well, else what is wrong in words. Called in the thread.
    status : callable
        The line shown as the unit's status when it gets ready.
    poll_seconds : float
        How often the check is tried until the role is ready.
    """

    def __init__(
        self,
        notifier: Notifier,
        check: Callable[[], str | None],
        status: Callable[[], str],
        poll_seconds: float = 0.05,
    ) -> None:
        self._notifier = notifier
        self._check = check
        self._status = status
        self._poll_seconds = poll_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._notifier.address is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._notifier.address is not None:
            self._thread.join(timeout=5)
            self._notifier.stopping()

    def _run(self) -> None:
        while self._check() is not None:
            if self._end.wait(self._poll_seconds):
                return
        self._notifier.ready(self._status())
        if self._notifier.watchdog_seconds is None:
            return
        # half the limit, as sd_watchdog_enabled(3) advises
        while not self._end.wait(self._notifier.watchdog_seconds / 2):
            if self._check() is None:
                self._notifier.alive()
