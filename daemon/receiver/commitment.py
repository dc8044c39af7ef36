"""Take requests for storage commitment: durable first, then 0x0000 (PS3.4 J.3.2).

What is asked is decided elsewhere (workers/commitment); the result goes out as an N-EVENT-REPORT,
on the asking association while it is open (daemon/receiver/reporting.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from config.layout import Layout
from config.logs import get_logger, short
from daemon.receiver.access import plain_address
from daemon.receiver.asking import INVALID_ARGUMENT, RESOURCE_LIMITATION, Refused, read_asked
from daemon.receiver.talking import Talk
from daemon.room import Room
from workers import clock
from workers.commitment.transactions import (
    Damaged,
    State,
    Transaction,
    Transactions,
)
from workers.spool.batches import BatchSource

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_CLASS = 0x0118
NO_SUCH_ACTION = 0x0123

_REQUEST_COMMITMENT = 1  # the one Action Type ID (PS3.4 table J.3-1)

log = get_logger(__name__)


class CommitmentDesk:
    """The handlers of storage commitment, and the associations that a result can go out on."""

    def __init__(self, layout: Layout, room: Room) -> None:
        self._transactions = Transactions(layout)
        self._room = room
        self._taking = threading.Lock()
        self._lock = threading.Lock()
        self._talks: dict[Association, Talk] = {}

    @property
    def handlers(self) -> list[tuple[Any, Callable[[evt.Event], Any]]]:
        """The event handlers to bind to a server."""
        return [
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_N_ACTION, self._n_action),
            (evt.EVT_DIMSE_RECV, self._message_received),
            (evt.EVT_RELEASED, self._ended),
            (evt.EVT_ABORTED, self._ended),
            (evt.EVT_CONN_CLOSE, self._ended),
        ]

    def talk_with(self, source: str, key: str) -> Talk | None:
        """Return an open association of a peer: the one that asked, if it is still open."""
        with self._lock:
            talks = [talk for talk in self._talks.values() if talk.can_report]
        same = [talk for talk in talks if talk.source.key == source]
        asking = [talk for talk in same if key in talk.asked]
        return next(iter(asking + same), None)

    def _accepted(self, event: evt.Event) -> None:
        for context in event.assoc.accepted_contexts:
            if context.abstract_syntax == StorageCommitmentPushModel:
                talk = Talk(event.assoc, context, _source(event.assoc))
                with self._lock:
                    self._talks[event.assoc] = talk
                return

    def _ended(self, event: evt.Event) -> None:
        with self._lock:
            talk = self._talks.pop(event.assoc, None)
        if talk is not None:
            talk.end()

    def _talk_of(self, event: evt.Event) -> Talk | None:
        with self._lock:
            return self._talks.get(event.assoc)

    def _message_received(self, event: evt.Event) -> None:
        talk = self._talk_of(event)
        if talk is not None:
            talk.hear(event.message)

    def _n_action(self, event: evt.Event) -> tuple[int | Dataset, None]:
        source = _source(event.assoc)
        request = cast(Any, event.request)
        talk = self._talk_of(event)
        try:
            if talk is None:
                raise Refused(PROCESSING_FAILURE, "the association has ended")
            talk.answering = True
            _check_addressee(request)
            information = request.ActionInformation
            uid, references = read_asked(
                information.getvalue() if information else b"",
                explicit=not event.context.transfer_syntax.is_implicit_VR,
            )
            asked = Transaction(uid, source, clock.utc_now(), references)
            with self._taking:
                self._take(asked)
            talk.asked.add(asked.key)
        except Refused as refused:
            log.warning("commitment-refused", source=source.key, reason=refused.comment)
            return _failure(refused.status, refused.comment), None
        except OSError as error:
            log.warning("commitment-not-written", source=source.key, reason=error.strerror)
            return _failure(RESOURCE_LIMITATION, "the request could not be written"), None
        log.info(
            "commitment-asked",
            source=source.key,
            transaction=short(uid),
            references=len(references),
        )
        return SUCCESS, None

    def _take(self, asked: Transaction) -> None:
        """Make a request durable; the same one again changes nothing."""
        try:
            asked.check()
        except Damaged as error:
            raise Refused(INVALID_ARGUMENT, "an AE title that cannot be written down") from error
        for state in (State.RESULT, State.REQUEST):
            known = self._transactions.read(asked.key, state)
            if known is not None:
                if known.references != asked.references:
                    raise Refused(INVALID_ARGUMENT, "the Transaction UID is in use")
                return
        if self._transactions.is_full():
            raise Refused(RESOURCE_LIMITATION, "too many requests wait")
        if self._room.refusal(len(asked.to_bytes()), time.monotonic()) is not None:
            raise Refused(RESOURCE_LIMITATION, "the spool takes nothing now")
        self._transactions.write(asked, State.REQUEST)


def _check_addressee(request: Any) -> None:
    if request.RequestedSOPClassUID != StorageCommitmentPushModel:
        raise Refused(NO_SUCH_CLASS, "only the Storage Commitment Push Model")
    if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
        raise Refused(NO_SUCH_INSTANCE, "only the well-known SOP Instance")
    if request.ActionTypeID != _REQUEST_COMMITMENT:
        raise Refused(NO_SUCH_ACTION, "the only Action Type ID is 1")


def _failure(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]
    return answer


def _source(association: Association) -> BatchSource:
    request = association.requestor.primitive
    assert isinstance(request, A_ASSOCIATE)  # noqa: S101 - the event comes after the request
    return BatchSource(
        kind="association",
        calling_ae=(request.calling_ae_title or "").strip(),
        called_ae=(request.called_ae_title or "").strip(),
        address=plain_address(association.requestor.address or ""),
    )
