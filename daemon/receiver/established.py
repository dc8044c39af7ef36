"""The established phase of an association: messages read, handled and answered in one thread.

pynetdicom negotiates, releases and aborts. In between (state Sta6 of PS3.8 9.2) its upper-layer
thread asks `EstablishedPhase` for transport events instead of reading whole PDUs and queueing
them: C-STORE streams into the spool and C-ECHO is answered right here. Whatever else comes is put
together again and handed to pynetdicom, in bounds.

What this leans on inside pynetdicom is pinned by tests/test_wire.py: `_is_transport_event` is asked
by `run_reactor` whenever no primitive of ours waits; what it reads it leaves in `_recv_pdu` and
`event_queue`; `_reactor_checkpoint` stops the association's other, polling thread.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket

from daemon.receiver.commands import (
    C_ECHO_RQ,
    C_STORE_RQ,
    MOST_COMMAND_BYTES,
    Command,
    Malformed,
    encode_response,
    parse_command,
)
from daemon.receiver.fragments import NO_FRAGMENTS, next_fragments
from daemon.receiver.inflow import ConnectionLost, Hopeless, Inflow, Interrupted
from daemon.receiver.part10 import uid_problem
from daemon.receiver.storing import SUCCESS, Answer, AssociationStore, Request

MOST_HANDED_OVER_BYTES = 4 << 20
"""What pynetdicom may be given of one message, which it collects in memory, where storage
commitment was accepted: 20,000 references."""

MOST_OTHER_BYTES = 256 << 10
"""The same on every other association: nothing else of ours is handed over."""

SEE_OFF_SECONDS = 1.0
"""How long a peer may take to hang up after our last word."""

_MOST_CONTROL_BYTES = 64  # of a release or abort, which have four
_P_DATA, _RELEASE_RQ, _ABORT = 0x04, 0x05, 0x07
_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_IS_COMMAND, _IS_LAST = 1, 2
_ABORT_BYTES, _BY_PROVIDER, _PROVIDER_REASONS = 4, 2, (0, 1, 2, 4, 5, 6)  # PS3.8 table 9-26
_CONNECTION_CLOSED, _INVALID_PDU = "Evt17", "Evt19"  # PS3.8 table 9-10
_LOOK_SECONDS = 0.1
_SEE_OFF_LOOK_SECONDS = 0.05
_LOOK_SECONDS_WITH_REPORTS = 0.02


class Party(Protocol):
    """Who the phase tells of an association, and asks where its instances go."""

    store: AssociationStore
    ending: str
    phase: EstablishedPhase | None

    def answered(self) -> None:
        """Note that a message was answered."""

    def say_goodbye(self) -> None:
        """End the association from our side."""


class EstablishedPhase:
    """Stands in for `_is_transport_event` of one association's upper-layer thread.

    Parameters
    ----------
    association : Association
        A new one, before its threads run.
    party_of : callable
        Gives the party; asked when the association is established.
    maximum_bytes : int
        The longest data set. A longer one is refused when it ends, and one that does not end within
        twice of this is aborted.
    """

    def __init__(
        self, association: Association, party_of: Callable[[], Party | None], maximum_bytes: int
    ) -> None:
        self._association = association
        self._dul = association.dul
        self._party_of = party_of
        self._most_data_bytes = 2 * maximum_bytes
        self._as_it_was = self._dul._is_transport_event
        self._party: Party | None = None
        self._inflow: Inflow | None = None
        self._contexts: dict[int, str] = {}
        self._reports = False
        self._announced = self._most_for_peer = 0  # bytes of a PDU, 0 for any
        self._over = False
        self._seen_off_at: float | None = None
        self._left = 0  # bytes of the PDU
        self._context: int | None = None  # of the message that has begun
        self._command_bytes = bytearray()
        self._command: Command | None = None
        self._fragments = NO_FRAGMENTS  # of its data set, the last ones
        self._received = 0  # bytes of its data set
        self._handed_over = 0
        vars(self._dul)["_is_transport_event"] = self

    def __call__(self) -> bool:
        """Go on with the connection; False, for what happened is in the queues by now."""
        state = self._dul.state_machine.current_state
        if state == "Sta6":
            self._converse()
        elif state == "Sta13":
            self._see_off()
        elif state in ("Sta1", "Sta2"):
            return self._as_it_was()  # the request, which the lobby has read and judged
        return False

    @property
    def in_message(self) -> bool:
        """Whether a message is being received, handled or answered."""
        return self._context is not None or self._left > 0

    def _converse(self) -> None:
        """Handle message after message until pynetdicom has something to do."""
        if self._inflow is None and not self._over:
            self._begin()
        if self._inflow is None or self._party is None:
            return
        self._hold_reactor(True)
        try:
            self._inflow.wait_briefly()
            while not self._pynetdicom_is_to_act():
                self._dul._idle_timer.restart()
                if self._inflow.buffered or self._inflow.comes():
                    self._read_pdu(self._inflow, self._party)
        except Interrupted:
            self._give_up()
        except ConnectionLost:
            self._give_up()
            self._dul.event_queue.put(_CONNECTION_CLOSED)
        except Malformed as why:
            self._give_up()
            self._party.ending = f"protocol error: {why}"
            self._dul.event_queue.put(_INVALID_PDU)
        except Hopeless as why:
            self._give_up()
            self._party.ending = str(why)
            self._party.say_goodbye()
        finally:
            self._dul._idle_timer.restart()
            self._inflow.wait_long()
            if self._over:
                self._inflow = None  # at once: pynetdicom's threads hang in reference cycles
            self._hold_reactor(False)

    def _begin(self) -> None:
        """Take over, unless the association has ended meanwhile."""
        self._party = self._party_of()
        connection = cast(AssociationSocket, self._dul.socket).socket
        if self._party is None or connection is None:
            return
        self._party.phase = self
        contexts = self._association.accepted_contexts
        self._contexts = {one.context_id or 0: str(one.transfer_syntax[0]) for one in contexts}
        self._reports = any(one.abstract_syntax == StorageCommitmentPushModel for one in contexts)
        self._announced = self._association.acceptor.maximum_length or 0
        self._most_for_peer = self._association.requestor.maximum_length or 0
        self._inflow = Inflow(
            connection,
            idle_seconds=self._association.network_timeout or float("inf"),
            message_seconds=self._association.dimse_timeout or float("inf"),
            look_seconds=_LOOK_SECONDS_WITH_REPORTS if self._reports else _LOOK_SECONDS,
            interrupted=self._pynetdicom_is_to_abort,
        )

    def _hold_reactor(self, hold: bool) -> None:
        """Let the association's other thread sleep, which polls each millisecond otherwise.

        Where we may have something to report (PS3.4 J.3.3), it is needed all the time.
        """
        checkpoint = self._association._reactor_checkpoint
        if not hold:
            checkpoint.set()
        elif not self._reports:
            checkpoint.clear()

    def _pynetdicom_is_to_act(self) -> bool:
        dul = self._dul
        waiting = dul.to_provider_queue.queue or dul.event_queue.queue
        return bool(waiting or self._association.dimse.msg_queue.queue)

    def _pynetdicom_is_to_abort(self) -> bool:
        waiting = self._dul.to_provider_queue.queue
        return bool(waiting) and any(
            isinstance(one, (A_ABORT, A_P_ABORT)) for one in tuple(waiting)
        )

    def _give_up(self) -> None:
        """Forget the message that has begun: the association comes to its end."""
        self._over = True
        self._left = 0
        self._message_ended()
        if self._party is not None:
            self._party.store.abandon()

    # PDUs -----------------------------------------------------------------------------------------

    def _read_pdu(self, inflow: Inflow, party: Party) -> None:
        if self._command is not None and self._take_fragments(inflow, party):
            return
        inflow.need(_PDU.size)
        header = bytes(inflow.peek(_PDU.size))
        kind, length = _PDU.unpack(header)
        inflow.skip(_PDU.size)
        inflow.begin_message()
        if kind != _P_DATA:
            if kind not in (_RELEASE_RQ, _ABORT) or length > _MOST_CONTROL_BYTES:
                raise Malformed(f"a PDU of type {kind:#04x} and {length} bytes")
            body = inflow.take(length)
            self._hand_over(header + body if kind == _RELEASE_RQ else understood_abort(body))
            self._give_up()
            return
        if self._announced and length > self._announced:
            raise Malformed(f"a PDU of {length} bytes, where {self._announced} were announced")
        self._left = length
        if self._association.dimse.message is not None:
            self._hand_over_data(inflow, header)
        while self._left:
            self._read_pdv(inflow, party)
        if self._context is None and self._association.dimse.message is None:
            inflow.rest()

    def _take_fragments(self, inflow: Inflow, party: Party) -> bool:
        """Take what most senders send, all that is here at once; False where it is anything else.

        Within a data set nothing else may come but its fragments, or the association's end.
        """
        view = inflow.peek(inflow.buffered)
        found = next_fragments(view, self._context or 0, self._announced, self._fragments)
        if not found.bytes_read:
            return False
        self._fragments = found
        inflow.skip(found.bytes_read)
        self._take_data(party, *found.pieces)
        if found.is_last and not found.missing:
            self._answer(party)
            inflow.rest()
        return True

    def _read_pdv(self, inflow: Inflow, party: Party) -> None:
        """Read one Presentation Data Value (PS3.8 9.3.5.1 and annex E)."""
        if self._left < _PDV.size:
            raise Malformed("a PDU ends within the header of a PDV")
        inflow.need(_PDV.size)
        length, context, control = _PDV.unpack(inflow.peek(_PDV.size))
        inflow.skip(_PDV.size)
        size = length - 2
        if not 0 <= size <= self._left - _PDV.size:
            raise Malformed("a PDV that does not fit into its PDU")
        if self._context not in (None, context):
            raise Malformed("a message in two presentation contexts")
        self._left -= _PDV.size + size
        if not control & _IS_COMMAND:
            self._read_data(inflow, party, size)
            if control & _IS_LAST:
                self._answer(party)
            return
        if self._command is not None or len(self._command_bytes) + size > MOST_COMMAND_BYTES:
            raise Malformed("a command set where the data set should be, or without end")
        self._context = context
        self._command_bytes += inflow.take(size)
        if control & _IS_LAST:
            self._begin_message(inflow, party, context)

    def _begin_message(self, inflow: Inflow, party: Party, context: int) -> None:
        encoded = bytes(self._command_bytes)
        command = parse_command(encoded)
        if context not in self._contexts:
            raise Hopeless("presentation context not accepted")
        if command.field not in (C_STORE_RQ, C_ECHO_RQ):
            self._message_ended()
            self._handed_over = 0
            value = _PDV.pack(len(encoded) + 2, context, _IS_COMMAND | _IS_LAST) + encoded
            self._left += len(value)
            self._hand_over_data(inflow, _PDU.pack(_P_DATA, self._left) + value)
            return
        self._command = command
        if command.field == C_STORE_RQ:
            syntax = self._contexts[context]
            party.store.begin(Request(command.sop_class, command.sop_instance, syntax))
        if not command.has_data_set:
            self._answer(party)

    def _read_data(self, inflow: Inflow, party: Party, size: int) -> None:
        if self._command is None:
            raise Malformed("a data set without a command set")
        while size:
            piece = inflow.some(size)
            size -= len(piece)
            self._take_data(party, piece)

    def _take_data(self, party: Party, *pieces: memoryview) -> None:
        """Take the next bytes of a data set; that of a C-ECHO is thrown away."""
        self._received += sum(map(len, pieces))
        if self._received > self._most_data_bytes:
            raise Hopeless("a data set without end")
        if self._command is not None and self._command.field == C_STORE_RQ:
            party.store.write(*pieces)

    def _answer(self, party: Party) -> None:
        """Answer the request that has come to its end, and be ready for the next one."""
        command, context = self._command, self._context
        if command is None or context is None or self._inflow is None:
            raise Malformed("a data set without a command set")
        is_store = command.field == C_STORE_RQ
        answer = party.store.finish() if is_store else Answer(SUCCESS)
        try:
            self._send(self._inflow, command, context, answer)
        finally:
            if is_store:
                party.store.settle()  # the peer is at work meanwhile
        self._message_ended()
        party.answered()

    def _send(self, inflow: Inflow, command: Command, context: int, answer: Answer) -> None:
        if self._reports:
            # an N-EVENT-REPORT may be on its way: pynetdicom's queue keeps them apart
            self._association.dimse.send_msg(_primitive(command, answer), context)
            return
        status, comment = answer.status, answer.comment
        inflow.send(encode_response(command, context, status, comment, self._most_for_peer))

    def _message_ended(self) -> None:
        self._context = self._command = None
        self._fragments = NO_FRAGMENTS
        self._command_bytes.clear()
        self._received = 0

    # pynetdicom's part ----------------------------------------------------------------------------

    def _hand_over_data(self, inflow: Inflow, begun: bytes) -> None:
        """Give pynetdicom a P-DATA-TF PDU of which `begun` was read: of no message of ours."""
        rest = self._left - (len(begun) - _PDU.size)
        self._handed_over += self._left
        most = MOST_HANDED_OVER_BYTES if self._reports else MOST_OTHER_BYTES
        if self._handed_over > most:
            raise Malformed("a message that is too long")
        self._hand_over(begun + inflow.take(rest))
        self._left = 0

    def _hand_over(self, pdu: bytes) -> None:
        try:
            decoded, event = self._dul._decode_pdu(bytearray(pdu))
        # whatever its decoders come upon in what a stranger sent
        except Exception as error:
            raise Malformed("a PDU that cannot be decoded") from error
        self._dul._recv_pdu.put(decoded)
        self._dul.event_queue.put(event)

    def _see_off(self) -> None:
        """Wait for the peer to hang up behind our last word, lest a reset overtakes it; close."""
        self._inflow = None
        ours = cast(AssociationSocket, self._dul.socket)
        connection = ours.socket
        if connection is None:
            return
        gone = False
        try:
            if self._seen_off_at is None:
                self._seen_off_at = time.monotonic()
                connection.settimeout(_SEE_OFF_LOOK_SECONDS)
                connection.shutdown(socket.SHUT_WR)
            gone = not connection.recv(1 << 16)
        except TimeoutError:
            pass
        except OSError:
            gone = True
        if gone or time.monotonic() - (self._seen_off_at or 0) > SEE_OFF_SECONDS:
            ours.close()


def understood_abort(body: bytes) -> bytes:
    """Return an A-ABORT PDU as pynetdicom understands it (PS3.8 9.3.8), whatever it said.

    Its thread dies of other sources and reasons, and the association stays until it is overdue.
    """
    source, reason = body[2:4] if len(body) == _ABORT_BYTES else (0, 0)
    if source != _BY_PROVIDER or reason not in _PROVIDER_REASONS:
        source = reason = 0
    return _PDU.pack(_ABORT, _ABORT_BYTES) + bytes((0, 0, source, reason))


def _primitive(command: Command, answer: Answer) -> Any:
    """Return an answer as pynetdicom's own."""
    primitive: Any = C_ECHO()
    if command.field == C_STORE_RQ:
        primitive = C_STORE()
        primitive.ErrorComment = answer.comment or None
        if uid_problem(command.sop_instance) is None:
            primitive.AffectedSOPInstanceUID = command.sop_instance
    if uid_problem(command.sop_class) is None:
        primitive.AffectedSOPClassUID = command.sop_class
    primitive.MessageIDBeingRespondedTo = command.message_id
    primitive.Status = answer.status
    return primitive
