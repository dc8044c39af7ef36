"""What the receiver answers on the wire to peers that are odd, wrong or hostile.

The same bytes go to pynetdicom's own storage SCP where the two are to agree.
"""

import contextlib
import inspect
import os

import pytest
import wire
from pynetdicom import AE, _config, association, dul, evt, fsm
from pynetdicom.transport import AssociationSocket
from running import wait_until
from wire import COMMAND, LAST, Peer, data_set, element, number, p_data, pdu, pdv, store

from daemon.receiver.established import EstablishedPhase
from daemon.receiver.server import Receiver
from workers.spool.batches import waiting_entries

MAXIMUM_PDU = 32768
COMMAND_PDU = p_data(pdv(COMMAND | LAST, wire.store_command()))
SMALL = data_set()


@pytest.fixture
def receiver(settings):
    limits = settings.receiver.model_copy(update={"maximum_pdu": MAXIMUM_PDU})
    with Receiver(settings.model_copy(update={"receiver": limits}), lambda _: None) as one:
        yield one


@pytest.fixture(scope="module")
def their_scp():
    """pynetdicom's own SCP, and what it was sent; to stop it takes half a second."""
    entity = AE(ae_title="PETCT_INGEST")
    entity.maximum_pdu_size = MAXIMUM_PDU
    entity.add_supported_context(wire.CT, [wire.EXPLICIT, wire.IMPLICIT])
    entity.add_supported_context(wire.VERIFICATION)
    stored = []

    def keep(event):
        stored.append(event.request.DataSet.getvalue())
        return 0x0000

    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    yield server.server_address[1], stored
    server.shutdown()


@pytest.fixture
def reference(their_scp, monkeypatch):
    """The port of pynetdicom's own SCP, and what this test sends it."""
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", True)
    their_scp[1].clear()
    return their_scp


def pieces(value, size):
    return [value[at : at + size] for at in range(0, len(value), size)]


def in_pdvs(value, size, last=LAST):
    cut = pieces(value, size)
    return [pdv(last if at == len(cut) - 1 else last & COMMAND, one) for at, one in enumerate(cut)]


WELL = {
    "command and data in PDUs of their own": store(),
    "command and data in one PDU": p_data(
        pdv(COMMAND | LAST, wire.store_command()), pdv(LAST, SMALL)
    ),
    "a command in fragments of three bytes, each in a PDU": b"".join(
        p_data(one) for one in in_pdvs(wire.store_command(), 3, COMMAND | LAST)
    )
    + p_data(pdv(LAST, SMALL)),
    "a command in fragments within one PDU": p_data(
        *in_pdvs(wire.store_command(), 10, COMMAND | LAST)
    )
    + p_data(pdv(LAST, SMALL)),
    "data in fragments of one byte in one PDU": COMMAND_PDU + p_data(*in_pdvs(SMALL, 1)),
    "data in fragments of one byte, each in a PDU": COMMAND_PDU
    + b"".join(p_data(one) for one in in_pdvs(SMALL, 1)),
    "command, and half of the data behind it in its PDU": p_data(
        pdv(COMMAND | LAST, wire.store_command()), pdv(0, SMALL[:40])
    )
    + p_data(pdv(LAST, SMALL[40:])),
    "a last fragment without bytes": COMMAND_PDU + p_data(pdv(0, SMALL)) + p_data(pdv(LAST)),
    "a fragment without bytes in the middle": COMMAND_PDU
    + p_data(pdv(0, SMALL[:10]), pdv(0), pdv(LAST, SMALL[10:])),
    "a command fragment without bytes": p_data(pdv(COMMAND)) + store(),
    "P-DATA without a PDV before it": pdu(0x04) + store(),
    "reserved bits of the control header set": p_data(
        pdv(0xF0 | COMMAND | LAST, wire.store_command()), pdv(0xF0 | LAST, SMALL)
    ),
    "the reserved byte of the PDU set": b"\x04\xff" + COMMAND_PDU[2:] + p_data(pdv(LAST, SMALL)),
    "a PDU as long as announced": COMMAND_PDU
    + p_data(pdv(0, b"\0" * (MAXIMUM_PDU - 6)))
    + p_data(pdv(LAST, SMALL)),
    "elements of the command in another order": p_data(
        pdv(
            COMMAND | LAST,
            wire.command_set(
                element(0x1000, "1.2.3.4.1"),
                element(0x0800, number(1)),
                element(0x0700, number(2)),
                element(0x0110, number(1)),
                element(0x0100, number(wire.STORE)),
                element(0x0002, wire.CT),
            ),
        ),
        pdv(LAST, SMALL),
    ),
    "move originator in the command": p_data(
        pdv(
            COMMAND | LAST,
            wire.store_command() + element(0x1030, "PACS") + element(0x1031, number(7)),
        ),
        pdv(LAST, SMALL),
    ),
}


