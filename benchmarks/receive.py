"""Measure how many instances a second are acknowledged, against DCMTK storescp and Orthanc.

    python benchmarks/receive.py                                 1 and 4 associations, CT and PET
    python benchmarks/receive.py --associations 1 4 16 --pdu 16384 131072 --load ct pet mixed
    python benchmarks/receive.py --only ours --split             where the time of an instance goes

DCMTK's dcmsend sends the same files from this machine to each in turn, over as many associations
as asked, in PDUs of at most `--pdu` bytes; the time is that of the senders, start to end. DCMTK's
TCP_NODELAY is set for it, for storescp and for Orthanc: without, each instance costs them 40 ms.
Ours answers when an instance is durable (fsync of the file, then of its folder); storescp answers
when it has written; Orthanc (fresh database, default synchronous storage) indexes too; `disk` is
one process that makes the same files durable as we do, and does nothing else. Medians, the spread,
and ratios of each run in which all were measured one after the other. `--folder /dev/shm` shows the
cost without a disk.

The peers: `apt-get install dcmtk orthanc`, and `systemctl disable --now orthanc` where it starts a
server of its own. Whoever is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

DCMTK = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
LOADS = {"ct": ("CT IMAGES",), "pet": ("PET AC",), "mixed": ("CT IMAGES", "PET AC")}
"""Series of the phantom: CT of 525 KB, PET of 80 KB an instance."""

SERVE = """
import signal, sys, threading
from pathlib import Path
from config.settings import load_settings
from daemon.receiver.server import run_receiver
from workers.identity import give_identity

rules = {
    "receiver": {"port": int(sys.argv[2]), "maximum_pdu": int(sys.argv[3])},
    "spool": {"minimum_free_mb": 1},
}
settings = load_settings(root=Path(sys.argv[1]), overrides=rules, environ={})
settings.layout.make_private()
give_identity(settings.layout.spool)
give_identity(settings.layout.archive)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run_receiver(settings, stop)
"""
TIMED = """
import json, os, sys, threading, time, types
from daemon.receiver import established, inflow, storing
from workers import durable
from workers.spool import batches

seconds = {}
inner = threading.local()  # what was timed within: it is not counted twice

def timed(owner, name, word):
    call = getattr(owner, name)
    def clocked(*given, **options):
        began, within = time.perf_counter(), getattr(inner, "took", 0.0)
        inner.took = 0.0
        try:
            return call(*given, **options)
        finally:
            took = time.perf_counter() - began
            seconds[word] = seconds.get(word, 0.0) + took - inner.took
            inner.took = within + took
    setattr(owner, name, clocked)

