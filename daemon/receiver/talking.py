"""Send an N-EVENT-REPORT on an association while its peer goes on sending (PS3.4 J.3.3).

pynetdicom's own call takes the next message of the peer for the answer, whatever it is. Here the
answer is known by its Message ID, and everything else goes its usual way.
"""

from __future__ import annotations

import itertools
import threading
from io import BytesIO
from typing import Any

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from daemon.receiver.answering import event_information, event_type
from workers.commitment.transactions import Transaction
from workers.spool.batches import BatchSource

CONTEXT = build_context(
    StorageCommitmentPushModel,
    ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"],  # no deflated one: it could swell without bound
)

SUCCESS = 0x0000


class Talk:
    """One association on which storage commitment was accepted."""

    def __init__(
        self, association: Association, context: PresentationContext, source: BatchSource
    ) -> None:
        self.source = source
        self.asked: set[str] = set()
        """The transactions that it asked for."""
        self.spoiled = False
        """It took a report, and did not answer as it should: no further one goes out here."""
        self._association = association
        self._context = context
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._awaited: int | None = None
        self._status: int | None = None
        self._over = False
        self.answering = False
        """A request of its is being handled: the answer goes before any report."""
        self._send_alone()

    @property
    def can_report(self) -> bool:
        busy = self.answering or self.spoiled or self._over
        return self._association.is_established and not busy

    def report(self, transaction: Transaction, seconds: float) -> bool:
        """Send a result; tell whether the peer answered 0x0000 in time."""
        number = next(self._numbers) % 65536
        request = report_of(transaction, self._context, number)
        with self._changed:
            self._awaited, self._status = number, None
        self._association.dimse.send_msg(request, self._context.context_id or 0)
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None or self._over, seconds)
            self._awaited = None
            self.spoiled = self._status != SUCCESS
            return not self.spoiled

    def hear(self, message: Any) -> None:
        """Look at what the peer sent: is it the answer?"""
        if not isinstance(message, N_EVENT_REPORT_RSP):
            return
        command = message.command_set
        with self._changed:
            if command.get("MessageIDBeingRespondedTo") == self._awaited:
                self._status = command.get("Status", -1)
                self._changed.notify_all()

    def end(self) -> None:
        """Wait no longer: the association has ended, or the receiver stops."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _send_alone(self) -> None:
        """Let no two messages of ours mix: reports are sent beside the answers (PS3.8 annex E)."""
        dimse = self._association.dimse
        send, lock = dimse.send_msg, threading.Lock()

        def send_alone(primitive: Any, context_id: int) -> None:
            with lock:
                send(primitive, context_id)
            if isinstance(primitive, N_ACTION):
                self.answering = False

        dimse.send_msg = send_alone  # type: ignore[method-assign]


def report_of(
    transaction: Transaction, context: PresentationContext, number: int
) -> N_EVENT_REPORT:
    """Return the N-EVENT-REPORT of a result (PS3.4 J.3.3.1.1)."""
    report = N_EVENT_REPORT()
    report.MessageID = number
    report.AffectedSOPClassUID = UID(StorageCommitmentPushModel)
    report.AffectedSOPInstanceUID = UID(StorageCommitmentPushModelInstance)
    report.EventTypeID = event_type(transaction)
    explicit = not context.transfer_syntax[0].is_implicit_VR
    report.EventInformation = BytesIO(event_information(transaction, explicit=explicit))
    return report
