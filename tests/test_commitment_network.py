"""Storage commitment over the network, with a peer made of pynetdicom.

DCMTK has no client for it (Debian 12: none of its programs sends an N-ACTION of this class).
"""

import contextlib
import json
import logging
import queue
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace
from io import BytesIO

import pytest
from installation import Installation, free_port
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification
from running import petct, running, wait_until

from config.tables.intake import CommitmentSettings, PeerSettings
from daemon.receiver import reporting
from daemon.receiver.established import MOST_HANDED_OVER_BYTES
from daemon.receiver.server import Receiver
from workers import clock
from workers.commitment import transactions
from workers.commitment.transactions import (
    MOST_REFERENCES,
    Ending,
    Reference,
    State,
    Transaction,
    Transactions,
)
from workers.phantom.study import write_many
from workers.spool.batches import BatchSource

MODEL = StorageCommitmentPushModel
INSTANCE = "1.2.840.10008.1.20.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
NO_FILING = "valkey,sweep,receive"


@dataclass(frozen=True)
class Report:
    """One N-EVENT-REPORT that came."""

    transaction: str
    event_type: int
    committed: tuple[str, ...]
    failed: dict[str, int]
    listener: bool
    """It came to our listener, not on the association that asked."""


class Peer:
    """A PACS: stores, asks, and hears results on its own associations and on its listener."""

    def __init__(self, port, title="PACS"):
        self.title = title
        self.port = port
        self.listens_at = free_port()
        self.reports = queue.Queue()
        self.answers = [0x0000]
        self.roles = []
        self._open = []
        self._server = None

    def associate(self, *more, syntax=EXPLICIT):
        entity = AE(ae_title=self.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        entity.add_requested_context(CTImageStorage, EXPLICIT)
        entity.add_requested_context(Verification)
        entity.add_requested_context(MODEL, syntax)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._hear, [False])]
        association = entity.associate(
            "127.0.0.1", self.port, ae_title="PETCT_INGEST", evt_handlers=handlers
        )
        assert association.is_established
        self._open.append((association, association.dul.socket.socket))
        return association

    def listen(self):
        entity = AE(ae_title=self.title)
        entity.add_supported_context(MODEL, scu_role=True, scp_role=True)
        self._server = entity.start_server(
            ("127.0.0.1", self.listens_at),
            block=False,
            evt_handlers=[
                (evt.EVT_N_EVENT_REPORT, self._hear, [True]),
                (evt.EVT_ACCEPTED, self._accepted),
            ],
        )

    def close(self):
        for association, connection in self._open:
            if association.is_established:
                association.abort()
            association.join(5)
            connection.close()
        if self._server is not None:
            self._server.shutdown()

    def _accepted(self, event):
        requestor = event.assoc.requestor
        role = requestor.role_selection[MODEL]
        called = requestor.primitive.called_ae_title
        self.roles.append((requestor.ae_title, called, role.scu_role, role.scp_role))

    def _hear(self, event, listener):
        data = event.event_information
        self.reports.put(
            Report(
                data.TransactionUID,
                event.event_type,
                tuple(
                    one.ReferencedSOPInstanceUID for one in data.get("ReferencedSOPSequence", ())
                ),
                {
                    one.ReferencedSOPInstanceUID: one.FailureReason
                    for one in data.get("FailedSOPSequence", ())
                },
                listener,
            )
        )
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]), None

    def next_report(self, seconds=30):
        return self.reports.get(timeout=seconds)


def asking(references, uid="1.2.3"):
    """The Action Information of a request: (class, instance) pairs."""
    data = Dataset()
    data.TransactionUID = uid
    items = []
    for sop_class, sop_instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = sop_instance
        items.append(item)
    data.ReferencedSOPSequence = items
    return data


def ask(association, references, uid="1.2.3", **parts):
    """Send an N-ACTION and return its status."""
    parts = {"data": asking(references, uid), "action": 1, "instance": INSTANCE} | parts
    # pynetdicom takes an earlier pause of its other thread for this one, or misses one altogether
    association._reactor_checkpoint.clear()
    wait_until(
        lambda: association._reactor_checkpoint._cond._waiters or not association.is_established, 10
    )
    association._is_paused = True
    status, _ = association.send_n_action(parts["data"], parts["action"], MODEL, parts["instance"])
    return status.get("Status")


