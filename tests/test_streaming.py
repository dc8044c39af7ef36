"""A C-STORE goes to the spool while it arrives, in bounded memory and bounded time."""

import contextlib
import errno
import gc
import logging
import os
import socket
import threading
import time
import tracemalloc

import pytest
import wire
from conftest import an_installation
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from running import wait_until
from wire import COMMAND, LAST, Peer, p_data, pdv, store

from daemon.receiver import storing
from daemon.receiver.commands import Malformed, encode_response, parse_command
from daemon.receiver.inflow import (
    BUFFER_BYTES,
    PROGRESS_BYTES,
    ConnectionLost,
    Hopeless,
    Inflow,
    Interrupted,
)
from daemon.receiver.server import Receiver
from daemon.room import Room
from workers.spool.batches import waiting_entries

COMMAND_PDU = p_data(pdv(COMMAND | LAST, wire.store_command()))
ECHO_PDU = p_data(pdv(COMMAND | LAST, wire.echo_command(), wire.ECHO_CONTEXT))
MB = 1 << 20


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "daemon")


def with_rules(settings, **rules):
    changed = settings.receiver.model_copy(update=rules)
    return settings.model_copy(update={"receiver": changed})


@pytest.fixture
def receive(settings):
    """Start receivers with some settings changed."""
    running = []

    def start(**rules):
        running.append(Receiver(with_rules(settings, **rules), lambda _: None))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def ended(caplog):
    """How associations ended, as far as they did."""
    return [item.facts for item in caplog.records if item.message == "association-ended"]


def await_end(caplog):
    wait_until(lambda: ended(caplog), 5, "the end of the association")
    (facts,) = ended(caplog)
    return facts


def being_written(settings):
    """The size of what is being written, or None."""
    for item in settings.layout.incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if item.is_file():
                return item.stat().st_size
    return None


def few_bytes_on_the_way(receiver):
    """Let a peer that does not read be noticed soon: connections inherit the size."""
    receiver._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    receiver._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


def send_for_ever(peer, piece):
    """Send until that fails; return of what."""
    while True:
        try:
            peer.send(piece)
        except (TimeoutError, ConnectionError) as error:
            return error


def test_what_has_arrived_is_in_the_file_before_the_rest_is_sent(receive, settings):
    with Peer(receive().port).associate() as peer:
        peer.send(COMMAND_PDU, p_data(pdv(0, bytes(50_000))))
        wait_until(lambda: (being_written(settings) or 0) >= 50_000, 5)
        assert not list(waiting_entries(settings.layout))
        peer.send(p_data(pdv(LAST, bytes(50_000))))
        assert peer.hear().status == 0x0000
        assert being_written(settings) is None
        assert len(list(waiting_entries(settings.layout))) == 1


