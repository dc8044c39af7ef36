"""Fifty peers at once, twenty of them misbehaving: the good ones finish, nothing grows."""

import contextlib
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wire
from conftest import missing
from pydicom import dcmread
from running import running, wait_until
from wire import COMMAND, LAST, Peer, p_data, pdv, store

from daemon.receiver.server import port_file
from workers.phantom.study import write_many
from workers.spool.batches import batch_names, entries_of, read_source

GOOD = 30
INSTANCES = 40
MOST_GROWTH_MB = 200

SERVE = """
import signal, sys, threading
from pathlib import Path
from config.logs import configure_logging
from config.settings import load_settings
from daemon.receiver.server import run_receiver

settings = load_settings(
    root=Path(sys.argv[1]),
    overrides={
        "receiver": {
            "port": 0,
            "maximum_associations": 200,
            "maximum_associations_per_peer": 200,
            "maximum_instance_mb": 16,
            "acse_timeout_seconds": 2,
            "dimse_timeout_seconds": 2,
            "network_timeout_seconds": 30,
        },
        "spool": {"minimum_free_mb": 1, "minimum_free_inodes": 1},
    },
    environ={},
)
configure_logging(settings.logging)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run_receiver(settings, stop)
"""

COMMAND_PDU = p_data(pdv(COMMAND | LAST, wire.store_command()))


def drip(peer, sent, done):
    for one in sent:
        peer.send(bytes([one]))
        if done.wait(0.1):
            return


def until_cut_off(peer, done):
    """Stay until the receiver has had enough."""
    peer.socket.settimeout(0.2)
    while not done.is_set():
        with contextlib.suppress(TimeoutError):
            if not peer.socket.recv(1 << 16):
                return


def drips_its_request(peer, done):
    drip(peer, wire.associate_rq(), done)


def drips_its_data(peer, done):
    peer.associate().send(COMMAND_PDU)
    drip(peer, wire.pdu(0x04, bytes(5000)), done)


def stops_within_a_pdu(peer, done):
    peer.associate().send(COMMAND_PDU[:30])
    until_cut_off(peer, done)


def announces_a_huge_pdu(peer, done):
    peer.associate().send(b"\x04\0\xff\xff\xff\xff", bytes(1 << 16))
    until_cut_off(peer, done)


def asks_with_a_huge_pdu(peer, done):
    peer.send(b"\x01\0\xff\xff\xff\xff", bytes(1 << 16))
    until_cut_off(peer, done)


def sends_data_without_end(peer, done):
    peer.associate().send(COMMAND_PDU)
    piece = p_data(pdv(0, bytes(100_000)))
    while not done.is_set():
        peer.send(piece)
        time.sleep(0.005)  # the good ones have the same two cores and the same disk


def reads_no_answers(peer, done):
    peer.associate()
    while not done.is_set():
        peer.send(store() * 20)


def aborts_in_mid_data(peer, done):
    peer.associate().send(COMMAND_PDU, p_data(pdv(0, bytes(50_000))), wire.abort())
    until_cut_off(peer, done)
    done.wait(0.02)


def says_nothing(peer, done):
    until_cut_off(peer, done)


def says_garbage(peer, done):
    peer.associate().send(bytes(range(7, 256)) * 50)
    until_cut_off(peer, done)
    done.wait(0.02)


def names_wrong_contexts(peer, done):
    peer.associate().send(store(context=77))
    until_cut_off(peer, done)
    done.wait(0.02)


def storms_with_releases(peer, done):
    peer.associate().send(wire.release() * 500)
    until_cut_off(peer, done)
    done.wait(0.02)


BAD = [
    drips_its_request,
    drips_its_data,
    drips_its_data,
    stops_within_a_pdu,
    stops_within_a_pdu,
    announces_a_huge_pdu,
    announces_a_huge_pdu,
    asks_with_a_huge_pdu,
    sends_data_without_end,
    sends_data_without_end,
    reads_no_answers,
    reads_no_answers,
    aborts_in_mid_data,
    aborts_in_mid_data,
    says_nothing,
    says_nothing,
    says_garbage,
    names_wrong_contexts,
    storms_with_releases,
    storms_with_releases,
]