@pytest.fixture
def peer_of():
    """Make peers that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(port, title="PACS"):
            return stack.enter_context(contextlib.closing(Peer(port, title)))

        yield make


def knowing(*peers):
    """The settings' environment that names where peers listen; "localhost" is looked up."""
    table = [{"ae_title": one.title, "host": "localhost", "port": one.listens_at} for one in peers]
    return {"PETCT_INGEST_COMMITMENT__PEERS": json.dumps(table)}


def store(association, paths):
    for path in paths:
        assert association.send_c_store(dcmread(path)).Status == 0x0000


# real runs --------------------------------------------------------------------------------------


def test_a_pacs_stores_and_asks_and_may_delete_only_what_is_safe(tmp_path, peer_of):
    one = Installation(tmp_path)
    files = write_many(tmp_path / "made", 27)
    uids = list(files)
    peer = peer_of(one.port)
    peer.listen()
    with one.run(**knowing(peer)):
        association = peer.associate()
        store(association, files.values())
        twenty = [(CTImageStorage, uid) for uid in uids[:20]]
        assert ask(association, twenty, "1.2.1") == 0x0000
        assert peer.next_report() == Report("1.2.1", 1, tuple(uids[:20]), {}, listener=False)

        assert ask(association, twenty, "1.2.2") == 0x0000
        association.release()
        assert peer.next_report() == Report("1.2.2", 1, tuple(uids[:20]), {}, listener=True)
        assert peer.roles == [("PETCT_INGEST", "PACS", False, True)]

        spoil(one, peer, files)
        again = peer.associate(syntax=IMPLICIT)
        references = [(CTImageStorage, uid) for uid in uids]
        references[25] = (MR, uids[25])
        assert ask(again, [*references, (CTImageStorage, "1.2.3.4")], "1.2.4") == 0x0000
        report = peer.next_report()
        assert (report.event_type, report.listener) == (2, False)
        assert report.committed == tuple(uids[5:25])
        assert report.failed == dict.fromkeys(uids[:5], 0x0110) | {
            uids[25]: 0x0119,
            uids[26]: 0x0110,
            "1.2.3.4": 0x0112,
        }
        wait_until(lambda: len(kinds(one)) == 9, 20, f"nine events: {kinds(one)}")
    told = ("commitment-requested", "commitment-decided", "commitment-reported")
    assert sorted(kinds(one)) == sorted(told * 3)


def kinds(one):
    return [kind for (kind,) in one.ask("select kind from event where kind like 'commitment-%'")]


def spoil(one, peer, files):
    """Make of the first five and the last one what must not be committed."""
    uids = list(files)
    (path,) = one.layout.archive.rglob(f"{uids[0]}.dcm")
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    (path,) = one.layout.archive.rglob(f"{uids[26]}.dcm")
    path.unlink()
    association = peer.associate()
    conflict, variant, dropped = (dcmread(files[uid]) for uid in uids[1:4])
    conflict.PixelData = bytes(len(conflict.PixelData))
    variant.PatientComments = "corrected"
    dropped.PixelData = bytes(len(dropped.PixelData))
    for dataset in (conflict, variant, dropped):
        assert association.send_c_store(dataset).Status == 0x0000
    unreadable = dcmread(files[uids[4]])
    del unreadable.StudyInstanceUID
    assert association.send_c_store(unreadable).Status == 0x0000
    association.release()
    wait_until(lambda: one.arrived() == len(files) + 4)
    outcomes = dict(one.ask("select instance_uid, outcome from arrival where outcome != 'filed'"))
    assert outcomes == dict(
        zip(uids[1:5], ("conflict", "variant", "conflict", "quarantined"), strict=True)
    )
    ((entry,),) = one.ask(
        "select entry from arrival where instance_uid = ? and outcome = 'conflict'", uids[3]
    )
    command = ["quarantine", "drop", entry, "--yes", "--root", one.root]
    with running(petct(*command), one.folder / "drop") as process:
        assert process.process.wait(20) == 0


