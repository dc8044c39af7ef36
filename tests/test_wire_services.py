"""What a storage SCP is asked for in a whole conversation: ours and pynetdicom's own agree.

The cases are those that pynetdicom tests its SCP with, told in bytes or with its SCU. Every test
runs against both receivers, so that whatever handles C-STORE here is no other peer to a sender.
"""

import contextlib
import os
import socket

import pytest
import wire
from conftest import an_installation
from pynetdicom import AE, _config, evt
from pynetdicom.pdu_primitives import (
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_role
from running import wait_until
from wire import COMMAND, LAST, Peer, data_set, element, number, p_data, pdv, store

from daemon.receiver.server import Receiver
from workers.spool.batches import waiting_entries

MR = "1.2.840.10008.5.1.4.1.1.4"
WORKLIST = "1.2.840.10008.5.1.4.31"
RESPONSE = 0x8000


class OurScp:
    """Ours, and the files that it took during one test."""

    def __init__(self, receiver, layout):
        self._receiver, self._layout = receiver, layout
        self.port = receiver.port
        self.begin()

    def begin(self):
        self._before = set(waiting_entries(self._layout))

    def stored(self):
        new = set(waiting_entries(self._layout)) - self._before
        return [entry.where(self._layout).read_bytes() for entry in new]

    def end(self):
        wait_until(lambda: not self._receiver._server.active_associations, 5)
        assert not os.listdir(self._layout.incoming)


class TheirScp:
    """pynetdicom's own, and the data sets that it took during one test."""

    def __init__(self):
        entity = AE(ae_title="PETCT_INGEST")
        for sop_class in (wire.CT, MR):
            entity.add_supported_context(sop_class, [wire.EXPLICIT, wire.IMPLICIT])
        entity.add_supported_context(wire.VERIFICATION)
        self._taken = []
        self.server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )
        self.port = self.server.server_address[1]

    def _keep(self, event):
        self._taken.append(event.request.DataSet.getvalue())
        return 0x0000

    def begin(self):
        self._taken.clear()

    def stored(self):
        return self._taken

    def end(self):
        wait_until(lambda: not self.server.active_associations, 5)


@pytest.fixture(scope="module")
def scps(tmp_path_factory):
    """Both, for all tests of this module: starting and stopping takes longer than they do."""
    settings = an_installation(tmp_path_factory.mktemp("scp") / "root")
    theirs = TheirScp()
    with Receiver(settings, lambda _: None) as receiver:
        yield {"ours": OurScp(receiver, settings.layout), "pynetdicom's own": theirs}
    theirs.server.shutdown()


@pytest.fixture(params=["ours", "pynetdicom's own"])
def scp(request, scps, monkeypatch):
    if request.param != "ours":  # its own thread may die of what comes too late
        ignored = "ignore::pytest.PytestUnhandledThreadExceptionWarning"
        request.applymarker(pytest.mark.filterwarnings(ignored))
    # unrestricted, pynetdicom takes the worklist and much else for storage
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", request.param == "ours")
    one = scps[request.param]
    one.begin()
    yield one
    one.end()


@pytest.fixture
def associate():
    """Associate as pynetdicom's SCU, with what it negotiates."""
    made = []

    def begin(port, *negotiation):
        entity = AE()
        entity.add_requested_context(wire.CT, wire.EXPLICIT)
        entity.add_requested_context(wire.VERIFICATION)
        made.append(entity.associate("127.0.0.1", port, ext_neg=list(negotiation)))
        assert made[-1].is_established
        return made[-1]

    yield begin
    for one in made:
        one.release()


def echo(message_id=1):
    return p_data(pdv(COMMAND | LAST, wire.echo_command(message_id), wire.ECHO_CONTEXT))


def odd_store(*elements, data=None):
    """A C-STORE with some more elements in its command set."""
    data = data_set() if data is None else data
    command = wire.store_command() + b"".join(elements)
    return p_data(pdv(COMMAND | LAST, command)) + p_data(pdv(LAST, data))


def test_one_association_after_another_is_taken_and_released(scp):
    for message_id in range(1, 6):
        with Peer(scp.port).associate() as peer:
            peer.send(echo(message_id))
            assert peer.hear().message_id == message_id
            peer.send(wire.release())
            assert peer.hear().kind == "released"
            assert peer.hear().kind == "closed"