@pytest.mark.parametrize("pdu_bytes", [1 << 14, MB])
def test_an_association_holds_one_buffer_whatever_is_sent(receive, settings, pdu_bytes):
    chunk = p_data(pdv(0, bytes(pdu_bytes - 100))) * (MB // pdu_bytes)
    with Peer(receive(maximum_pdu=0).port).associate() as peer:
        peer.send(store())  # what is made once is there
        assert peer.hear().status == 0x0000
        tracemalloc.start()
        try:
            peer.send(COMMAND_PDU, *(chunk for _ in range(64)), p_data(pdv(LAST)))
            assert peer.hear().status == 0x0000
            assert tracemalloc.get_traced_memory()[1] < 4 * BUFFER_BYTES
        finally:
            tracemalloc.stop()
    sizes = sorted(
        e.where(settings.layout).stat().st_size for e in waiting_entries(settings.layout)
    )
    assert sizes[-1] > 63 * MB


def test_an_instance_beyond_the_limit_is_refused_in_the_end_and_the_next_one_taken(
    receive, settings, caplog
):
    with Peer(receive(maximum_instance_mb=1).port).associate() as peer:
        peer.send(COMMAND_PDU, *(p_data(pdv(0, bytes(100_000))) for _ in range(10)))
        wait_until(lambda: (being_written(settings) or 0) >= 1_000_000, 5)
        peer.send(p_data(pdv(0, bytes(100_000))))
        wait_until(lambda: being_written(settings) is None, 5)  # its room is given back at once
        peer.send(p_data(pdv(LAST)))
        said = peer.hear()
        assert said.status == 0xA700
        assert "maximum_instance_mb" in said.comment
        peer.send(store(2, data=bytes(MB)))
        assert peer.hear().status == 0x0000
    assert "c-store-refused" in caplog.messages


def test_a_data_set_without_end_is_cut_off(receive, settings, caplog):
    with Peer(receive(maximum_instance_mb=1).port).associate() as peer:
        peer.send(COMMAND_PDU)
        send_for_ever(peer, p_data(pdv(0, bytes(100_000))))
    assert await_end(caplog)["how"] == "a data set without end"
    assert not os.listdir(settings.layout.incoming)


def test_a_disk_that_fills_in_mid_stream_is_told_in_the_end(receive, settings, monkeypatch):
    with Peer(receive().port).associate() as peer:
        peer.send(store(1))
        assert peer.hear().status == 0x0000
        peer.send(COMMAND_PDU, p_data(pdv(0, bytes(50_000))))
        wait_until(lambda: (being_written(settings) or 0) >= 50_000, 5)

        def full(_descriptor, _data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr("workers.durable.write_whole", full)
            peer.send(p_data(pdv(0, bytes(50_000))))
            wait_until(lambda: being_written(settings) is None, 5)
        peer.send(p_data(pdv(LAST, bytes(50_000))))
        assert peer.hear().status == 0xA700
        peer.send(store(3))
        assert peer.hear().status == 0x0000
    assert len(list(waiting_entries(settings.layout))) == 2


def test_room_that_runs_out_in_mid_stream_stops_the_writing_before_the_disk_is_full(
    receive, settings, monkeypatch
):
    spool_is_full = threading.Event()

    def refusal(_room, _size, _now):
        return "no room" if spool_is_full.is_set() else None

    monkeypatch.setattr(Room, "refusal", refusal)
    with Peer(receive().port).associate() as peer:
        peer.send(COMMAND_PDU, *(p_data(pdv(0, bytes(100_000))) for _ in range(40)))
        wait_until(lambda: (being_written(settings) or 0) >= 4_000_000, 5)
        spool_is_full.set()
        peer.send(*(p_data(pdv(0, bytes(100_000))) for _ in range(storing.ROOM_BYTES // 100_000)))
        wait_until(lambda: being_written(settings) is None, 5)
        peer.send(p_data(pdv(LAST)))
        assert peer.hear().status == 0xA700


@pytest.mark.parametrize("begun", [b"\x04", COMMAND_PDU[:20], COMMAND_PDU])
def test_silence_within_a_message_ends_the_association(receive, settings, caplog, begun):
    receiver = receive(dimse_timeout_seconds=0.5)
    with Peer(receiver.port).associate() as peer:
        peer.send(begun)
        began = time.monotonic()
        assert (said := peer.hear()).kind == "abort", said
        assert time.monotonic() - began < 4
    assert await_end(caplog)["how"] == "too slow within a message"
    wait_until(lambda: not os.listdir(settings.layout.ready), 5)
    assert not os.listdir(settings.layout.incoming)


def test_dripping_bytes_do_not_keep_an_association_alive(receive, caplog):
    with Peer(receive(dimse_timeout_seconds=0.5).port).associate() as peer:
        peer.send(COMMAND_PDU, wire.pdu(0x04, pdv(0, bytes(10_000)))[:12])
        began = time.monotonic()
        while not ended(caplog) and time.monotonic() - began < 5:
            with contextlib.suppress(ConnectionError):
                peer.send(b"\0")
            time.sleep(0.02)
        assert time.monotonic() - began < 4
    assert await_end(caplog)["how"] == "too slow within a message"


def test_a_slow_link_that_gets_on_is_given_its_time(receive):
    with Peer(receive(dimse_timeout_seconds=1).port).associate() as peer:
        peer.send(COMMAND_PDU)
        for _ in range(7):
            time.sleep(0.2)  # longer than allowed in all, but never without progress
            peer.send(p_data(pdv(0, bytes(PROGRESS_BYTES))))
        peer.send(p_data(pdv(LAST)))
        assert peer.hear().status == 0x0000


def test_a_sender_under_nagles_algorithm_waits_for_no_delayed_acknowledgement(receive):
    delayed_ack_seconds = 0.04
    with Peer(receive().port).associate() as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        for number in range(40):
            if number == 20:  # Linux begins with quick acknowledgements of its own accord
                began = time.monotonic()
            peer.send(ECHO_PDU[:20], ECHO_PDU[20:40], ECHO_PDU[40:])
            assert peer.hear().status == 0x0000
        assert time.monotonic() - began < 20 * delayed_ack_seconds / 2


def test_silence_between_messages_ends_the_association_later(receive, caplog):
    receiver = receive(dimse_timeout_seconds=0.3, network_timeout_seconds=1)
    with Peer(receiver.port).associate() as peer:
        peer.send(store())
        assert peer.hear().status == 0x0000
        began = time.monotonic()
        assert (said := peer.hear()).kind == "abort"
        assert said.source == 0
        assert 0.8 < time.monotonic() - began < 5
    assert await_end(caplog)["how"] == "silent"


def test_a_peer_that_reads_no_answers_is_not_read_any_further(receive, settings, caplog):
    receiver = receive(network_timeout_seconds=1)
    few_bytes_on_the_way(receiver)
    with Peer(receiver.port) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        peer.associate()
        peer.socket.settimeout(5)
        send_for_ever(peer, ECHO_PDU * 100)
    assert await_end(caplog)["how"] == "does not read our answers"


def test_a_stop_in_mid_stream_waits_for_the_rest_and_no_longer_than_allowed(settings):
    one = Receiver(with_rules(settings, stop_seconds=1.5), lambda _: None)
    with Peer(one.port).associate() as good, Peer(one.port).associate() as bad:
        for peer in (good, bad):
            peer.send(COMMAND_PDU, p_data(pdv(0, bytes(50_000))))
        wait_until(lambda: sum(c.in_progress for c in one._associations.running) == 2, 5)
        stopping = threading.Thread(target=one.stop)
        began = time.monotonic()
        stopping.start()
        good.send(p_data(pdv(LAST)))
        assert good.hear().status == 0x0000
        assert good.hear().kind == "abort"
        good.socket.close()
        stopping.join(10)
        assert time.monotonic() - began < 4
    assert len(list(waiting_entries(settings.layout))) == 1
    assert not os.listdir(settings.layout.incoming)


def test_a_stop_interrupts_a_peer_that_reads_no_answers(settings):
    one = Receiver(with_rules(settings, stop_seconds=1.0), lambda _: None)
    few_bytes_on_the_way(one)
    with Peer(one.port) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        peer.associate()
        peer.socket.settimeout(0.3)
        send_for_ever(peer, ECHO_PDU * 50)
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 4


def test_idle_associations_cost_next_to_nothing(receive):
    receiver = receive()
    peers = [Peer(receiver.port).associate() for _ in range(10)]
    try:
        for peer in peers:
            peer.send(store())
            assert peer.hear().status == 0x0000
        began, used = time.monotonic(), time.process_time()
        time.sleep(0.5)
        # pynetdicom's two threads, looking each millisecond, take some tenths
        assert (time.process_time() - used) / (time.monotonic() - began) < 0.1
    finally:
        for peer in peers:
            peer.__exit__()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Settings for one receiver that gets many inputs."""
    return an_installation(tmp_path_factory.mktemp("fuzz") / "root")


PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda kind, body: wire.pdu(kind, body), st.integers(0, 255), st.binary(max_size=60)),
    st.builds(
        lambda control, value, context: p_data(pdv(control, value, context)),
        st.integers(0, 255),
        st.one_of(st.binary(max_size=60), st.just(wire.store_command()), st.just(b"")),
        st.sampled_from([1, 1, 1, 3, 5]),
    ),
    st.just(COMMAND_PDU),
    st.just(store()),
)


def test_no_bytes_whatever_make_the_receiver_stumble(installed, caplog):
    with Receiver(installed, lambda _: None) as receiver:

        @hypothesis_settings(
            max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(PIECES, max_size=8))
        def attempt(pieces):
            with Peer(receiver.port, seconds=5).associate() as peer:
                try:
                    peer.send(b"".join(pieces))
                    peer.socket.shutdown(socket.SHUT_WR)
                    while peer.hear().kind in ("answer", "released", "abort"):
                        pass
                except ConnectionError:
                    pass

        attempt()
        wait_until(lambda: not receiver._associations.running, 10)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert not os.listdir(installed.layout.incoming)


@given(st.one_of(st.binary(max_size=200), st.just(wire.store_command())), st.integers(0, 200))
def test_a_command_set_is_read_or_malformed(encoded, cut):
    for one in (encoded, wire.store_command()[:cut] + encoded):
        with contextlib.suppress(Malformed):
            assert parse_command(one).message_id < 65536


@given(
    st.integers(0, 65535), st.integers(0, 65535), st.text(max_size=80), st.integers(8, 300),
    st.one_of(st.none(), st.text(max_size=70)),
)  # fmt: skip
def test_an_answer_keeps_its_parts_in_pdus_of_any_size(identifier, status, comment, size, uid):
    command = parse_command(wire.store_command(identifier))
    odd = type(command)(command.field, identifier, True, uid, command.sop_instance)
    encoded = encode_response(odd, 1, status, comment, size)
    found, rest = b"", encoded
    while rest:
        length = int.from_bytes(rest[2:6], "big")
        assert length <= size
        found += rest[12 : 6 + length]
        rest = rest[6 + length :]
    elements = wire._elements(found)
    assert int.from_bytes(elements[0x0900], "little") == status
    assert int.from_bytes(elements[0x0120], "little") == identifier
    assert len(elements.get(0x0902, b"")) <= 64


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


def inflow(connection, interrupted=lambda: False, **seconds):
    given_ = {"idle_seconds": 5.0, "message_seconds": 5.0, "look_seconds": 0.01} | seconds
    one = Inflow(connection, interrupted=interrupted, **given_)
    one.wait_briefly()
    return one


def test_headers_at_the_end_of_the_buffer_are_put_together(pair):
    ours, theirs = pair
    reading = inflow(ours)
    sender = threading.Thread(target=theirs.sendall, args=(bytes(range(256)) * 4096,))
    sender.start()
    found = bytearray()
    while len(found) < 256 * 4096 - 7:
        reading.need(7)
        found += reading.peek(7)
        reading.skip(7)
    found += reading.take(256 * 4096 - len(found))
    sender.join()
    assert found == bytes(range(256)) * 4096


def test_a_wait_ends_by_silence_by_the_peer_or_by_us(pair):
    ours, theirs = pair
    with pytest.raises(Hopeless, match="silent"):
        inflow(ours, idle_seconds=0.03).need(1)
    with pytest.raises(Interrupted):
        inflow(ours, interrupted=lambda: True).need(1)
    theirs.close()
    with pytest.raises(ConnectionLost):
        inflow(ours).need(1)


def test_a_buffer_goes_with_its_association(receive):
    receiver = receive()
    gc.collect()
    gc.disable()  # pynetdicom's threads hang in reference cycles
    tracemalloc.start()
    try:
        for last_word in (wire.release(), wire.abort(), b"", b"garbage"):
            for _ in range(3):
                with Peer(receiver.port).associate() as peer:
                    peer.send(store(), last_word)
                    assert peer.hear().status == 0x0000
        wait_until(lambda: not receiver._server.active_associations, 5)
        ours = tracemalloc.Filter(inclusive=True, filename_pattern="*/inflow.py")
        held = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
        assert sum(one.size for one in held) < BUFFER_BYTES
    finally:
        tracemalloc.stop()
        gc.enable()


def test_an_error_of_ours_ends_one_association_alone(receive, settings, monkeypatch):
    receiver = receive()
    with Peer(receiver.port).associate() as good, Peer(receiver.port).associate() as peer:
        peer.send(COMMAND_PDU, p_data(pdv(0, bytes(1000))))
        wait_until(lambda: being_written(settings), 5)
        with monkeypatch.context() as patch:
            patch.setattr(storing.AssociationStore, "finish", lambda _: 1 / 0)
            peer.send(p_data(pdv(LAST)))
            assert peer.hear().kind == "abort"
        wait_until(lambda: len(receiver._associations.running) == 1, 5)
        assert being_written(settings) is None
        good.send(store())
        assert good.hear().status == 0x0000