def test_a_request_outlives_a_kill_and_waits_for_filing_and_for_its_peer(tmp_path, peer_of):
    one = Installation(tmp_path)
    files = write_many(tmp_path / "made", 3)
    references = [(CTImageStorage, uid) for uid in files]
    peer = peer_of(one.port)
    with one.run("--roles", NO_FILING, **knowing(peer)) as process:
        association = peer.associate()
        store(association, files.values())
        assert ask(association, references) == 0x0000
        wait_until(lambda: kinds(one) == ["commitment-requested"])
        process.end(signal.SIGKILL)  # and all that it started dies with it
    kept = Transactions(one.layout)
    assert len(kept.keys(State.REQUEST)) == 1
    with one.run(**knowing(peer)) as process:
        process.await_output("commitment-peer-away")
        assert len(kept.keys(State.RESULT)) == 1
        peer.listen()
        assert peer.next_report() == Report("1.2.3", 1, tuple(files), {}, listener=True)
        wait_until(lambda: "commitment-reported" in kinds(one))
    assert sorted(kinds(one)) == [
        "commitment-decided",
        "commitment-reported",
        "commitment-requested",
    ]
    assert not list(one.layout.commitment.iterdir())


# the receiver alone: what it takes, and how it delivers -----------------------------------------


@pytest.fixture
def receiver(settings):
    with Receiver(settings, lambda _: None) as one:
        yield one


@pytest.fixture
def peer(receiver, peer_of):
    return peer_of(receiver.port)


@pytest.fixture
def asked(settings):
    """The transactions of this receiver."""
    return Transactions(settings.layout)


def decide(asked):
    """Do the sweeper's part for every request: commit to all of it."""
    for key in asked.keys(State.REQUEST):
        found = asked.read(key, State.REQUEST)
        reasons = (0,) * len(found.references)
        asked.write(replace(found, decided_at=clock.utc_now(), reasons=reasons), State.RESULT)


def missing_item():
    data = asking([(CTImageStorage, "1.2.3")])
    del data.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    return data


def without(keyword):
    data = asking([(CTImageStorage, "1.2.3")])
    del data[keyword]
    return data


HOSTILE = {
    "another action": ({"action": 2}, 0x0123),
    "another instance": ({"instance": "1.2.840.10008.1.20.1.2"}, 0x0112),
    "no data set": ({"data": None}, 0x0120),
    "no transaction": ({"data": without("TransactionUID")}, 0x0120),
    "no sequence": ({"data": without("ReferencedSOPSequence")}, 0x0120),
    "an empty sequence": ({"data": asking([])}, 0x0121),
    "an item without an instance": ({"data": missing_item()}, 0x0120),
    "an empty UID": ({"data": asking([(CTImageStorage, "")])}, 0x0121),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_request_that_is_none_is_refused_and_leaves_nothing(case, peer, asked):
    parts, status = HOSTILE[case]
    association = peer.associate()
    assert ask(association, [], **parts) == status
    assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0000
    assert len(asked.keys(State.REQUEST)) == 1


def element(number, vr, value):
    length = struct.pack("<HL" if vr == b"SQ" else "<H", *((0,) if vr == b"SQ" else ()), len(value))
    return struct.pack("<HH", 0x0008, number) + vr + length + value


def references(count):
    """A request of so many references, encoded in explicit little endian."""
    uids = element(0x1150, b"UI", b"1.2\0") + element(0x1155, b"UI", b"1.2\0")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(uids)) + uids
    return element(0x1195, b"UI", b"1.2\0") + element(0x1199, b"SQ", item * count)


