"""What a supervisor hears: signals, and what its children say of themselves, both from sockets."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import struct
from collections.abc import Iterator

STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that end everything."""

_CREDENTIALS = struct.Struct("3i")


@contextlib.contextmanager
def signals() -> Iterator[socket.socket]:
    """Turn signals into bytes on a socket; nothing happens inside a handler."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # whoever started us may have blocked them
    before = {}
    for number in (*STOPS, signal.SIGCHLD):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup
        before[number] = signal.signal(number, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def read_signals(wake: socket.socket) -> set[int]:
    try:
        return set(wake.recv(4096))
    except BlockingIOError:
        return set()


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """Open the socket that children tell their state to, as systemd does; yield it and its name."""
    name = f"petct-ingest-{os.getpid()}-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ears:
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ears.bind("\0" + name)  # no file: it goes with the process
        yield ears, "@" + name


def messages(ears: socket.socket) -> Iterator[tuple[int, str]]:
    """Yield what children said, with the process id that Linux vouches for."""
    while True:
        try:
            text, extra, _, _ = ears.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except BlockingIOError:
            return
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                process, _, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
                yield process, text.decode("utf-8", "replace")