def misbehave(how, port, done, rounds):
    """Do it again and again while the others work."""
    while not done.is_set():
        with contextlib.suppress(OSError, AssertionError, struct.error), Peer(port, 3) as peer:
            how(peer, done)
        rounds[how.__name__] = rounds.get(how.__name__, 0) + 1


class Usage:
    """What a process holds."""

    def __init__(self, pid):
        self._proc = Path(f"/proc/{pid}")

    def _status(self, name):
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
        raise KeyError(name)

    @property
    def memory_mb(self):
        return self._status("VmRSS:") / 1024

    @property
    def peak_mb(self):
        return self._status("VmHWM:") / 1024

    @property
    def threads(self):
        return self._status("Threads:")

    @property
    def descriptors(self):
        return len(list((self._proc / "fd").iterdir()))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_good_senders_finish_among_twenty_that_misbehave(settings, tmp_path):
    if shutil.which("dcmsend", path="/usr/bin") is None:
        missing("DCMTK")
    sent = {}
    for number in range(1, GOOD + 1):
        sent |= write_many(tmp_path / f"files{number}", INSTANCES, patient_number=number)
    command = [sys.executable, "-P", "-c", SERVE, str(settings.root)]
    with running(command, tmp_path / "process") as process:
        process.await_output("receiver-listens")
        port = int(port_file(settings.layout).read_text())
        usage = Usage(process.pid)
        threads = usage.threads
        with Peer(port).associate() as peer:  # what is made once is made
            peer.send(store(), wire.release())
            assert peer.hear().status == 0x0000
            assert peer.hear().kind == "released"
        with Peer(port) as peer:
            peer.send(b"no request at all")
            assert peer.hear().kind == "abort"
        # a thread writes the notes of who was refused
        wait_until(lambda: usage.threads <= threads + 1, 10, "the end of the first association")
        before = (threads + 1, usage.descriptors)
        memory = usage.memory_mb

        done, rounds = threading.Event(), {}
        crowd = [threading.Thread(target=misbehave, args=(how, port, done, rounds)) for how in BAD]
        for one in crowd:
            one.start()
        try:
            senders = [
                subprocess.Popen(
                    [
                        *("/usr/bin/dcmsend", "-aet", f"GOOD{number}", "127.0.0.1", str(port)),
                        *("+sd", "+r", str(tmp_path / f"files{number}")),
                    ],
                    env={"TCP_NODELAY": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for number in range(1, GOOD + 1)
            ]
            began = time.monotonic()
            assert [one.wait(120) for one in senders] == [0] * GOOD
            seconds = time.monotonic() - began
            # and a while more, so that timeouts are met and everybody has had several turns
            wait_until(lambda: min(rounds.get(how.__name__, 0) for how in BAD) >= 1, 60)
        finally:
            done.set()
            for one in crowd:
                one.join(20)
        growth = usage.peak_mb - memory
        print(f"\n{GOOD * INSTANCES / seconds:.0f} good instances/s, +{growth:.0f} MB, {rounds}")
        assert growth < MOST_GROWTH_MB
        wait_until(lambda: usage.threads <= before[0], 20, "the end of threads")
        wait_until(lambda: usage.descriptors <= before[1], 20, "closed connections")
        assert process.process.poll() is None
        assert "c-store-failed" not in process.stderr
        assert "Traceback" not in process.stderr
    good = [
        entry.where(settings.layout)
        for batch in batch_names(settings.layout)
        if read_source(settings.layout, batch).calling_ae.startswith("GOOD")
        for entry in entries_of(settings.layout, batch)
    ]
    found = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in good]
    assert sorted(found) == sorted(sent)
