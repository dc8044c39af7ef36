"""Where connections wait until they have asked for an association, all in one thread.

A connection costs a descriptor and what it has sent so far, no thread: neither a slow handshake nor
a request in drops holds up anybody. Whoever has not asked within the time of PS3.8 9.1.4 (ARTIM) is
let go, and when there are too many, `whom_to_send_away` chooses. So strangers never take the place
of an association.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from config.logs import get_logger
from config.tables.intake import ReceiverSettings
from daemon.receiver.access import (
    Counts,
    address_allowed,
    judge_request,
    plain_address,
    read_request,
    whom_to_send_away,
)
from daemon.receiver.refusals import Refusals
from daemon.receiver.tls import ServerTls, handshake_trouble

MOST_WAITING = 256
"""Connections that may wait at once; a sender waits for some milliseconds."""

MOST_REQUEST_BYTES = 128 << 10
"""An A-ASSOCIATE-RQ of 128 contexts with 40 transfer syntaxes each has 110 KB."""

LEAVE_SECONDS = 1.0
"""How long a peer may take to hang up after our last word."""

_HEADER = 6
_ASSOCIATE_RQ, _ABORT = 0x01, 0x07
# PS3.8 9.2.2, action AA-1: from the service user, without a reason
_A_ABORT = bytes((_ABORT, 0, 0, 0, 0, 4, 0, 0, 0, 0))

Address = tuple[Any, ...]
Admit = Callable[[socket.socket, Address, bytes], None]

log = get_logger(__name__)


class Stage(StrEnum):
    """What is awaited of a connection."""

    HANDSHAKE = "no TLS handshake in time"
    REQUEST = "no association request in time"
    LEAVING = "leaving"


@dataclass(slots=True, eq=False)
class Waiting:
    """A connection that has not asked yet; times are monotonic seconds."""

    peer: socket.socket
    client: Address
    address: str
    since: float
    until: float
    stage: Stage
    received: bytearray = field(default_factory=bytearray)


class Lobby:
    """The connections that wait; for the one thread that accepts them.

    Parameters
    ----------
    rules : ReceiverSettings
    tls : ServerTls or None
    refusals : Refusals
    admit : callable
        Takes a connection, its address and the whole request, and begins the association.
    addresses : callable
        The addresses of the associations that there are, one for each.
    """

    def __init__(
        self,
        rules: ReceiverSettings,
        tls: ServerTls | None,
        refusals: Refusals,
        admit: Admit,
        addresses: Callable[[], list[str]],
    ) -> None:
        self._rules = rules
        self._tls = tls
        self._refusals = refusals
        self._admit = admit
        self._addresses = addresses
        self._selector = selectors.DefaultSelector()
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def listen(self, listener: socket.socket) -> None:
        """Have `attend` tell when somebody calls."""
        self._selector.register(listener, selectors.EVENT_READ, None)

    def attend(self, seconds: float) -> bool:
        """Go on with whoever has sent something; return whether somebody calls."""
        called = False
        for key, _ in self._selector.select(seconds):
            one: Waiting | None = key.data
            if one is None:
                called = True
            elif one in self._waiting:  # not sent away meanwhile
                self._step(one)
        now = time.monotonic()
        for one in [one for one in self._waiting if now >= one.until]:
            if one.stage is not Stage.LEAVING:
                self._refuse("connection-refused", one, one.stage)
            self._close(one)
        self._refusals.tidy(now)
        return called

    def enter(self, peer: socket.socket, client: Address) -> None:
        """Take a connection in, or close it at once where its address is not allowed."""
        now = time.monotonic()
        address = plain_address(str(client[0]))
        if not address_allowed(address, self._rules.allow_addresses):
            peer.close()
            why = "address-not-allowed"
            self._refusals.tell("connection-refused", address, now, why=why)
            return
        if len(self._waiting) >= MOST_WAITING:
            away = self._waiting[whom_to_send_away((w.address, w.since) for w in self._waiting)]
            self._refuse("connection-refused", away, "too many connections wait")
            self._close(away)
        peer.setblocking(False)
        stage = Stage.REQUEST
        if self._tls is not None:
            stage = Stage.HANDSHAKE
            try:
                peer = self._tls.context(now).wrap_socket(
                    peer, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # it has hung up already
                peer.close()
                return
        until = now + self._rules.acse_timeout_seconds
        one = Waiting(peer, client, address, now, until, stage)
        self._waiting.append(one)
        self._selector.register(peer, selectors.EVENT_READ, one)

    def close(self) -> None:
        """Let everybody go."""
        for one in list(self._waiting):
            self._close(one)
        self._refusals.tidy(float("inf"))
        self._selector.close()

    def _step(self, one: Waiting) -> None:
        """Go on with one connection as far as it goes without waiting."""
        try:
            if one.stage is Stage.HANDSHAKE:
                self._shake_hands(one)
            if one.stage is Stage.REQUEST:
                self._read(one)
            elif one.stage is Stage.LEAVING and not one.peer.recv(1 << 16):
                self._close(one)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._selector.modify(one.peer, selectors.EVENT_READ, one)
        except ssl.SSLWantWriteError:
            self._selector.modify(one.peer, selectors.EVENT_WRITE, one)
        except OSError:
            self._close(one)

    def _shake_hands(self, one: Waiting) -> None:
        assert isinstance(one.peer, ssl.SSLSocket)  # noqa: S101 - for mypy
        try:
            one.peer.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self._refuse("tls-handshake-failed", one, handshake_trouble(error))
            self._leave(one, b"")  # OpenSSL has sent its alert
        else:
            one.stage = Stage.REQUEST

    def _read(self, one: Waiting) -> None:
        """Read the first PDU, no byte beyond it, and judge it when it is whole."""
        while (wanted := _size(one.received) - len(one.received)) > 0:
            data = one.peer.recv(wanted)
            if not data:
                log.debug("hung-up-without-a-request", address=one.address)
                self._close(one)
                return
            one.received += data
            if one.received[0] == _ABORT:
                self._close(one)  # PS3.8 9.2.2, action AA-2
                return
            if one.received[0] != _ASSOCIATE_RQ or _size(one.received) > MOST_REQUEST_BYTES:
                self._refuse("connection-refused", one, "no association request")
                self._leave(one, _A_ABORT)
                return
        self._judge(one)

    def _judge(self, one: Waiting) -> None:
        asked = read_request(one.received, one.address)
        if asked is None:
            self._refuse("connection-refused", one, "no association request")
            self._leave(one, _A_ABORT)
            return
        running = self._addresses()
        counts = Counts(len(running), running.count(one.address))
        verdict = judge_request(asked, self._rules, counts)
        if not verdict.accepted:
            self._refusals.tell(
                "association-rejected",
                one.address,
                time.monotonic(),
                why=verdict.words,
                source=f"{asked.calling_ae}>{asked.called_ae}@{one.address}",
                code=verdict.code,
            )
            self._leave(one, verdict.pdu)
            return
        self._forget(one)
        one.received[6:8] = b"\0\1"  # pynetdicom wants version 1 alone, the standard only its bit
        self._admit(one.peer, one.client, bytes(one.received))

    def _refuse(self, event: str, one: Waiting, why: str) -> None:
        self._refusals.tell(event, one.address, time.monotonic(), why=why)

    def _leave(self, one: Waiting, last_word: bytes) -> None:
        """Say a last word, and wait for the peer to hang up, lest a reset overtakes it."""
        if last_word:
            one.peer.send(last_word)  # ten bytes: they fit
        one.peer.shutdown(socket.SHUT_WR)
        one.received.clear()
        one.stage = Stage.LEAVING
        one.until = time.monotonic() + LEAVE_SECONDS
        self._selector.modify(one.peer, selectors.EVENT_READ, one)

    def _forget(self, one: Waiting) -> None:
        self._waiting.remove(one)
        self._selector.unregister(one.peer)

    def _close(self, one: Waiting) -> None:
        self._forget(one)
        with contextlib.suppress(OSError):
            one.peer.close()


def _size(received: bytearray) -> int:
    """Return how long a PDU is as a whole, as far as that is known."""
    if len(received) < _HEADER:
        return _HEADER
    return _HEADER + int.from_bytes(received[2:_HEADER], "big")
