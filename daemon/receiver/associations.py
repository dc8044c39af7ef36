"""What happens on an association, from its request to its end: pynetdicom's events, answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT

from config.logs import get_logger
from daemon.receiver.access import plain_address
from daemon.receiver.established import EstablishedPhase
from daemon.receiver.negotiation import arrange
from daemon.receiver.storing import AssociationStore, Spooling
from workers.spool.batches import BatchSource

GOODBYE_SECONDS = 1.0
"""How long a peer may take to close the connection after our A-ABORT."""

log = get_logger(__name__)


class Conversation:
    """One association: its store, its established phase, and how it ends."""

    def __init__(
        self,
        association: Association,
        store: AssociationStore,
        is_draining: Callable[[], bool],
    ) -> None:
        self.association = association
        self.store = store
        self.began = time.monotonic()
        self.ending = ""
        self.phase: EstablishedPhase | None = None
        self._is_draining = is_draining

    @property
    def in_progress(self) -> bool:
        """Whether a message is being received, handled or answered."""
        ours = self.phase is not None and self.phase.in_message
        return ours or self.association.dimse.message is not None

    def answered(self) -> None:
        """A message was answered: the last one, where the receiver is to stop."""
        if self._is_draining():
            self.say_goodbye()

    def say_goodbye(self) -> None:
        say_goodbye(self.association)


class Associations:
    """The associations of a server, and the handlers of all their events."""

    def __init__(self, spooling: Spooling) -> None:
        self._spooling = spooling
        self._lock = threading.Lock()
        self._running: dict[Association, Conversation] = {}
        self.draining = False

    @property
    def handlers(self) -> list[tuple[Any, Callable[[evt.Event], Any]]]:
        """The event handlers to bind to a server."""
        return [
            (evt.EVT_CONN_OPEN, self._connected),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_PDU_SENT, self._pdu_sent),
            (evt.EVT_ACSE_RECV, self._control_received),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._aborted),
            (evt.EVT_CONN_CLOSE, self._connection_closed),
        ]

    @property
    def running(self) -> list[Conversation]:
        """The associations that were requested and have not ended."""
        with self._lock:
            return list(self._running.values())

    def forget_the_dead(self) -> None:
        """End what pynetdicom let go without an event."""
        for conversation in self.running:
            if not conversation.association.is_alive():
                self._end(conversation.association, "connection lost")

    def _of(self, association: Association) -> Conversation | None:
        with self._lock:
            return self._running.get(association)

    def _connected(self, event: evt.Event) -> None:
        """Take part before the threads of the association run."""
        find = partial(self._of, event.assoc)
        EstablishedPhase(event.assoc, find, self._spooling.maximum_bytes)

    def _requested(self, event: evt.Event) -> None:
        refused = arrange(event.assoc)
        source = _source(event.assoc)
        # before the answer: the first C-STORE may come right behind it
        with self._lock:
            store = AssociationStore(self._spooling, source)
            self._running[event.assoc] = Conversation(event.assoc, store, lambda: self.draining)
        if refused:
            log.info("contexts-refused", source=source.key, classes=refused)

    def _accepted(self, event: evt.Event) -> None:
        contexts = len(event.assoc.accepted_contexts)
        log.info("association-accepted", source=_source(event.assoc).key, contexts=contexts)

    def _pdu_sent(self, event: evt.Event) -> None:
        """Note an answer that went through pynetdicom."""
        conversation = self._of(event.assoc)
        if isinstance(event.pdu, P_DATA_TF) and conversation is not None:
            conversation.answered()

    def _control_received(self, event: evt.Event) -> None:
        conversation = self._of(event.assoc)
        if conversation is None or conversation.ending:
            return
        primitive = cast(Any, event).primitive
        if isinstance(primitive, A_P_ABORT):
            conversation.ending = "connection lost"
        elif isinstance(primitive, A_ABORT):
            conversation.ending = "aborted by the peer"

    def _released(self, event: evt.Event) -> None:
        self._end(event.assoc, "released")

    def _aborted(self, event: evt.Event) -> None:
        self._end(event.assoc, None)

    def _connection_closed(self, event: evt.Event) -> None:
        """Wake an association whose request could not be decoded.

        Its thread would wait for another for all of `acse_timeout_seconds`, and count against the
        limits.
        """
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(cast(Any, None))

    def _end(self, association: Association, how: str | None) -> None:
        with self._lock:
            conversation = self._running.pop(association, None)
        if conversation is None:
            return
        store = conversation.store
        store.close()
        log.info(
            "association-ended",
            source=store.source.key,
            how=how or conversation.ending or "aborted here",
            stored=store.stored,
            refused=store.refused,
            seconds=round(time.monotonic() - conversation.began, 3),
        )


def say_goodbye(association: Association) -> None:
    """Abort an association behind what it has to send; a peer that does not hang up is cut off."""
    association.acse_timeout = GOODBYE_SECONDS
    association.abort(block=False)


def _source(association: Association) -> BatchSource:
    """Tell where an association comes from, with the AE title it called."""
    request = association.requestor.primitive
    return BatchSource(
        kind="association",
        calling_ae=_title(request.calling_ae_title if request else None),
        called_ae=_title(request.called_ae_title if request else None),
        address=plain_address(association.requestor.address or ""),
    )


def _title(title: str | None) -> str:
    return (title or "").strip()
