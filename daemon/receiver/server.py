"""The receiver: a Storage and Verification SCP whose 0x0000 means durable."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from pynetdicom import AE, _config
from pynetdicom.presentation import VerificationPresentationContexts

from config.layout import Layout
from config.logs import get_logger
from config.settings import Settings
from config.tables.intake import ReceiverSettings
from daemon.dispatcher import Dispatcher
from daemon.processes import Notifier
from daemon.receiver.associations import Associations
from daemon.receiver.commitment import CommitmentDesk
from daemon.receiver.listening import ListeningServer, inherited_socket
from daemon.receiver.lobby import Lobby
from daemon.receiver.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.receiver.refusals import Refusals
from daemon.receiver.reporting import Reporter
from daemon.receiver.stopping import drain, hang_up
from daemon.receiver.storing import Spooling
from daemon.receiver.talking import CONTEXT
from daemon.receiver.tls import ServerTls
from daemon.room import Room
from workers.durable import replace_file
from workers.measuring import Measures
from workers.spool.batches import EntryName
from workers.spool.notes import NoteWriter

_POLL_SECONDS = 0.25
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 30.0

log = get_logger(__name__)


def port_file(layout: Layout) -> Path:
    """Return the file that holds the port for as long as a receiver listens."""
    return layout.run / "receiver.port"


def trouble_file(layout: Layout) -> Path:
    """Return the file that says why a receiver does not listen: its process, and words."""
    return layout.run / "receiver.trouble"


def run_receiver(settings: Settings, stop: threading.Event) -> None:
    """Receive until `stop` is set; C-STOREs in progress then are finished and answered."""
    inherited = inherited_socket(os.environ, os.getpid())
    dispatcher = Dispatcher(settings)
    try:
        receiver = _open(settings, stop, dispatcher.offer, inherited)
        if receiver is not None:
            with receiver:
                receiver.wait(stop)
    finally:
        dispatcher.close()


def _open(
    settings: Settings,
    stop: threading.Event,
    offer: Callable[[EntryName], None],
    inherited: socket.socket | None,
) -> Receiver | None:
    """Open the port, again and again while another program has it; None when stopped meanwhile."""
    wait = _FIRST_RETRY_SECONDS
    trouble = trouble_file(settings.layout)
    while not stop.is_set():
        try:
            receiver = Receiver(settings, offer, inherited)
        except OSError as error:
            words = _port_trouble(settings.receiver, error)
            with contextlib.suppress(OSError):  # a full disk: the log and `run` say it all the same
                replace_file(trouble, f"{os.getpid()} {words}\n".encode())
            Notifier.from_environment().status(words)
            log.warning(
                "port-unavailable",
                host=settings.receiver.host,
                port=settings.receiver.port,
                reason=error.strerror or str(error),
                next_try_in_seconds=wait,
            )
        else:
            trouble.unlink(missing_ok=True)
            return receiver
        stop.wait(wait)
        wait = min(2 * wait, _LONGEST_RETRY_SECONDS)
    trouble.unlink(missing_ok=True)
    return None


def _port_trouble(receiver: ReceiverSettings, error: OSError) -> str:
    return (
        f"the receiver does not listen: port {receiver.port} of {receiver.host} cannot be had "
        f"({error.strerror or error}); it is tried again, or set receiver.port or --port"
    )


class Receiver:
    """A receiver that listens; leaving its context stops it gracefully.

    Raises
    ------
    OSError
        The port cannot be had.
    TlsUnusable
        Certificate, key or client CA cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        offer: Callable[[EntryName], None],
        inherited: socket.socket | None = None,
    ) -> None:
        layout = settings.layout
        self._notes = NoteWriter(layout, "receiver")
        self._measures = Measures(layout, "receive")
        self._stop_seconds = settings.receiver.stop_seconds
        self._port_file = port_file(layout)
        room = Room(layout, settings.spool, note=self._notes.note)
        largest = settings.receiver.maximum_instance_mb << 20
        self._associations = Associations(Spooling(layout, room, offer, largest, self._measures))
        desk = CommitmentDesk(layout, room) if settings.commitment.enabled else None
        tls = settings.receiver.tls
        lobby = partial(
            Lobby,
            settings.receiver,
            ServerTls(tls, layout.root) if tls.on else None,
            Refusals(self._notes.note),
        )
        self._server = _server(settings.receiver, self._associations, desk, inherited, lobby)
        self.port = self._server.port
        layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port_told = False
        self._tell_port()
        self._measures.flush()
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": _POLL_SECONDS},
            name="receiver-listener",
            daemon=True,
        )
        self._thread.start()
        self._reporter = (
            Reporter(layout, settings.commitment, desk.talk_with) if desk is not None else None
        )
        log.info(
            "receiver-listens",
            host=str(self._server.server_address[0]),
            port=self.port,
            ae_title=settings.receiver.ae_title,
            socket="inherited" if inherited else "own",
            tls=tls.on,
        )

    def wait(self, stop: threading.Event) -> None:
        """Return when `stop` is set. Raises RuntimeError if the listener ends before."""
        while not stop.wait(1.0):
            if not self._thread.is_alive():
                raise RuntimeError("the thread that accepts associations has ended")
            self._tell_port()
            self._measures.flush()

    def _tell_port(self) -> None:
        """Write down which port is listened on; a full disk is told to the senders, later here."""
        if self._port_told:
            return
        try:
            replace_file(self._port_file, f"{self.port}\n".encode("ascii"), 0o644)
            self._port_told = True
        except OSError as error:
            log.warning("port-not-written", reason=error.strerror)

    def stop(self) -> None:
        """Listen no more, let C-STOREs in progress be answered, end the associations."""
        self._server.shutdown()
        self._thread.join()
        self._port_file.unlink(missing_ok=True)
        if self._reporter is not None:
            self._reporter.close()
        cut_short = drain(self._associations, self._stop_seconds)
        hang_up(lambda: self._server.active_associations)
        self._associations.forget_the_dead()
        self._notes.close()
        self._measures.close()
        log.info("receiver-stopped", cut_short=cut_short)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _server(
    settings: ReceiverSettings,
    associations: Associations,
    desk: CommitmentDesk | None,
    inherited: socket.socket | None,
    lobby: Callable[..., Lobby],
) -> ListeningServer:
    """Build pynetdicom's server as we want it; it listens, but accepts nothing yet."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # C-STOREs of private classes are storage too
    _config.LOG_HANDLER_LEVEL = "none"  # its log handlers format every PDU
    entity = AE(ae_title=settings.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_associations = settings.maximum_associations
    entity.maximum_pdu_size = settings.maximum_pdu
    entity.network_timeout = settings.network_timeout_seconds
    entity.acse_timeout = settings.acse_timeout_seconds
    entity.dimse_timeout = settings.dimse_timeout_seconds
    entity.supported_contexts = [*VerificationPresentationContexts, *([CONTEXT] if desk else [])]
    server = entity.make_server(
        (settings.host, settings.port),
        server_class=ListeningServer,
        evt_handlers=[*associations.handlers, *(desk.handlers if desk else ())],
        inherited=inherited,
        lobby=lobby,
        network_timeout_seconds=settings.network_timeout_seconds,
        housekeeping=associations.forget_the_dead,
    )
    assert isinstance(server, ListeningServer)  # noqa: S101 - for mypy
    return server