@pytest.mark.parametrize("case", WELL)
def test_a_c_store_is_taken_however_it_is_cut(receiver, settings, case):
    with Peer(receiver.port).associate() as peer:
        peer.send(WELL[case])
        said = peer.hear()
        assert (said.kind, said.status, said.message_id) == ("answer", 0x0000, 1)
        assert (said.field, said.context) == (0x8001, wire.STORAGE_CONTEXT)
        (entry,) = waiting_entries(settings.layout)
        assert entry.where(settings.layout).read_bytes().endswith(SMALL)
        peer.send(wire.release())
        assert peer.hear().kind == "released"


@pytest.mark.parametrize("case", WELL)
def test_pynetdicom_takes_the_same(reference, case):
    port, stored = reference
    with Peer(port).associate() as peer:
        peer.send(WELL[case])
        assert peer.hear().status == 0x0000
        assert stored[0].endswith(SMALL)
        peer.send(wire.release())
        assert peer.hear().kind == "released"


def test_bytes_that_come_one_by_one_are_put_together(receiver):
    with Peer(receiver.port).associate() as peer:
        peer.send(*(bytes([one]) for one in store() + wire.release()))
        assert peer.hear().status == 0x0000
        assert peer.hear().kind == "released"


def test_answers_carry_what_they_answer(receiver):
    with Peer(receiver.port).associate() as peer:
        peer.send(store(message_id=40000, uid="1.2.3.4.5"))
        said = peer.hear()
        assert said.message_id == 40000
        assert said.command[0x0002].rstrip(b"\0").decode() == wire.CT
        assert said.command[0x1000].rstrip(b"\0").decode() == "1.2.3.4.5"
        assert said.command[0x0800] == number(0x0101)
        assert int.from_bytes(said.command[0], "little") == sum(
            8 + len(value) for name, value in said.command.items() if name
        )


def test_many_messages_at_once_are_answered_one_by_one_in_order(receiver, settings):
    with Peer(receiver.port).associate() as peer:
        peer.send(b"".join(store(message_id=one) for one in range(1, 41)))
        assert [peer.hear().message_id for _ in range(40)] == list(range(1, 41))
    assert len(list(waiting_entries(settings.layout))) == 40


def test_two_messages_in_one_pdu_are_both_answered(receiver):
    with Peer(receiver.port).associate() as peer:
        both = [
            one
            for identifier in (1, 2)
            for one in (pdv(COMMAND | LAST, wire.store_command(identifier)), pdv(LAST, SMALL))
        ]
        peer.send(p_data(*both))
        assert [peer.hear().message_id for _ in range(2)] == [1, 2]


def test_an_answer_keeps_to_the_pdu_that_the_peer_takes(receiver):
    with Peer(receiver.port).associate(maximum=64) as peer:
        peer.send(store())
        said = peer.hear()  # put together again
        assert (said.status, said.command[0x1000].rstrip(b"\0")) == (0x0000, b"1.2.3.4.1")


def test_echo_and_store_take_turns(receiver):
    with Peer(receiver.port).associate() as peer:
        for _ in range(3):
            peer.send(p_data(pdv(COMMAND | LAST, wire.echo_command(7), wire.ECHO_CONTEXT)))
            said = peer.hear()
            assert (said.field, said.status, said.message_id) == (0x8030, 0x0000, 7)
            peer.send(store(8))
            assert peer.hear().message_id == 8


