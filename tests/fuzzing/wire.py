"""Talk to a real receiver over a socket, with anything but manners."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from config.settings import load_settings
from daemon.receiver.server import Receiver
from workers.identity import give_identity

CT = b"1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = b"1.2.840.10008.1.2.1"
ACCEPTED, RELEASED = b"\2\0", b"\6\0"
PATIENCE_SECONDS = 5.0


class Wire:
    """A receiver that is sent bytes, and what its threads came upon."""

    def __init__(self, root: Path) -> None:
        self.settings = load_settings(
            root=root,
            overrides={
                "receiver": {"port": 0, "stop_seconds": 5, "acse_timeout_seconds": 1,
                             "dimse_timeout_seconds": 1, "network_timeout_seconds": 2,
                             "maximum_instance_mb": 1},
                "spool": {"minimum_free_mb": 1, "minimum_free_inodes": 1},
            },
            environ={},
        )  # fmt: skip
        self.layout = self.settings.layout
        self.layout.make_private()
        for store in (self.layout.spool, self.layout.archive):
            give_identity(store)
        self.sent = 0
        self.failures: list[str] = []
        logging.getLogger("daemon").addHandler(_Failures(self.failures))
        threading.excepthook = lambda args: self.failures.append(repr(args.exc_value))
        self.receiver = Receiver(self.settings, lambda entry: None)

    def send(self, data: bytes, *, hang_up: bool = True) -> bytes:
        """Send bytes on a connection of their own; return what was answered before its end.

        Behind the first PDU we wait for its answer: before it nothing may be sent (PS3.8 9.2).
        """
        self.sent += 1
        first, rest = data[: first_length(data)], data[first_length(data) :]
        with socket.create_connection(("127.0.0.1", self.receiver.port), PATIENCE_SECONDS) as one:
            answer = b""
            with suppress(OSError):
                one.sendall(first)
                if rest:
                    answer = one.recv(65536)
                    one.sendall(rest)
                if hang_up:
                    one.shutdown(socket.SHUT_WR)
                while piece := one.recv(65536):
                    answer += piece
            return answer

    def check(self) -> None:
        """Assert that an honest sender is served, and that no thread has failed."""
        answer = self.send(conversation(), hang_up=False)
        assert answer.startswith(ACCEPTED), answer[:20]
        assert answer.endswith(RELEASED + struct.pack(">LL", 4, 0)), answer[-20:]
        assert b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00" in answer, "no Status 0x0000"
        assert not self.failures, self.failures

    def empty(self) -> None:
        """Remove what was filed into the spool, so that it cannot fill the disk."""
        for folder in self.layout.ready.iterdir():
            for entry in folder.iterdir():
                if entry.name != "batch.json":
                    entry.unlink(missing_ok=True)

    def rests(self) -> bool:
        """Tell whether nothing is being written and no association is left."""
        names = [thread.name for thread in threading.enumerate()]
        busy = [name for name in names if "Association" in name or "DULServiceProvider" in name
                or name.startswith(("AE", "Acceptor"))]  # fmt: skip
        return not os.listdir(self.layout.incoming) and not busy

    def close(self) -> None:
        self.receiver.__exit__(None, None, None)
        threading.excepthook = threading.__excepthook__
        handlers = logging.getLogger("daemon").handlers
        handlers[:] = [one for one in handlers if not isinstance(one, _Failures)]


class _Failures(logging.Handler):
    def __init__(self, failures: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._failures.append(record.getMessage() + repr(record.exc_info[1]))


@contextmanager
def wired(root: Path) -> Iterator[Wire]:
    wire = Wire(root)
    try:
        yield wire
    finally:
        wire.close()


def first_length(data: bytes) -> int:
    return 6 + int.from_bytes(data[2:6], "big")


# what an honest sender says -----------------------------------------------------------------------


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def request(*, application: bytes = b"1.2.840.10008.3.1.1.1", contexts: int = 1) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2)."""

    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    context = b"".join(
        item(0x20, bytes([2 * number + 1, 0, 0, 0]) + item(0x30, CT) + item(0x40, EXPLICIT))
        for number in range(contexts)
    )
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    titles = b"PETCT_INGEST    " + b"FUZZER          "
    head = struct.pack(">HH", 1, 0) + titles + bytes(32)
    return pdu(1, head + item(0x10, application) + context + user)


def command(**changed: Any) -> bytes:
    """The command set of a C-STORE-RQ."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = b"".join(
        (
            element(0x0002, CT + b"\0"),
            element(0x0100, struct.pack("<H", changed.get("field", 1))),
            element(0x0110, b"\1\0"),
            element(0x0700, b"\2\0"),
            element(0x0800, struct.pack("<H", changed.get("data_set", 1))),
            element(0x1000, changed.get("uid", b"1.2.3.4.5\0")),
        )
    )
    return element(0, struct.pack("<L", len(body))) + body


def data_set(size: int = 64) -> bytes:
    return (
        b"\x08\x00\x18\x00UI\x0a\x001.2.3.4.5\0"
        + b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<L", size) + bytes(size)
    )  # fmt: skip


def value(content: bytes, control: int, context: int = 1) -> bytes:
    """One PDV in a P-DATA-TF of its own."""
    return pdu(4, struct.pack(">LBB", len(content) + 2, context, control) + content)


def store(**changed: Any) -> bytes:
    data = changed.get("data", data_set())
    return value(command(**changed), 3) + value(data[:40], 0) + value(data[40:], 2)


def release() -> bytes:
    return pdu(5, bytes(4))


def conversation() -> bytes:
    """A whole association, sent in one go."""
    return request() + store() + release()


def conversations() -> dict[str, bytes]:
    """What the fuzzing begins with."""
    echo = command(field=0x30, data_set=0x0101)
    return {
        "store": conversation(),
        "two": request(contexts=3) + store() + store() + release(),
        "echo": request() + value(echo, 3) + release(),
        "abort": request() + store()[:200] + pdu(7, bytes(4)),
        "find": request() + value(command(field=0x20), 3) + value(data_set(), 2),
        "cancel": request() + value(command(field=0x0FFF, data_set=0x0101), 3) + release(),
        "event": request() + value(command(field=0x0100), 3) + value(data_set(), 2),
        "no data": request() + value(command(data_set=0x0101), 3) + release(),
        "in pieces": request() + b"".join(value(bytes([one]), 1) for one in command())
        + value(b"", 3) + value(data_set(), 2) + release(),
        "accept": pdu(2, bytes(68)),
        "nothing": b"",
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "tls": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    }  # fmt: skip


def drip(wire: Wire, data: bytes, at: int) -> float:
    """Send so much at once and then a byte at a time; return after how many seconds it was over."""
    with socket.create_connection(("127.0.0.1", wire.receiver.port), PATIENCE_SECONDS) as one:
        first = min(at, first_length(data))
        began = time.monotonic()
        with suppress(OSError):
            one.sendall(data[:first])
            if at >= first_length(data):
                one.recv(65536)
                one.sendall(data[first:at])
            one.settimeout(0.05)
            for byte in data[at:]:
                if time.monotonic() - began > 3 * PATIENCE_SECONDS:
                    break
                one.sendall(bytes([byte]))
                with suppress(TimeoutError):
                    if not one.recv(65536):
                        break
        return time.monotonic() - began