@pytest.mark.parametrize("message_id", [0, 1, 255, 256, 65535])
def test_every_message_id_comes_back(scp, message_id):
    with Peer(scp.port).associate() as peer:
        for sent, kind in ((echo(message_id), wire.ECHO), (store(message_id), wire.STORE)):
            peer.send(sent)
            said = peer.hear()
            assert (said.status, said.message_id) == (0x0000, message_id)
            assert said.field == RESPONSE | kind


def test_a_message_id_may_be_used_again(scp):
    with Peer(scp.port).associate() as peer:
        for _ in range(3):
            peer.send(store(7))
            assert peer.hear().message_id == 7
    assert len(scp.stored()) == 3


@pytest.mark.parametrize(
    "data", [b"no data set at all", bytes(2), data_set()[:-9]], ids=["words", "zeros", "cut"]
)
def test_a_data_set_that_cannot_be_decoded_is_taken_as_it_came(scp, data):
    with Peer(scp.port).associate() as peer:
        peer.send(store(data=data))
        assert peer.hear().status == 0x0000
    (kept,) = scp.stored()
    assert kept.endswith(data)


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_every_priority_is_taken(scp, priority):
    command = wire.store_command(priority=False) + element(0x0700, number(priority))
    with Peer(scp.port).associate() as peer:
        peer.send(p_data(pdv(COMMAND | LAST, command)) + p_data(pdv(LAST, data_set())))
        assert peer.hear().status == 0x0000


def test_a_sop_class_other_than_its_contexts_is_the_senders_affair(scp):
    with Peer(scp.port).associate() as peer:
        peer.send(store(sop_class=MR))
        said = peer.hear()
        assert said.status == 0x0000
        assert said.command[0x0002].rstrip(b"\0") == MR.encode()


def test_elements_that_no_c_store_has_are_passed_over(scp):
    with Peer(scp.port).associate() as peer:
        peer.send(odd_store(element(0x0600, "ELSEWHERE"), element(0x1002, number(3))))
        assert peer.hear().status == 0x0000
    assert len(scp.stored()) == 1


def test_each_of_many_contexts_takes_instances(scp):
    contexts = [(identifier, wire.CT) for identifier in range(1, 256, 2)]
    with Peer(scp.port).associate(contexts=contexts) as peer:
        for identifier in (1, 127, 255):
            peer.send(store(context=identifier))
            said = peer.hear()
            assert (said.status, said.context) == (0x0000, identifier)
    assert len(scp.stored()) == 3


@pytest.mark.parametrize("contexts", [((1, wire.CT), (5, WORKLIST)), ((5, WORKLIST),)])
def test_a_message_in_a_context_that_was_rejected_ends_the_association(scp, contexts):
    with Peer(scp.port).associate(contexts=contexts) as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(store(context=5))
        assert peer.hear().kind in ("abort", "closed")
    assert not scp.stored()


AFFECTED, REQUESTED = (0x0002, 0x1000), (0x0003, 0x1001)
"""Where a message names its SOP Class and Instance (PS3.7 E.1)."""
SERVICES = {
    "C-GET": (0x0010, AFFECTED),
    "C-FIND": (0x0020, AFFECTED),
    "C-MOVE": (0x0021, AFFECTED),
    "N-EVENT-REPORT": (0x0100, AFFECTED),
    "N-GET": (0x0110, REQUESTED),
    "N-SET": (0x0120, REQUESTED),
    "N-ACTION": (0x0130, REQUESTED),
    "N-CREATE": (0x0140, AFFECTED),
    "N-DELETE": (0x0150, REQUESTED),
}


@pytest.mark.parametrize("case", SERVICES)
def test_a_service_that_is_not_ours_is_refused(scp, case):
    kind, (sop_class, sop_instance) = SERVICES[case]
    command = wire.command_set(
        element(sop_class, wire.CT),
        element(0x0100, number(kind)),
        element(0x0110, number(1)),
        element(0x0600, "ANY"),
        element(0x0700, number(0)),
        element(0x0800, number(0x0001)),
        element(sop_instance, "1.2.3"),
        element(0x1002, number(1)),
        element(0x1008, number(1)),
    )
    with Peer(scp.port).associate() as peer:
        peer.send(p_data(pdv(COMMAND | LAST, command)) + p_data(pdv(LAST, data_set())))
        said = peer.hear()
        assert said.kind == "abort" or (said.status, said.message_id) == (0xC211, 1)
    assert not scp.stored()


