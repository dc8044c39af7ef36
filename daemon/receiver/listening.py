"""The listening socket: made here, or handed over by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from pynetdicom.transport import AddressInformation, AssociationServer

from config.logs import get_logger

BACKLOG = 128
"""Connections that may wait to be accepted; pynetdicom's own 5 drops a burst of senders."""

_FIRST_HANDED_OVER = 3
_OUT_OF_FILES_SECONDS = 0.2
_GARBAGE_SECONDS = 30.0

log = get_logger(__name__)


def inherited_socket(environ: Mapping[str, str], pid: int) -> socket.socket | None:
    """Return the listening socket that systemd handed over to this process, if any.

    Raises
    ------
    OSError
        What was handed over is no listening stream socket.
    """
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return None
    if int(environ["LISTEN_FDS"]) < 1:
        return None
    os.set_inheritable(_FIRST_HANDED_OVER, False)
    found = socket.socket(fileno=_FIRST_HANDED_OVER)
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.detach()
        raise OSError(errno.EINVAL, "LISTEN_FDS names no listening socket; is Accept=no set?")
    return found


def plain_address(address: str) -> str:
    """Return an IPv4 peer as such, also where an IPv6 socket took it."""
    mapped = "::ffff:"
    return address.removeprefix(mapped) if "." in address else address


class ListeningServer(AssociationServer):
    """pynetdicom's server with a deep backlog, on a socket of ours or of systemd's."""

    request_queue_size = BACKLOG

    def __init__(
        self,
        *arguments: Any,
        inherited: socket.socket | None,
        network_timeout_seconds: float,
        housekeeping: Callable[[], None],
        **options: Any,
    ) -> None:
        self._inherited = inherited
        self._peer_timeout = network_timeout_seconds
        self._housekeeping = housekeeping
        self._swept_at = time.monotonic()
        super().__init__(*arguments, **options)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, or take over a socket that is bound already."""
        if self._inherited is None:
            super().server_bind()
            return
        cast(socket.socket, self.socket).close()
        self.socket = self._inherited
        self.socket.setblocking(True)
        self.server_address = self.socket.getsockname()
        self.address_info = AddressInformation.from_tuple(self.server_address)

    def server_close(self) -> None:
        """Stop listening; a socket of systemd's goes on, and its callers wait for our successor."""
        if self._inherited is None:
            super().server_close()
        else:
            self._inherited.close()

    def shutdown(self) -> None:
        """Take no more associations; those that run go on."""
        super(AssociationServer, self).shutdown()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        try:
            peer, address = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # the caller stays in the backlog, and the loop would spin on it
                log.warning("connection-not-accepted", reason=error.strerror)
                time.sleep(_OUT_OF_FILES_SECONDS)
            raise
        # responses are small and waited for: without this each costs a delayed ACK of 40 ms
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.settimeout(self._peer_timeout)  # a peer that stops in mid-PDU
        return peer, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what a connection failed of before it was an association."""
        kind = sys.exc_info()[0]
        log.error("connection-failed", error=kind.__name__ if kind else "?")

    def service_actions(self) -> None:
        """Look after the associations between two connections."""
        self._housekeeping()
        now = time.monotonic()
        if now - self._swept_at >= _GARBAGE_SECONDS:
            self._swept_at = now
            gc.collect()  # threads of ended associations hang in reference cycles