def send_bytes(association, data):
    """Send an N-ACTION with these bytes; return its status, None where there was no answer."""
    request = N_ACTION()
    request.MessageID = 7
    request.RequestedSOPClassUID = MODEL
    request.RequestedSOPInstanceUID = INSTANCE
    request.ActionTypeID = 1
    request.ActionInformation = BytesIO(data)
    (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == MODEL)
    association._reactor_checkpoint.clear()
    try:
        wait_until(lambda: association._is_paused, 5)
        association.dimse.send_msg(request, context.context_id)
        answer = association.dimse.get_msg(block=True)[1]
        return answer and answer.Status
    finally:
        association._reactor_checkpoint.set()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (references(2), 0x0000),
        (references(MOST_REFERENCES + 1), 0x0213),
        (references(100_000), 0x0213),
        (references(3)[:-5], 0x0115),
        (b"\xff" * 1000, 0x0115),
    ],
    ids=["two", "too many", "very many", "cut", "noise"],
)
def test_whatever_bytes_come_there_is_an_answer(data, status, peer, asked):
    association = peer.associate()
    assert send_bytes(association, data) == status
    assert ask(association, [(CTImageStorage, "1.2.3")], "1.2.77") == 0x0000
    assert len(asked.keys(State.REQUEST)) == (2 if status == 0 else 1)


def test_a_request_without_end_is_cut_off(peer, asked):
    association = peer.associate()
    assert send_bytes(association, bytes(MOST_HANDED_OVER_BYTES + (1 << 20))) is None
    wait_until(lambda: association.is_aborted)
    assert asked.keys(State.REQUEST) == []


def test_the_same_request_again_is_one_and_another_under_its_uid_is_refused(peer, asked):
    association = peer.associate()
    some = [(CTImageStorage, "1.2.3"), (CTImageStorage, "1.2.4")]
    assert [ask(association, some), ask(association, some)] == [0x0000, 0x0000]
    assert ask(association, some[:1]) == 0x0115
    assert len(asked.keys(State.REQUEST)) == 1
    decide(asked)
    assert peer.next_report().committed == ("1.2.3", "1.2.4")
    wait_until(lambda: asked.keys(State.ENDED))
    assert ask(association, some[:1]) == 0x0000  # that one has ended


def test_what_cannot_be_made_durable_is_not_taken(peer, asked, settings, monkeypatch):
    association = peer.associate()
    monkeypatch.setattr(transactions, "MOST_TRANSACTIONS", 0)
    assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0213
    monkeypatch.undo()
    settings.layout.commitment.rmdir()
    assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0213
    settings.layout.commitment.mkdir()
    assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0000


def test_where_it_is_switched_off_the_service_is_not_offered(settings, peer_of):
    off = settings.model_copy(update={"commitment": CommitmentSettings(enabled=False)})
    with Receiver(off, lambda _: None) as receiver:
        association = peer_of(receiver.port).associate()
        assert MODEL not in {one.abstract_syntax for one in association.accepted_contexts}


# delivery ---------------------------------------------------------------------------------------


def listening(settings, *peers, hours=24.0):
    """The settings that name where peers listen."""
    table = tuple(
        PeerSettings(ae_title=one.title, host="127.0.0.1", port=one.listens_at) for one in peers
    )
    commitment = CommitmentSettings(peers=table, retry_hours=hours)
    return settings.model_copy(update={"commitment": commitment})


def a_result(layout, title="PACS", uid="1.2.3", decided_at=None):
    """Lay down a result as an earlier receiver and sweeper left it."""
    source = BatchSource("association", title, "PETCT_INGEST", "127.0.0.1")
    one = Transaction(
        uid,
        source,
        clock.utc_now(),
        (Reference(CTImageStorage, "1.2.3"), Reference(CTImageStorage, "1.2.4")),
        decided_at=decided_at or clock.utc_now(),
        reasons=(0, 0x0112),
    )
    Transactions(layout).write(one, State.RESULT)


def ending(asked):
    (key,) = wait_until(lambda: asked.keys(State.ENDED))
    return asked.read(key, State.ENDED).ending


def test_reports_go_out_while_their_peer_goes_on_asking_other_things(peer, asked):
    association = peer.associate()
    for number in range(1, 6):
        assert ask(association, [(CTImageStorage, f"1.2.{number}")], f"1.9.{number}") == 0x0000
    decide(asked)
    echoes = 0
    while peer.reports.qsize() < 5:
        assert association.send_c_echo().Status == 0x0000
        echoes += 1
    assert echoes > 5
    assert {peer.next_report().transaction for _ in range(5)} == {f"1.9.{n}" for n in range(1, 6)}
    wait_until(lambda: len(asked.keys(State.ENDED)) == 5)


