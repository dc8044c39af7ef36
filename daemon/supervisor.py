"""Run every role on this machine, each in a process of its own, and keep them running.

One thread does it all: Linux kills the children when the thread that started them ends. It sleeps
until a signal, a message of a child, or the time to start one again or to look after one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import AlreadyRunning
from daemon.hearing import STOPS, listening, messages, read_signals, signals
from daemon.planning import Role, Stage, plan_roles, plan_workers
from daemon.processes import Notifier, die_with_parent
from daemon.valkey import answers
from workers.durable import try_lock
from workers.errors import IndexUnreached
from workers.queues import remove_socket_folder, socket_path

FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that lived so long starts its count of deaths anew."""

_PROBE_SECONDS = 0.05
_SOCKET_SECONDS = 5.0
"""How often it is looked whether the queue server can still be reached."""

_URGED_SECONDS = 2.0
"""So long after its second signal a process may still be there: a worker queues its job again."""
_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
"""What systemd said to this process alone."""

log = get_logger(__name__)


def restart_delay(deaths: int) -> float:
    """Seconds to wait before a role is started again after so many deaths in a row."""
    return min(FIRST_DELAY_SECONDS * 2.0 ** max(0, deaths - 1), LONGEST_DELAY_SECONDS)


def deaths_after(deaths: int, lived_seconds: float) -> int:
    """Count a death; one after a steady life is the first of a new row."""
    return 1 if lived_seconds >= STEADY_SECONDS else deaths + 1


@dataclass(slots=True)
class Child:
    """A role and its process, if it has one now. Times are monotonic seconds."""

    role: Role
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    ready: bool = False
    trouble: str = ""
    """What it last said to be in its way."""


@dataclass(slots=True)
class Supervisor:
    """Start, watch, restart and stop the processes of some roles.

    `command` and `options` stand before and after each role's own arguments.
    """

    settings: Settings
    roles: Sequence[Role]
    command: Sequence[str]
    options: Sequence[str] = ()
    children: list[Child] = field(init=False)

    def __post_init__(self) -> None:
        self.children = [Child(role) for role in self.roles]

    def run(self) -> None:
        """Keep the roles running until SIGTERM, SIGINT or SIGHUP, or until all have ended that
        end by themselves; call it in the main thread.
        """
        notifier = Notifier.from_environment()
        with listening() as (ears, address), signals() as wake:
            environment = {k: v for k, v in os.environ.items() if k not in _INHERITED}
            environment["NOTIFY_SOCKET"] = address
            announced = False
            while self.children and not (read_signals(wake) & STOPS):
                self._hear(ears)
                self._reap(time.monotonic())
                self._start_due(time.monotonic(), environment)
                self._end_unreachable()
                if not announced and self._all_ready():
                    announced = True
                    self._announce(notifier)
                if announced:
                    notifier.alive()
                select.select([wake, ears], [], [], self._pause(notifier, announced))
            notifier.stopping()
            log.info("stopping")
            self._stop(wake)
            log.info("stopped")

    def _start_due(self, now: float, environment: dict[str, str]) -> None:
        me = os.getpid()
        for child in self.children:
            if child.process is not None or child.start_at > now:
                continue
            child.started_at, child.ready = now, False
            try:
                child.process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                    [*self.command, *child.role.arguments, *self.options],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    process_group=0,  # a Ctrl+C in the terminal reaches the supervisor alone
                    preexec_fn=lambda: die_with_parent(me),  # safe: there is one thread here
                )
            except OSError as error:  # no memory or no process left: as if it had died at once
                self._bury(child, now, os.strerror(error.errno or 0))
                continue
            log.debug("role-started", role=child.role.name, process=child.process.pid)

    def _reap(self, now: float) -> None:
        for child in tuple(self.children):
            if child.process is None or child.process.poll() is None:
                continue
            if child.role.ends and child.process.returncode == 0:
                self.children.remove(child)
                continue
            self._bury(child, now, _reason(child.process.returncode))

    def _bury(self, child: Child, now: float, reason: str) -> None:
        """Note the death of a child and when to start it again."""
        lived = now - child.started_at
        child.process, child.ready = None, False
        child.deaths = deaths_after(child.deaths, lived)
        delay = restart_delay(child.deaths)
        child.start_at = now + delay
        log.warning(
            "role-ended",
            role=child.role.name,
            reason=reason,
            lived_seconds=round(lived, 1),
            again_in_seconds=delay,
        )

    def _hear(self, ears: socket.socket) -> None:
        for process, text in messages(ears):
            for child in self.children:
                if child.process is not None and child.process.pid == process:
                    self._heard(child, text.splitlines())
        for child in self.children:
            # the server program does not speak sd_notify
            if child.role.stage is Stage.SERVER and child.process is not None and not child.ready:
                child.ready = answers(socket_path(self.settings.layout))

    def _heard(self, child: Child, lines: list[str]) -> None:
        """Note that a role is ready; pass on what is in its way to whoever watches, once."""
        was_ready, child.ready = child.ready, child.ready or "READY=1" in lines
        if child.ready:
            child.trouble = ""
        for line in lines:
            name, _, words = line.partition("=")
            if name != "STATUS" or words == child.trouble:
                continue
            if not child.ready:
                child.trouble = words
                if words:
                    print(f"! {words}", flush=True)
            elif not (was_ready or child.role.awaited):  # the others are ready in one word
                print(words, flush=True)

    def _end_unreachable(self) -> None:
        """End a queue server whose socket somebody removed: it lives, but nobody can reach it."""
        for child in self.children:
            if child.role.stage is not Stage.SERVER or child.process is None or not child.ready:
                continue
            if not socket_path(self.settings.layout).exists():
                log.warning("queue-server-unreachable", role=child.role.name)
                child.ready = False
                _send(child, signal.SIGTERM)

    def _all_ready(self) -> bool:
        return all(child.ready for child in self.children if child.role.awaited)

    def _announce(self, notifier: Notifier) -> None:
        words = "petct-ingest is ready"
        if any(child.role.name == "receive" for child in self.children):
            receiver = self.settings.receiver
            port = _bound_port(self.settings) or receiver.port
            words += f": DICOM on {receiver.host}:{port}, AE title {receiver.ae_title}"
            log.info("ready", host=receiver.host, port=port)
        else:
            log.info("ready")
        print(words, flush=True)
        notifier.ready(words)

    def _pause(self, notifier: Notifier, announced: bool) -> float | None:
        """Seconds until something is due without a signal or message; None: nothing is."""
        if not self.children:
            return 0.0
        now = time.monotonic()
        due = [c.start_at - now for c in self.children if c.process is None]
        if any(c.role.stage is Stage.SERVER and not c.ready for c in self.children):
            due.append(_PROBE_SECONDS)
        if any(c.role.stage is Stage.SERVER for c in self.children):
            due.append(_SOCKET_SECONDS)
        if announced and notifier.watchdog_seconds is not None:
            due.append(notifier.watchdog_seconds / 2)
        return max(0.0, min(due)) if due else None

    def _stop(self, wake: socket.socket) -> None:
        hurry = False
        for stage in Stage:
            here = [c for c in self.children if c.role.stage is stage and c.process is not None]
            for child in here:
                _send(child, signal.SIGTERM)
            began = time.monotonic()
            urged: dict[str, float] = {}
            while waiting := [c for c in here if c.process and c.process.poll() is None]:
                hurry = hurry or bool(read_signals(wake) & STOPS)
                now = time.monotonic()
                for child in waiting:
                    if child.role.name not in urged:
                        if hurry or now - began > child.role.stop_seconds:
                            urged[child.role.name] = now
                            _send(child, signal.SIGTERM)
                    elif now - urged[child.role.name] > _URGED_SECONDS:
                        log.warning("role-killed", role=child.role.name)
                        _send(child, signal.SIGKILL)
                        if child.process:
                            child.process.wait()
                select.select([wake], [], [], 0.2)