def test_an_echo_with_a_data_set_is_answered_behind_it(receiver):
    with Peer(receiver.port).associate() as peer:
        echo = wire.echo_command(3, has_data=True)
        peer.send(p_data(pdv(COMMAND | LAST, echo, wire.ECHO_CONTEXT)))
        peer.send(p_data(pdv(LAST, b"x" * 1000, wire.ECHO_CONTEXT)))
        assert peer.hear().message_id == 3


def test_a_c_store_without_priority_is_taken(receiver):
    with Peer(receiver.port).associate() as peer:
        peer.send(store(priority=False))
        assert peer.hear().status == 0x0000


@pytest.mark.parametrize(
    "message",
    [
        p_data(pdv(COMMAND | LAST, wire.store_command(has_data=False))),
        store(data=b""),
        COMMAND_PDU + p_data(pdv(0)) + p_data(pdv(0), pdv(LAST)),
    ],
    ids=["missing", "empty", "empty fragments"],
)
def test_a_c_store_without_a_data_set_is_refused_and_the_next_one_taken(
    receiver, settings, message
):
    with Peer(receiver.port).associate() as peer:
        peer.send(message)
        said = peer.hear()
        assert (said.status, said.comment) == (0xC000, "there is no data set")
        assert not os.listdir(settings.layout.incoming)
        peer.send(store(2))
        assert peer.hear().status == 0x0000


def head(kind, length):
    return bytes((kind, 0)) + length.to_bytes(4, "big")


def bad_command(*elements):
    return p_data(pdv(COMMAND | LAST, wire.command_set(*elements)))


PROVIDER, USER = 2, 0
ILL = {
    "a PDU of unknown type": (head(0x42, 4) + bytes(4), PROVIDER),
    "garbage": (b"GET / HTTP/1.1\r\n\r\n", PROVIDER),
    "a second association request": (wire.associate_rq(), PROVIDER),
    "an association answer": (pdu(0x02, bytes(68)), PROVIDER),
    "a rejection": (pdu(0x03, bytes(4)), PROVIDER),
    "a release answer": (pdu(0x06, bytes(4)), PROVIDER),
    "a PDV longer than its PDU": (head(0x04, 10) + (100).to_bytes(4, "big") + bytes(6), PROVIDER),
    "a PDV of 4 GB": (COMMAND_PDU + head(0x04, 20) + b"\xff" * 4 + bytes(16), PROVIDER),
    "a data set without a command": (p_data(pdv(LAST, SMALL)), PROVIDER),
}
ILL_HERE = {  # pynetdicom reads on, falls silent or lets its threads die
    "a command that ends within an element": (
        p_data(pdv(COMMAND | LAST, wire.store_command()[:-3])),
        PROVIDER,
    ),
    "a PDU longer than announced": (head(0x04, MAXIMUM_PDU + 1), PROVIDER),
    "a PDU of 4 GB": (head(0x04, 0xFFFFFFFF), PROVIDER),
    "a release of 4 GB": (head(0x05, 0xFFFFFFFF), PROVIDER),
    "an abort of 4 GB": (head(0x07, 0xFFFFFFFF), PROVIDER),
    "a PDV without a control header": (
        head(0x04, 5) + (1).to_bytes(4, "big") + b"\1",
        PROVIDER,
    ),
    "a PDV of length 0": (head(0x04, 6) + bytes(6), PROVIDER),
    "a PDU that ends within a PDV's header": (COMMAND_PDU + pdu(0x04, b"\0\0\0"), PROVIDER),
    "rest behind the last PDV": (COMMAND_PDU + pdu(0x04, pdv(0, SMALL) + b"\0"), PROVIDER),
    "a command without end": (
        b"".join(p_data(pdv(COMMAND, bytes(16000))) for _ in range(5)),
        PROVIDER,
    ),
    "a command where data should be": (COMMAND_PDU + COMMAND_PDU, PROVIDER),
    "a command within the data": (COMMAND_PDU + p_data(pdv(0, SMALL)) + COMMAND_PDU, PROVIDER),
    "one message in two contexts": (
        COMMAND_PDU + p_data(pdv(LAST, SMALL, wire.ECHO_CONTEXT)),
        PROVIDER,
    ),
    "a command with elements of another group": (
        bad_command(element(0x0100, number(1)), element(0x18, "1.2.3", group=8)),
        PROVIDER,
    ),
    "a command of unknown kind": (p_data(pdv(3, wire.request_command(0x7777))), PROVIDER),
    "an empty command": (p_data(pdv(COMMAND | LAST)), PROVIDER),
    "a command without kind": (bad_command(element(0x0800, number(1))), PROVIDER),
    "a C-STORE without Message ID": (
        bad_command(element(0x0100, number(1)), element(0x0800, number(1))),
        PROVIDER,
    ),
    "a C-STORE with a Message ID of one byte too many": (
        bad_command(
            element(0x0100, number(1)), element(0x0800, number(1)), element(0x0110, bytes(4))
        ),
        PROVIDER,
    ),
    "a data set behind a C-STORE that announced none": (
        p_data(pdv(COMMAND | LAST, wire.store_command(has_data=False))) + p_data(pdv(LAST, SMALL)),
        PROVIDER,
    ),
    "a query without end": (
        p_data(pdv(COMMAND | LAST, wire.request_command(wire.FIND, has_data=True)))
        + 20 * p_data(pdv(0, bytes(16000))),
        PROVIDER,
    ),
    "a context that was not accepted": (store(context=99), USER),
}