def test_a_peer_that_refuses_a_report_gets_it_on_an_association_of_ours(
    settings, peer_of, monkeypatch
):
    monkeypatch.setattr(reporting, "_FIRST_RETRY_SECONDS", 0.1)
    peer = peer_of(0)
    peer.listen()
    peer.answers = [0x0110, 0x0110, 0x0000]
    with Receiver(listening(settings, peer), lambda _: None) as receiver:
        peer.port = receiver.port
        association = peer.associate()
        assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0000
        decide(Transactions(settings.layout))
        assert [peer.next_report().listener for _ in range(3)] == [False, True, True]
        assert ending(Transactions(settings.layout)) == Ending.NEW_ASSOCIATION


def test_a_result_goes_to_nobody_but_the_peer_that_asked(peer, peer_of, asked, settings):
    stranger = peer_of(peer.port, "STRANGER")
    stranger.associate()
    a_result(settings.layout)
    time.sleep(4 * reporting._LOOK_SECONDS)  # nothing happens that could be awaited
    assert stranger.reports.empty()
    peer.associate()  # a later association of the one that asked
    assert peer.next_report().failed == {"1.2.4": 0x0112}
    assert stranger.reports.empty()
    assert ending(asked) == Ending.SAME_ASSOCIATION


def test_a_peer_that_does_not_answer_keeps_nobody_else_waiting(settings, peer_of):
    silent, lively = peer_of(0, "SILENT"), peer_of(0, "LIVELY")
    lively.listen()
    with socket.create_server(("127.0.0.1", silent.listens_at)):  # takes calls, says nothing
        a_result(settings.layout, "SILENT", "1.2.1")
        a_result(settings.layout, "LIVELY", "1.2.2")
        with Receiver(listening(settings, silent, lively), lambda _: None):
            assert lively.next_report(5).transaction == "1.2.2"
    assert Transactions(settings.layout).keys(State.RESULT)


# a socket that nobody answered is left to the garbage collector by pynetdicom, which warns
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_result_that_nobody_takes_is_given_up_after_its_hours(settings, peer_of):
    peer = peer_of(0)
    a_result(settings.layout, decided_at="2020-01-01T00:00:00.000Z")
    with Receiver(listening(settings, peer), lambda _: None):
        assert ending(Transactions(settings.layout)) == Ending.GIVEN_UP


def test_a_result_for_a_peer_without_an_address_is_kept_and_said_once(
    settings, caplog, monkeypatch
):
    monkeypatch.setattr(reporting, "_FIRST_RETRY_SECONDS", 0.1)
    a_result(settings.layout)
    asked = Transactions(settings.layout)
    with caplog.at_level(logging.WARNING, "daemon"), Receiver(settings, lambda _: None):
        wait_until(lambda: "commitment-peer-unknown" in caplog.messages)
        time.sleep(1)  # it is tried again, and said no more
    assert caplog.messages.count("commitment-peer-unknown") == 1
    assert asked.keys(State.RESULT)


def test_a_stop_does_not_wait_for_a_peer_that_says_nothing(settings, peer_of):
    peer = peer_of(0)
    hold = threading.Event()
    with Receiver(settings, lambda _: None) as receiver:
        peer.port = receiver.port
        association = peer.associate()
        association.unbind(evt.EVT_N_EVENT_REPORT, peer._hear)
        association.bind(evt.EVT_N_EVENT_REPORT, lambda _: (int(not hold.wait(20)), None))
        assert ask(association, [(CTImageStorage, "1.2.3")]) == 0x0000
        decide(Transactions(settings.layout))
        wait_until(_reporting)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    hold.set()
    assert Transactions(settings.layout).keys(State.RESULT)


def _reporting():
    return [one for one in threading.enumerate() if one.name == "commitment-report"]


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 2), (2, 4), (5, 32), (9, 512), (10, 600), (50, 600)]
)
def test_a_peer_is_tried_ever_more_rarely(failures, seconds):
    backoff = reporting.Backoff()
    for _ in range(failures):
        backoff.failed(100)
    assert backoff.next_at == 100 + seconds
    backoff.reset()
    assert backoff.next_at < 0