@pytest.mark.parametrize(
    "kind",
    [field for field, _ in SERVICES.values()]
    + [RESPONSE | field for field in (wire.STORE, wire.ECHO, 0x0010, 0x0020, 0x0021, 0x0130)],
)
def test_half_a_request_and_an_answer_to_nothing_hinder_no_c_store(scp, kind):
    command = wire.command_set(
        element(0x0100, number(kind)),
        element(0x0110, number(1)),
        element(0x0120, number(1)),
        element(0x0800, number(0x0101)),
        element(0x0900, number(0)),
    )
    with Peer(scp.port).associate() as peer:
        peer.send(p_data(pdv(COMMAND | LAST, command)))
        with contextlib.suppress(ConnectionError):
            peer.send(store(2))
        said = peer.hear()
        if said.kind == "answer":  # it was passed over
            assert (said.status, said.message_id) == (0x0000, 2)
        else:
            assert said.kind in ("abort", "closed")
            assert not scp.stored()


def test_what_comes_behind_a_release_is_not_stored(scp):
    with Peer(scp.port).associate() as peer:
        peer.send(wire.release() + store())
        assert peer.hear().kind in ("released", "abort")
        assert peer.hear().kind in ("closed", "abort")
    assert not scp.stored()


@pytest.mark.parametrize("more", [store(), wire.abort(), wire.release(), wire.associate_rq()])
def test_what_comes_behind_our_abort_is_not_stored(scp, more):
    with Peer(scp.port).associate() as peer:
        with contextlib.suppress(ConnectionError):
            peer.send(wire.associate_rq(), more)
        while (said := peer.hear()).kind != "closed":
            assert said.kind == "abort"
    assert not scp.stored()


@pytest.mark.parametrize("source", [0, 2])
def test_an_abort_ends_the_association(scp, source):
    with Peer(scp.port).associate() as peer:
        peer.send(store())
        assert peer.hear().status == 0x0000
        peer.send(wire.abort(source))
        assert peer.hear().kind == "closed"


@pytest.mark.parametrize("scp", ["ours"], indirect=True)  # pynetdicom's own thread dies of them
@pytest.mark.parametrize(
    "body",
    [bytes((0, 0, 1, 0)), bytes((0, 0, 4, 0)), bytes((0, 0, 2, 3)), b"\xff" * 4, b"", bytes(64)],
    ids=["reserved source", "unknown source", "reserved reason", "all bits", "none", "too many"],
)
def test_an_abort_that_says_nothing_known_is_an_abort(scp, body):
    with Peer(scp.port).associate() as peer:
        peer.send(wire.pdu(0x07, body))
        assert peer.hear().kind == "closed"


@pytest.mark.parametrize("scp", ["ours"], indirect=True)
def test_a_sender_that_has_no_more_to_say_hears_its_answer(scp):
    with Peer(scp.port).associate() as peer:
        peer.send(store())
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.hear().status == 0x0000  # pynetdicom hangs up, and takes it all the same
        assert peer.hear().kind == "closed"
    assert len(scp.stored()) == 1


def user_identity(kind, *, respond):
    one = UserIdentityNegotiation()
    one.user_identity_type = kind
    one.primary_field = b"somebody"
    if kind == 2:
        one.secondary_field = b"secret"
    one.positive_response_requested = respond
    return one


def extended():
    one = SOPClassExtendedNegotiation()
    one.sop_class_uid = wire.CT
    one.service_class_application_information = b"\2\0\3\0\1\0"
    return one


def common_extended():
    one = SOPClassCommonExtendedNegotiation()
    one.sop_class_uid = wire.CT
    one.service_class_uid = "1.2.840.10008.4.2"
    return one


@pytest.mark.parametrize(
    "negotiation",
    [
        (extended(), common_extended()),
        (user_identity(1, respond=False),),
        (user_identity(2, respond=True),),
        (user_identity(3, respond=True),),
        (build_role(wire.CT, scu_role=True, scp_role=True),),
    ],
    ids=["extended", "name", "name and password", "ticket", "both roles"],
)
def test_what_else_is_negotiated_hinders_nobody(scp, associate, negotiation):
    association = associate(scp.port, *negotiation)
    assert association.send_c_echo().Status == 0x0000
    (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == wire.CT)
    assert context.as_scu
    assert not any(item.server_response for item in association.acceptor.user_information
                   if isinstance(item, UserIdentityNegotiation))  # fmt: skip