@pytest.mark.parametrize("case", ILL | ILL_HERE)
def test_what_is_against_the_protocol_is_aborted_and_leaves_nothing(receiver, settings, case):
    sent, source = (ILL | ILL_HERE)[case]
    with Peer(receiver.port).associate() as peer:
        with contextlib.suppress(ConnectionError):  # cut off before the end of it
            peer.send(sent)
        said = peer.hear()
        if case == "a data set behind a C-STORE that announced none":
            assert said.status == 0xC000
            said = peer.hear()
        assert (said.kind, said.source) == ("abort", source)
        assert peer.hear().kind == "closed"
    wait_until(lambda: not receiver._server.active_associations, 5)
    wait_until(lambda: not os.listdir(settings.layout.ready), 5)
    assert not os.listdir(settings.layout.incoming)


@pytest.mark.parametrize("case", ILL)
def test_pynetdicom_ends_the_same(reference, case):
    sent, source = ILL[case]
    with Peer(reference[0]).associate() as peer:
        peer.send(sent)
        said = peer.hear()
        assert said.kind == "closed" or (said.kind, said.source) == ("abort", source)


BEGUN = (b"", COMMAND_PDU, COMMAND_PDU + p_data(pdv(0, SMALL)))
CUT_PDUS = (COMMAND_PDU[:9], b"\x04")  # within a PDU an abort is data


@pytest.mark.parametrize(
    ("begun", "last_word"),
    [(begun, word) for begun in BEGUN for word in (wire.abort(), wire.abort(2), b"")]
    + [(begun, b"") for begun in CUT_PDUS],
)
def test_a_peer_that_aborts_or_hangs_up_anywhere_leaves_nothing(
    receiver, settings, begun, last_word
):
    with Peer(receiver.port).associate() as peer:
        peer.send(begun, last_word)
        if last_word:
            assert peer.hear().kind == "closed"
    wait_until(lambda: not receiver._server.active_associations, 5)
    wait_until(lambda: not os.listdir(settings.layout.ready), 5)
    assert not os.listdir(settings.layout.incoming)


def test_a_release_within_a_message_is_granted_and_the_message_forgotten(receiver, settings):
    with Peer(receiver.port).associate() as peer:
        peer.send(COMMAND_PDU + p_data(pdv(0, SMALL)), wire.release())
        assert peer.hear().kind == "released"
        assert peer.hear().kind == "closed"
    wait_until(lambda: not os.listdir(settings.layout.ready), 5)
    assert not os.listdir(settings.layout.incoming)


