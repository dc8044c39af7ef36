"""Peers of the receiver: DCMTK's programs, and bare sockets with hand-built PDUs."""

import shutil
import socket
import struct
import subprocess

from conftest import missing

# /usr/bin, because pynetdicom installs a slow storescu of its own beside Python;
# TCP_NODELAY, because DCMTK waits 40 ms for each answer without it
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}


def need(program):
    if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
        missing("DCMTK")


def dcmtk(*words, seconds=60):
    """Run a program of DCMTK to its end, whatever that is."""
    need(str(words[0]))
    return subprocess.run(
        [str(word) for word in words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def item(kind, body):
    return struct.pack(">BxH", kind, len(body)) + body


def request_pdu(
    called=b"PETCT_INGEST",
    calling=b"SCANNER",
    application_context=b"1.2.840.10008.3.1.1.1",
    version=1,
    contexts=None,
):
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2) for verification."""
    if contexts is None:
        offered = item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
        contexts = item(0x20, b"\1\0\0\0" + offered)
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
    context = item(0x10, application_context) if application_context else b""
    body = struct.pack(">Hxx16s16s32x", version, called.ljust(16), calling.ljust(16))
    body += context + contexts + user
    return struct.pack(">BxL", 1, len(body)) + body


RELEASE_RQ = bytes((5, 0, 0, 0, 0, 4, 0, 0, 0, 0))


def call(port, host="127.0.0.1", seconds=20):
    """Open a bare connection."""
    return socket.create_connection((host, port), timeout=seconds)


def all_that_comes(connection):
    """Read until the peer closes; a reset counts as that."""
    found = b""
    try:
        while data := connection.recv(4096):
            found += data
    except ConnectionResetError:
        pass
    return found


def read_pdu(connection):
    """Read one PDU; empty when the peer closed instead."""
    head = connection.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return head
    return head + connection.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)