def run_all(settings: Settings, options: Sequence[str], only: Collection[str] = ()) -> None:
    """Run every role of this machine until told to stop.

    Raises
    ------
    AlreadyRunning
        Another daemon runs on this root.
    TlsUnusable
        Certificate or key of the receiver cannot be used.
    WorkersError
        The index cannot be prepared.
    """
    roles = plan_roles(settings, only)
    if settings.receiver.tls.on and any(role.name == "receive" for role in roles):
        from daemon.receiver.tls import ServerTls

        ServerTls(settings.receiver.tls, settings.layout.root)
    settings.layout.make_private()
    with _root_lock(settings.layout.run / "lock"):
        from workers.index.engine import prepare_index  # heavy, and only here

        with contextlib.suppress(IndexUnreached):  # receiving needs none; others wait and say so
            prepare_index(settings).close()
        try:
            Supervisor(settings, roles, (sys.executable, "-P", "-m", "daemon"), options).run()
        finally:
            remove_socket_folder(settings.layout)


def run_workers(
    settings: Settings, queue: str, count: int, options: Sequence[str], *, drain: bool = False
) -> None:
    """Run so many workers of one queue until told to stop, or until nothing is left to do."""
    roles = plan_workers(queue, count, drain=drain)
    Supervisor(settings, roles, (sys.executable, "-P", "-m", "daemon"), options).run()


@contextlib.contextmanager
def _root_lock(path: Path) -> Iterator[None]:
    with open(path, "a+", encoding="ascii") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise AlreadyRunning(
                f"petct-ingest runs on {path.parent.parent} already (process {holder})"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _send(child: Child, number: signal.Signals) -> None:
    if child.process is not None:
        child.process.send_signal(number)


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _bound_port(settings: Settings) -> int | None:
    try:
        return int((settings.layout.run / "receiver.port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