def test_other_messages_go_to_pynetdicom_and_ours_go_on(receiver):
    with Peer(receiver.port).associate() as peer:
        # a C-CANCEL of nothing is ignored, as PS3.7 9.3.2.3 has it
        cancel = wire.command_set(
            element(0x0100, number(wire.CANCEL)),
            element(0x0120, number(9)),
            element(0x0800, number(0x0101)),
        )
        peer.send(p_data(pdv(COMMAND | LAST, cancel)), store(2))
        assert (said := peer.hear()).status == 0x0000
        assert said.message_id == 2
        # in fragments, behind the end of a message of ours in one PDU
        command = wire.request_command(wire.FIND, 3, has_data=True)
        peer.send(
            p_data(pdv(COMMAND | LAST, wire.store_command(2)))
            + p_data(pdv(LAST, SMALL), pdv(COMMAND, command[:20]))
            + p_data(pdv(COMMAND | LAST, command[20:]), pdv(0, b"\0\0"))
            + p_data(pdv(LAST, b"\0\0"))
        )
        assert peer.hear().message_id == 2
        said = peer.hear()  # pynetdicom has the whole query, and no use for it
        assert (said.kind, said.source) == ("abort", USER)


def test_asynchronous_operations_are_not_granted(receiver, connect_with_window):
    assert connect_with_window(receiver.port).acceptor.asynchronous_operations == (1, 1)


@pytest.fixture
def connect_with_window():
    """Associate with an asynchronous operations window of 8 (PS3.7 D.3.3.3)."""
    from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation

    made = []

    def connect(port):
        window = AsynchronousOperationsWindowNegotiation()
        window.maximum_number_operations_invoked = 8
        window.maximum_number_operations_performed = 8
        entity = AE()
        entity.add_requested_context(wire.CT)
        made.append(entity.associate("127.0.0.1", port, ext_neg=[window]))
        assert made[0].is_established
        return made[0]

    yield connect
    made[0].release()


class TestWhatWeLeanOn:
    """pynetdicom's private parts that `EstablishedPhase` uses; a change of theirs shows here."""

    def test_the_reactor_asks_for_transport_events_when_no_primitive_waits(self):
        source = inspect.getsource(dul.DULServiceProvider.run_reactor)
        asks = source.index("elif self._is_transport_event():")
        assert source.index("if self._process_recv_primitive():") < asks
        assert asks < source.index("self.event_queue.get(block=False)")
        assert asks < source.index("self.state_machine.do_action(event)")

    def test_a_pdu_is_left_in_two_queues(self):
        source = inspect.getsource(dul.DULServiceProvider._read_pdu_data)
        assert "pdu, event = self._decode_pdu(bytestream)" in source
        assert "self.event_queue.put(event)" in source
        assert "self._recv_pdu.put(pdu)" in source

    def test_the_events_mean_what_they_meant(self):
        table = fsm.TRANSITION_TABLE
        assert table["Evt17", "Sta6"] == "AA-4"  # the connection has gone
        assert table["Evt19", "Sta6"] == "AA-8"  # an A-P-ABORT is sent
        assert table["Evt12", "Sta6"] == "AR-2"  # a release
        assert table["Evt16", "Sta6"] == "AA-3"  # an abort
        assert table["Evt15", "Sta6"] == "AA-1"  # ours
        assert table["Evt17", "Sta13"] == "AR-5"

    def test_the_other_thread_stops_at_a_checkpoint(self):
        source = inspect.getsource(association.Association._run_reactor)
        assert "self._reactor_checkpoint.wait()" in source
        assert "self.dul.idle_timer_expired()" in source

    def test_closing_tells_the_state_machine(self):
        assert 'self.event_queue.put("Evt17")' in inspect.getsource(AssociationSocket.close)

    def test_a_new_association_is_announced_before_its_threads_run(self, receiver):
        with Peer(receiver.port).associate():
            (one,) = receiver._server.active_associations
            assert isinstance(vars(one.dul)["_is_transport_event"], EstablishedPhase)
