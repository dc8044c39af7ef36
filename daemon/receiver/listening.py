"""The listening socket: made here, or handed over by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import (
    AddressInformation,
    AssociationServer,
    AssociationSocket,
    RequestHandler,
)

from config.logs import get_logger
from daemon.receiver.access import plain_address
from daemon.receiver.lobby import Address, Admit, Lobby

BACKLOG = 128
"""Connections that may wait to be accepted; pynetdicom's own 5 drops a burst of senders."""

_FIRST_HANDED_OVER = 3
_NO_PDU = bytes(6)
"""What pynetdicom answers with an A-ABORT, as the standard asks (PS3.8 9.2.3, Sta2 and Evt19)."""

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


class PrimedSocket(AssociationSocket):
    """A connection of pynetdicom's of which the request has been read already.

    It is looked at where pynetdicom reads it, in the association's own thread: whatever a request
    holds, nobody else waits for it.
    """

    def __init__(self, connection: AssociationSocket, request: bytes) -> None:
        vars(self).update(vars(connection))
        self._first = request
        self._is_checked = False

    @property
    def ready(self) -> bool:
        return bool(self._first) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        if not self._first:
            return super().recv(nr_bytes)
        if not self._is_checked:
            self._is_checked = True
            if not _understood(self._first):
                self._first = _NO_PDU
        taken, self._first = self._first[:nr_bytes], self._first[nr_bytes:]
        return bytearray(taken)

    def _shutdown_socket(self) -> None:
        """Close it in any case: pynetdicom leaves it open where the peer was faster."""
        super()._shutdown_socket()
        if self.socket is not None:
            self.socket.close()


def _understood(request: bytes) -> bool:
    """Tell whether pynetdicom can make something of a request.

    One that it can decode but not convert would end its thread, and leave the peer without answer.
    """
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        pdu.to_primitive()
    except Exception as error:  # noqa: BLE001 - it raises what it likes; the peer is aborted
        log.info("request-not-understood", error=type(error).__name__)
        return False
    return True


class _Admission(RequestHandler):
    """Begin an association whose request waits to be read again."""

    def setup(self) -> None:
        self._first, self.request = cast(tuple[bytes, socket.socket], self.request)

    def _create_association(self) -> Association:
        association = super()._create_association()
        connection = cast(AssociationSocket, association.dul.socket)
        association.dul.socket = PrimedSocket(connection, self._first)
        return association


class ListeningServer(AssociationServer):
    """pynetdicom's server with a lobby before it, on a socket of ours or of systemd's."""

    request_queue_size = BACKLOG

    def __init__(
        self,
        *arguments: Any,
        inherited: socket.socket | None,
        network_timeout_seconds: float,
        housekeeping: Callable[[], None],
        lobby: Callable[[Admit, Callable[[], list[str]]], Lobby],
        **options: Any,
    ) -> None:
        self._inherited = inherited
        self._peer_timeout = network_timeout_seconds
        self._housekeeping = housekeeping
        self._swept_at = time.monotonic()
        self._ending, self._ended = threading.Event(), threading.Event()
        super().__init__(*arguments, **options)
        self.lobby = lobby(self._admit, self._addresses)

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
        self.server_address = self.socket.getsockname()
        self.address_info = AddressInformation.from_tuple(self.server_address)

    def server_close(self) -> None:
        """Stop listening; a socket of systemd's goes on, and its callers wait for our successor."""
        if self._inherited is None:
            super().server_close()
        else:
            self._inherited.close()

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        """Accept, let wait and admit until `shutdown`; nobody outside can hold this thread up."""
        listener = cast(socket.socket, self.socket)
        listener.setblocking(False)
        self.lobby.listen(listener)
        try:
            while not self._ending.is_set():
                if self.lobby.attend(poll_interval):
                    self._take_in(listener)
                self.service_actions()
        finally:
            self.lobby.close()
            self._ended.set()

    def shutdown(self) -> None:
        """Take no more associations; those that run go on. Only once `serve_forever` runs."""
        self._ending.set()
        self._ended.wait()
        self.server_close()

    def _take_in(self, listener: socket.socket) -> None:
        try:
            peer, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # the caller stays in the backlog, and the loop would spin on it
                log.warning("connection-not-accepted", reason=error.strerror)
                time.sleep(_OUT_OF_FILES_SECONDS)
            return
        # responses are small and waited for: without this each costs a delayed ACK of 40 ms
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.lobby.enter(peer, address)

    def _admit(self, peer: socket.socket, client: Address, request: bytes) -> None:
        """Begin the association that a connection asked for."""
        peer.settimeout(self._peer_timeout)  # a peer that stops in mid-PDU
        try:
            _Admission((request, peer), client, self)
        # the loop's boundary: no thread left, say; whoever asked is let go, the others stay
        except Exception:
            log.exception("association-not-begun")
            peer.close()

    def _addresses(self) -> list[str]:
        return [plain_address(one.requestor.address or "") for one in self.active_associations]

    def service_actions(self) -> None:
        """Look after the associations between two connections."""
        self._housekeeping()
        now = time.monotonic()
        if now - self._swept_at >= _GARBAGE_SECONDS:
            self._swept_at = now
            gc.collect()  # threads of ended associations hang in reference cycles
