"""The receiver against real peers: DCMTK and pynetdicom, a full disk, a kill, a stop."""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from io import BytesIO

import pytest
from conftest import missing
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from running import Running, running, wait_until
from wire import Peer, release, store

from daemon.receiver import storing
from daemon.receiver.access import plain_address
from daemon.receiver.server import Receiver, port_file, run_receiver
from workers import durable
from workers.phantom.study import write_many
from workers.spool.batches import Unpublished, read_source, waiting_entries

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
PRIVATE_CLASS = "1.3.46.670589.11.0.0.12.1"
PRIVATE_SYNTAX = "1.2.840.113619.5.2"

# /usr/bin, because pynetdicom installs a slow storescu of its own beside Python;
# TCP_NODELAY, because DCMTK waits 40 ms for each answer without it
DCMTK = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1", "DCMDICTPATH": ""}


def need_dcmtk(name):
    if shutil.which(name, path=DCMTK["PATH"]) is None:
        missing("DCMTK")


def dcmtk(*words, check=True):
    need_dcmtk(words[0])
    environment = {name: value for name, value in DCMTK.items() if value}
    done = subprocess.run(
        [str(word) for word in words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "daemon")


@pytest.fixture
def offered():
    return []


@pytest.fixture
def receiver(settings, offered):
    with Receiver(settings, offered.append) as one:
        yield one


@pytest.fixture
def connect(receiver):
    """Make associations of pynetdicom's; those that are left open are aborted."""
    with connecting(receiver.port) as make:
        yield make


@contextlib.contextmanager
def connecting(port):
    made = []
    sockets = []

    def make(*contexts, calling="SCANNER", called="PETCT_INGEST"):
        entity = AE(ae_title=calling)
        entity.acse_timeout = entity.network_timeout = 30
        entity.dimse_timeout = 3  # how long a sender waits when its association has gone
        for abstract_syntax, *syntaxes in contexts or [(CT, EXPLICIT)]:
            entity.add_requested_context(abstract_syntax, syntaxes)
        made.append(entity.associate("127.0.0.1", port, ae_title=called))
        sockets.append(made[-1].dul.socket.socket)
        return made[-1]

    try:
        yield make
    finally:
        for association in made:
            if association.is_established:
                association.abort()
            if association.is_alive():
                association.join(5)
        for one in sockets:
            if one is not None:
                one.close()  # pynetdicom leaves it open where the peer was faster


def data_set(number=1, size=64):
    """An explicit little endian data set: SOPInstanceUID, PatientID, and some bytes."""
    uid = instance_uid(number).encode()
    uid += b"\0" * (len(uid) % 2)
    return b"".join(
        (
            b"\x08\x00\x18\x00UI" + len(uid).to_bytes(2, "little") + uid,
            b"\x10\x00\x20\x00LO\x06\x00SECRET",
            b"\xe0\x7f\x10\x00OB\x00\x00"
            + size.to_bytes(4, "little")
            + bytes([number % 256]) * size,
        )
    )


def instance_uid(number):
    return f"1.2.3.4.{number}"


def request(number=1, sop_class=CT, data=None):
    message = C_STORE()
    message.MessageID = number % 65536
    message.AffectedSOPClassUID = UID(sop_class)
    message.AffectedSOPInstanceUID = UID(instance_uid(number))
    message.Priority = 2
    message.DataSet = BytesIO(data_set(number) if data is None else data)
    return message


def send(association, number=1, **options):
    """Send one C-STORE as it stands, whatever is in it; return the answer or None."""
    if not association.is_established:
        return None
    context = association.accepted_contexts[0].context_id
    association._reactor_checkpoint.clear()
    try:
        wait_until(lambda: association._is_paused, 5)
        association.dimse.send_msg(request(number, **options), context)
        return association.dimse.get_msg(block=True)[1]
    finally:
        association._reactor_checkpoint.set()


def fragments(association, message):
    """The P-DATA of one message, not yet sent."""
    whole = C_STORE_RQ()
    whole.primitive_to_message(message)
    context = association.accepted_contexts[0].context_id
    return list(whole.encode_msg(context, 4096))


def entries(settings):
    return [entry.where(settings.layout) for entry in waiting_entries(settings.layout)]


def nothing_is_left(settings):
    layout = settings.layout
    return not os.listdir(layout.incoming) and not os.listdir(layout.ready)


def test_dcmtk_is_answered_to_its_echo(receiver, settings):
    dcmtk("echoscu", "127.0.0.1", receiver.port)
    wait_until(lambda: nothing_is_left(settings), 5)


def test_what_storescu_sends_is_in_the_spool_whole(receiver, settings, offered, tmp_path):
    files = write_many(tmp_path / "files", 12)
    dcmtk("storescu", "127.0.0.1", receiver.port, "+sd", "+r", tmp_path / "files")
    spooled = [dcmread(path) for path in entries(settings)]
    assert sorted(item.SOPInstanceUID for item in spooled) == sorted(files)
    for item in spooled:
        sent = dcmread(files[item.SOPInstanceUID])
        assert item.PixelData == sent.PixelData
        assert item.file_meta.MediaStorageSOPInstanceUID == item.SOPInstanceUID
        assert item.file_meta.SourceApplicationEntityTitle == "STORESCU"
    assert sorted(entry.where(settings.layout) for entry in offered) == sorted(entries(settings))


def test_four_senders_at_once_are_served_each_in_a_batch_of_its_own(receiver, settings, tmp_path):
    need_dcmtk("dcmsend")  # here, not in a thread, where a skip would be an error
    sent = {}
    for number in range(1, 5):
        sent |= write_many(tmp_path / str(number), 25, patient_number=number)
    senders = [
        threading.Thread(
            target=dcmtk,
            args=("dcmsend", "127.0.0.1", receiver.port, "+sd", "+r", tmp_path / str(number)),
        )
        for number in range(1, 5)
    ]
    for one in senders:
        one.start()
    for one in senders:
        one.join()
    found = entries(settings)
    assert sorted(dcmread(path).SOPInstanceUID for path in found) == sorted(sent)
    assert len({path.parent for path in found}) == 4


def test_the_bytes_of_the_data_set_are_kept_as_received(connect, settings):
    association = connect()
    odd = data_set() + b"\x00"  # nobody decodes it here
    assert send(association, data=odd).Status == 0x0000
    (path,) = entries(settings)
    assert path.read_bytes().endswith(odd)
    assert path.read_bytes()[128:132] == b"DICM"
    assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == EXPLICIT
    association.release()


def test_a_batch_says_where_it_came_from(connect, settings):
    association = connect(calling="SCANNER", called="ANOTHER_NAME")
    send(association)
    (entry,) = waiting_entries(settings.layout)
    source = read_source(settings.layout, entry.batch)
    assert (source.kind, source.calling_ae) == ("association", "SCANNER")
    assert (source.called_ae, source.address) == ("ANOTHER_NAME", "127.0.0.1")
    association.release()


def test_the_peer_of_an_ipv6_socket_is_named_as_ipv4():
    assert plain_address("::ffff:10.0.0.7") == "10.0.0.7"
    assert plain_address("fe80::1") == "fe80::1"


def test_private_classes_and_syntaxes_are_kept(connect, settings):
    association = connect((PRIVATE_CLASS, PRIVATE_SYNTAX))
    assert send(association, sop_class=PRIVATE_CLASS, data=b"\1\2private").Status == 0x0000
    (path,) = entries(settings)
    assert path.read_bytes().endswith(b"\1\2private")
    meta = read_file_meta_info(path)
    assert (meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID) == (PRIVATE_CLASS, PRIVATE_SYNTAX)
    association.release()


def test_worklist_and_query_are_refused_and_storage_of_every_kind_is_not(connect):
    storage = [CT, PRIVATE_CLASS, "1.2.840.10008.5.1.4.38.1", "1.2.840.10008.5.1.4.1.1.999"]
    others = ["1.2.840.10008.5.1.4.31", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.20.2"]
    association = connect(*[(uid, IMPLICIT) for uid in storage + others])
    assert {context.abstract_syntax for context in association.accepted_contexts} == set(storage)
    assert {context.abstract_syntax for context in association.rejected_contexts} == set(others)
    assert {context.result for context in association.rejected_contexts} == {3}
    association.release()


def test_of_what_is_offered_the_lossless_syntax_is_taken(connect):
    association = connect((CT, JPEG_BASELINE, "1.2.840.10008.1.2.2", EXPLICIT, IMPLICIT))
    (context,) = association.accepted_contexts
    assert context.transfer_syntax == [EXPLICIT]
    association.release()


def test_a_lossy_syntax_is_taken_where_nothing_else_is_offered(connect):
    association = connect((CT, JPEG_BASELINE))
    assert association.accepted_contexts[0].transfer_syntax == [JPEG_BASELINE]
    association.release()


@pytest.mark.parametrize("step", ["create_new", "fsync_folder"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_out_of_resources_and_the_association_goes_on(
    connect, settings, offered, monkeypatch, step, number
):
    association = connect()

    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(durable, step, fail)
        assert send(association, 1).Status == 0xA700
        assert nothing_is_left(settings)
    assert send(association, 2).Status == 0x0000
    with monkeypatch.context() as patch:
        patch.setattr(durable, step, fail)
        assert send(association, 3).Status == 0xA700
    assert send(association, 4).Status == 0x0000
    assert not os.listdir(settings.layout.incoming)
    acknowledged = {entry.path for entry in offered}
    assert len(acknowledged) == 2
    association.release()


def test_a_write_that_stops_in_the_middle_leaves_nothing(connect, settings, monkeypatch):
    association = connect()
    assert send(association, 1).Status == 0x0000
    written = os.write

    def write_some(descriptor, view):
        if len(view) > 1000:
            written(descriptor, view[:500])
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, view)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        patch.setattr(os, "writev", lambda file, pieces: write_some(file, b"".join(pieces)))
        assert send(association, 2, data=data_set(2, size=5000)).Status == 0xA700
    assert not os.listdir(settings.layout.incoming)
    assert len(entries(settings)) == 1
    association.release()


@pytest.mark.parametrize("key", ["minimum_free_mb", "minimum_free_inodes"])
def test_low_space_is_out_of_resources_before_anything_is_written(settings, key):
    spool = settings.spool.model_copy(update={key: 1 << 50})
    settings = settings.model_copy(update={"spool": spool})
    with Receiver(settings, pytest.fail) as one, connecting(one.port) as connect:
        association = connect()
        answer = send(association)
        assert answer.Status == 0xA700
        assert answer.ErrorComment
        association.release()
        assert nothing_is_left(settings)


def test_a_receiver_started_on_a_full_disk_listens_and_writes_its_port_down_later(
    settings, monkeypatch
):
    full = threading.Event()
    full.set()
    really = durable.replace_file

    def replace_file(*words):
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(*words)

    monkeypatch.setattr("daemon.receiver.server.replace_file", replace_file)
    with Receiver(settings, pytest.fail) as one, connecting(one.port) as connect:
        assert connect().is_established
        assert not port_file(settings.layout).exists()
        full.clear()
        stop = threading.Event()
        waiting = threading.Thread(target=one.wait, args=(stop,))
        waiting.start()
        wait_until(port_file(settings.layout).exists, what="the port")
        stop.set()
        waiting.join()


@pytest.mark.parametrize("identity", ["missing", "another"])
def test_a_spool_that_is_not_ours_takes_nothing_until_it_is_back(connect, settings, identity):
    association = connect()
    assert send(association, 1).Status == 0x0000
    file = settings.layout.spool_private / "id"
    kept = file.read_text()
    file.unlink()
    if identity == "another":
        file.write_text("0" * 32)
    # a look counts for 0.2 s; what is stored meanwhile lies on the disk that is still there
    wait_until(lambda: send(association, 2).Status == 0xA700, 5)
    kept_entries = entries(settings)
    assert send(association, 2).Status == 0xA700
    assert entries(settings) == kept_entries
    file.write_text(kept)
    wait_until(lambda: send(association, 3).Status == 0x0000, 5)
    association.release()


def test_a_fresh_spool_without_identity_takes_nothing(settings):
    (settings.layout.spool_private / "id").unlink()
    with Receiver(settings, pytest.fail) as one, connecting(one.port) as connect:
        association = connect()
        assert send(association).Status == 0xA700
        association.release()


def test_an_unexpected_error_is_answered_and_the_association_goes_on(
    connect, settings, monkeypatch, caplog
):
    association = connect()
    with monkeypatch.context() as patch:
        patch.setattr(storing, "file_head", lambda *_: 1 / 0)
        assert send(association, 1).Status == 0xC211
    assert send(association, 2).Status == 0x0000
    assert "c-store-failed" in caplog.messages
    assert len(entries(settings)) == 1
    association.release()


def hostile(association, number, **elements):
    """Send a C-STORE with other elements in its command set; return the answer."""
    whole = C_STORE_RQ()
    whole.primitive_to_message(request(number))
    for keyword, value in elements.items():
        with contextlib.suppress(AttributeError):
            del whole.command_set[keyword]
        if value is not None:
            setattr(whole.command_set, keyword, value)
    context = association.accepted_contexts[0].context_id
    association._reactor_checkpoint.clear()
    try:
        wait_until(lambda: association._is_paused, 5)
        for part in whole.encode_msg(context, 16384):
            association.dul.send_pdu(part)
        return association.dimse.get_msg(block=True)[1]
    finally:
        association._reactor_checkpoint.set()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
@pytest.mark.parametrize("keyword", ["AffectedSOPInstanceUID", "AffectedSOPClassUID"])
@pytest.mark.parametrize("value", ["", "9" * 65, ["1.2", "1.3"]])
def test_a_uid_that_no_file_can_hold_is_answered_with_a_failure(
    connect, settings, caplog, keyword, value
):
    association = connect()
    answer = hostile(association, 1, **{keyword: value})
    assert answer.Status == 0xC000
    assert keyword in answer.ErrorComment
    assert nothing_is_left(settings)
    assert send(association, 2).Status == 0x0000
    assert "c-store-refused" in caplog.messages
    association.release()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("value", ["../../etc/passwd", "1.2/3", "not-a-uid"])
def test_a_uid_that_names_a_path_is_kept_under_a_number(connect, settings, value):
    association = connect()
    assert hostile(association, 1, AffectedSOPInstanceUID=value).Status == 0x0000
    (path,) = entries(settings)
    assert path.parent.parent == settings.layout.ready
    assert path.name == "00000001"
    association.release()


def test_an_association_aborted_in_mid_data_leaves_nothing(connect, settings):
    association = connect()
    parts = fragments(association, request(1, data=data_set(1, size=100_000)))
    for part in parts[: len(parts) // 2]:
        association.dul.send_pdu(part)
    association.abort()
    wait_until(lambda: nothing_is_left(settings), 5)


def test_a_connection_lost_in_mid_data_leaves_what_was_acknowledged(connect, settings, caplog):
    association = connect()
    assert send(association, 1).Status == 0x0000
    parts = fragments(association, request(2, data=data_set(2, size=100_000)))
    for part in parts[: len(parts) // 2]:
        association.dul.send_pdu(part)
    wait_until(lambda: association.dul.to_provider_queue.empty(), 5)
    association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: "association-ended" in caplog.messages, 5)
    ended = next(item for item in caplog.records if item.message == "association-ended")
    assert (ended.facts["how"], ended.facts["stored"]) == ("connection lost", 1)
    assert len(entries(settings)) == 1
    assert not os.listdir(settings.layout.incoming)


def test_an_association_beyond_the_limit_is_rejected_and_the_reason_is_logged(settings, caplog):
    limited = settings.receiver.model_copy(update={"maximum_associations": 2})
    settings = settings.model_copy(update={"receiver": limited})
    with Receiver(settings, print) as one, connecting(one.port) as connect:
        first, second, third = connect(), connect(), connect()
        wait_until(lambda: third.is_rejected, 5, "the answer to reach its requestor")
        assert send(first, 1).Status == send(second, 2).Status == 0x0000
        first.release()
        second.release()
    rejected = next(item for item in caplog.records if item.message == "association-rejected")
    assert "imit" in rejected.facts["reason"]


def test_logs_name_no_patient_and_no_uid(connect, caplog):
    association = connect()
    send(association, 1)
    association.release()
    wait_until(lambda: "association-ended" in caplog.messages, 5)
    facts = [getattr(item, "facts", {}) for item in caplog.records if item.levelname != "DEBUG"]
    words = json.dumps(facts, default=str)
    assert "SCANNER" in words
    assert "SECRET" not in words
    assert instance_uid(1) not in words


@contextlib.contextmanager
def slow_disk(monkeypatch):
    """No entry is published at once; yields two events: one waits, and go on (set by the test)."""
    writing, go = threading.Event(), threading.Event()
    real = Unpublished.publish

    def publish_slowly(entry):
        writing.set()
        assert go.wait(20)
        return real(entry)

    with monkeypatch.context() as patch:
        patch.setattr(Unpublished, "publish", publish_slowly)
        try:
            yield writing, go
        finally:
            go.set()


def test_an_instance_is_answered_before_anything_is_done_with_it(settings):
    heard = []

    def offer(entry):
        heard.append(peer.hear().status)

    with Receiver(settings, offer) as one, Peer(one.port) as peer:
        peer.associate().send(store())
        wait_until(lambda: heard, 5, "the instance is handed on")
        assert heard == [0x0000]
        peer.send(release())
        assert peer.hear().kind == "released"


def test_an_instance_is_handed_on_though_its_sender_has_gone_before_the_answer(
    receiver, offered, settings, monkeypatch, caplog
):
    with slow_disk(monkeypatch) as (writing, go), Peer(receiver.port) as peer:
        peer.associate().send(store())
        assert writing.wait(20)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()  # with a reset
        go.set()
        wait_until(lambda: "association-ended" in caplog.messages, 5)
    assert [entry.where(settings.layout) for entry in offered] == entries(settings)


class InBackground(threading.Thread):
    """Run something beside the test; `result()` gives what it returned."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self._work = work
        self.start()

    def run(self):
        self.value = self._work()

    def result(self, seconds=20):
        self.join(seconds)
        assert not self.is_alive()
        return self.value


def refuses_connections(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_stop_lets_a_c_store_that_is_being_written_finish(settings, monkeypatch):
    one = Receiver(settings, lambda _: None)
    with connecting(one.port) as connect:
        association = connect()
        with slow_disk(monkeypatch) as (writing, go):
            answer = InBackground(lambda: send(association, 1))
            assert writing.wait(10)
            stopping = InBackground(one.stop)
            wait_until(lambda: refuses_connections(one.port), 5)
            assert stopping.is_alive()
            go.set()
            assert answer.result().Status == 0x0000
            stopping.result()
        wait_until(lambda: association.is_aborted, 5)
    assert len(entries(settings)) == 1


def test_a_stop_lets_a_c_store_that_is_being_received_finish(settings):
    one = Receiver(settings, lambda _: None)
    with connecting(one.port) as connect:
        association = connect()
        parts = fragments(association, request(1, data=data_set(1, size=100_000)))
        association._reactor_checkpoint.clear()
        wait_until(lambda: association._is_paused, 5)
        for part in parts[:-1]:
            association.dul.send_pdu(part)
        (conversation,) = one._associations.running
        wait_until(lambda: conversation.in_progress, 5)
        stopping = InBackground(one.stop)
        wait_until(lambda: refuses_connections(one.port), 5)
        association.dul.send_pdu(parts[-1])
        assert association.dimse.get_msg(block=True)[1].Status == 0x0000
        association._reactor_checkpoint.set()
        stopping.result()
    assert len(entries(settings)) == 1


def test_a_stop_ends_a_sender_that_never_pauses_and_keeps_what_was_acknowledged(settings, offered):
    one = Receiver(settings, offered.append)
    acknowledged = []

    def send_on(association):
        for number in range(1, 100_000):
            answer = send(association, number)
            if answer is None:
                return
            assert answer.Status == 0x0000
            acknowledged.append(number)

    with connecting(one.port) as connect:
        association = connect()
        sender = InBackground(lambda: send_on(association))
        wait_until(lambda: len(acknowledged) > 20, 10)
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 3
        sender.join(10)
    assert len(acknowledged) <= len(entries(settings)) <= len(acknowledged) + 1
    assert not os.listdir(settings.layout.incoming)


def test_a_stop_does_not_wait_longer_than_allowed_for_a_peer_that_stalls(settings):
    short = settings.receiver.model_copy(update={"stop_seconds": 1.0})
    one = Receiver(settings.model_copy(update={"receiver": short}), pytest.fail)
    with connecting(one.port) as connect:
        association = connect()
        parts = fragments(association, request(1, data=data_set(1, size=100_000)))
        association.dul.send_pdu(parts[0])
        (conversation,) = one._associations.running
        wait_until(lambda: conversation.in_progress, 5)
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 3.5
    assert nothing_is_left(settings)


def test_the_port_is_written_down_while_the_receiver_listens(settings):
    file = port_file(settings.layout)
    with Receiver(settings, lambda _: None) as one:
        assert int(file.read_text()) == one.port
        assert not refuses_connections(one.port)
    assert not file.exists()


def test_callers_that_hang_up_before_they_ask_leave_nothing_behind(receiver, settings):
    for _ in range(20):
        assert not refuses_connections(receiver.port)
    wait_until(lambda: not receiver._server.active_associations, 5)
    dcmtk("echoscu", "127.0.0.1", receiver.port)


def test_a_stop_does_not_wait_for_a_caller_that_says_nothing(settings):
    one = Receiver(settings, pytest.fail)
    with socket.create_connection(("127.0.0.1", one.port)) as silent:
        wait_until(lambda: len(one._server.lobby), 5)
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 3
        assert not one._server.active_associations
        assert silent.recv(1) == b""


def test_a_port_in_use_is_said_and_tried_again(settings, caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = settings.receiver.model_copy(update={"port": port})
        settings = settings.model_copy(update={"receiver": taken})
        stop = threading.Event()
        running = InBackground(lambda: run_receiver(settings, stop))
        wait_until(lambda: "port-unavailable" in caplog.messages, 5)
    try:
        wait_until(lambda: "receiver-listens" in caplog.messages, 10)
        dcmtk("echoscu", "127.0.0.1", port)
    finally:
        stop.set()
        running.result()
    said = next(item for item in caplog.records if item.message == "port-unavailable")
    assert "in use" in said.facts["reason"]


SERVE = """
import signal, sys, threading
from pathlib import Path
from config.logs import configure_logging
from config.settings import load_settings
from daemon.receiver.server import run_receiver

settings = load_settings(
    root=Path(sys.argv[1]),
    overrides={"receiver": {"port": 0}, "spool": {"minimum_free_mb": 1, "minimum_free_inodes": 1}},
    environ={},
)
configure_logging(settings.logging)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run_receiver(settings, stop)
heavy = {"sqlalchemy", "SimpleITK", "matplotlib", "workers.index", "workers.filing"}
print("loaded", sorted(heavy & set(sys.modules)))
"""


def serving(settings, tmp_path):
    return running([sys.executable, "-P", "-c", SERVE, str(settings.root)], tmp_path / "process")


def port_of(settings, process):
    process.await_output("receiver-listens")
    return int(port_file(settings.layout).read_text())


def test_the_receiver_as_a_process_loads_nothing_heavy_and_stops_on_sigterm(settings, tmp_path):
    with serving(settings, tmp_path) as process:
        dcmtk("echoscu", "127.0.0.1", port_of(settings, process))
        assert process.end(signal.SIGTERM) == 0
        assert process.stdout.strip() == "loaded []"


def test_a_kill_loses_nothing_that_was_acknowledged(settings, tmp_path):
    acknowledged = []
    with serving(settings, tmp_path) as process:
        port = port_of(settings, process)

        def send_on(association, base):
            for number in range(base, base + 10_000):
                answer = send(association, number, data=data_set(number, size=20_000))
                if answer is None:
                    return
                acknowledged.append(number)

        with connecting(port) as connect:
            senders = [
                InBackground(functools.partial(send_on, connect(), base))
                for base in (1, 20_001, 40_001)
            ]
            wait_until(lambda: len(acknowledged) > 150, 20)
            process.process.kill()
            process.process.wait(10)
            for one in senders:
                one.join(20)
    found = {dcmread(path).SOPInstanceUID: path for path in entries(settings)}
    for number in acknowledged:
        body = found[instance_uid(number)].read_bytes()
        assert body.endswith(data_set(number, size=20_000))


def test_a_socket_handed_over_by_systemd_is_used_and_stays_open(settings, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as handed:
        port = handed.getsockname()[1]
        script = 'exec 3<&"$1"; shift; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        command = [sys.executable, "-P", "-c", SERVE, str(settings.root)]
        os.set_inheritable(handed.fileno(), True)
        starter = ["bash", "-c", script, "handover", str(handed.fileno()), *command]
        process = start_with_fd(starter, tmp_path / "process", handed.fileno())
        try:
            assert port_of(settings, process) == port
            assert "socket=inherited" in process.stderr
            dcmtk("echoscu", "127.0.0.1", port)
            assert process.end(signal.SIGTERM) == 0
        finally:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait(10)
        # callers wait in the backlog for the receiver that comes next
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def start_with_fd(arguments, folder, descriptor):
    real = subprocess.Popen

    def keeping(*words, **options):
        return real(*words, pass_fds=(descriptor,), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", keeping)
        return Running(arguments, folder)