batches.os = types.SimpleNamespace(**vars(os))  # its file and its rename, and nobody else's
timed(durable, "create_new", "create")
timed(durable, "name_new", "create")
timed(durable, "write_pieces", "write")
timed(batches.os, "fsync", "fsync")
timed(batches.os, "rename", "rename")
timed(durable, "fsync_folder", "folder")
timed(inflow.Inflow, "comes", "receive")
timed(inflow.Inflow, "send", "answer")
timed(storing.AssociationStore, "settle", "behind the answer")
timed(established.EstablishedPhase, "_converse", "all")
"""
TOLD = """
seconds["parse and all else"] = seconds.pop("all")
Path(sys.argv[4]).write_text(json.dumps(seconds))
"""

Peer = Callable[[Path, int], AbstractContextManager[int]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def stamped(folder: Path, count: int, series: tuple[str, ...] = LOADS["mixed"]) -> list[Path]:
    """Write `count` instances, of each series in turn, that differ in their SOPInstanceUID."""
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import instance

    whole = []
    for one in series:
        data_set = instance(PhantomSpec(size="whole-body"), one, 0)
        encoded = io.BytesIO()
        data_set.save_as(encoded, enforce_file_format=True)
        whole.append((encoded.getvalue(), str(data_set.SOPInstanceUID).encode()))
    files = []
    for number in range(count):
        content, uid = whole[number % len(whole)]
        path = folder / f"{number:06d}.dcm"
        path.write_bytes(content.replace(uid, uid[:-7] + f"{1_000_000 + number}".encode()))
        files.append(path)
    return files


@contextlib.contextmanager
def serving(command: list[str], port: int, **environment: str) -> Iterator[int]:
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not listen")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def ours(folder: Path, pdu: int = 131072, split: Path | None = None) -> Iterator[int]:
    port = free_port()
    code = SERVE if split is None else TIMED + SERVE + TOLD
    words = [folder / "root", port, pdu, *([split] if split else [])]
    with serving([sys.executable, "-P", "-c", code, *map(str, words)], port):
        yield port


@contextlib.contextmanager
def storescp(folder: Path, pdu: int = 131072) -> Iterator[int]:
    port = free_port()
    command = ["/usr/bin/storescp", "--fork", "-pdu", str(pdu), "-od", str(folder), str(port)]
    with serving(command, port, **DCMTK):
        yield port


@contextlib.contextmanager
def orthanc(folder: Path, pdu: int = 131072) -> Iterator[int]:
    port = free_port()
    rules = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomPort": port,
        "HttpServerEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "MaximumPduLength": pdu,
    }
    (folder / "orthanc.json").write_text(json.dumps(rules))
    with serving([str(shutil.which("Orthanc")), str(folder / "orthanc.json")], port, **DCMTK):
        yield port


def send(port: int, groups: list[list[Path]], pdu: int = 131072) -> float:
    """Send each group over an association of its own, all at once; return seconds."""
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["/usr/bin/dcmsend", "--max-send-pdu", str(pdu), "127.0.0.1", str(port)]
            + [str(path) for path in group],
            env=DCMTK,
            stdout=subprocess.DEVNULL,
        )
        for group in groups
    ]
    failed = [one.wait() for one in senders]
    if any(failed):
        raise RuntimeError(f"dcmsend: {failed}")
    return time.perf_counter() - began


def disk_alone(place: Path, files: list[Path]) -> float:
    """Make the same files durable one by one, with nothing else; return seconds."""
    contents = [path.read_bytes() for path in files]
    folder = os.open(place, os.O_RDONLY)
    began = time.perf_counter()
    for number, content in enumerate(contents):
        new = place / f"{number}.new"
        with new.open("xb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        new.rename(place / f"{number}")
        os.fsync(folder)
    seconds = time.perf_counter() - began
    os.close(folder)
    return seconds


@contextlib.contextmanager
def emptied(place: Path) -> Iterator[Path]:
    """Give each run a folder of its own, and let what it wrote be on disk before the next."""
    place.mkdir()
    yield place
    shutil.rmtree(place)
    os.sync()


def measure(
    peers: dict[str, Peer], files: list[Path], associations: int, pdu: int, repeats: int, top: Path
) -> dict[str, list[float]]:
    """Return instances a second of each peer in each run, and of the bare disk."""
    groups = [files[one::associations] for one in range(associations)]
    rates: dict[str, list[float]] = {name: [] for name in (*peers, "disk")}
    for _ in range(repeats):
        for name, peer in peers.items():
            with emptied(top / name) as place, peer(place, pdu) as port:
                rates[name].append(len(files) / send(port, groups, pdu))
        with emptied(top / "disk") as place:
            rates["disk"].append(len(files) / disk_alone(place, files))
    return rates


def report(title: str, rates: dict[str, list[float]]) -> None:
    for name, found in rates.items():
        line = f"{title}  {name:<9} {statistics.median(found):5.0f} inst/s"
        line += f"  ({min(found):.0f}-{max(found):.0f})"
        if name != "ours" and "ours" in rates:
            ratios = [mine / its for mine, its in zip(rates["ours"], found, strict=True)]
            line += f"  ours is {statistics.median(ratios):.2f}x"
            line += f" ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line, flush=True)


def split(files: list[Path], pdu: int, repeats: int, top: Path) -> None:
    """Print where the time of one instance goes in the receiver, over one association."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        with emptied(top / "split") as place:
            told = place / "split.json"
            with ours(place, pdu, told) as port:
                send(port, [files], pdu)
            for word, seconds in json.loads(told.read_text()).items():
                found.setdefault(word, []).append(1000 * seconds / len(files))
    for word, each in sorted(found.items()):
        print(
            f"{word:<18} {statistics.median(each):6.2f} ms an instance"
            f"  ({min(each):.2f}-{max(each):.2f})"
        )


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--instances", type=int, default=600)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    asked.add_argument("--pdu", type=int, nargs="+", default=[131072])
    asked.add_argument("--load", choices=LOADS, nargs="+", default=["mixed"])
    asked.add_argument("--only", choices=("ours", "storescp", "orthanc"))
    asked.add_argument("--split", action="store_true", help="our own time, by what it is spent on")
    asked.add_argument("--folder", type=Path, help="on the file system to measure")
    given = asked.parse_args()
    peers: dict[str, Peer] = {"ours": ours, "storescp": storescp, "orthanc": orthanc}
    if not shutil.which("Orthanc"):
        del peers["orthanc"]
    if given.only:
        peers = {given.only: peers[given.only]}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        top = Path(folder)
        for load in given.load:
            with emptied(top / "source") as source:
                files = stamped(source, given.instances, LOADS[load])
                size = sum(path.stat().st_size for path in files) / 1e6
                print(
                    f"{load}: {len(files)} instances, {size:.0f} MB, {os.cpu_count()} cores,",
                    end="",
                )
                print(f" load {os.getloadavg()[0]:.1f}", flush=True)
                for pdu in given.pdu:
                    if given.split:
                        split(files, pdu, given.repeats, top)
                        continue
                    for associations in given.associations:
                        rates = measure(peers, files, associations, pdu, given.repeats, top)
                        report(f"{associations:2d} associations, PDU {pdu >> 10:3d} KB", rates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
