"""Measure how many instances a second are acknowledged, against DCMTK storescp and Orthanc.

    python benchmarks/receive.py                   CT of 525 KB and PET of 80 KB, half each
    python benchmarks/receive.py --instances 1200 --repeats 5 --associations 1 4 16

DCMTK's dcmsend sends the same files from this machine to each in turn, over as many associations
as asked, its TCP_NODELAY set; the time is that of the senders, start to end. Ours answers when an
instance is durable (fsync of the file, then of its folder); storescp answers when it has written;
Orthanc (where it is installed; fresh database, default storage) indexes too; `disk` is one process
that makes the same files durable and does nothing else. Medians, and ratios of each run in which
all were measured one after the other. `--folder /dev/shm` shows the cost without a disk.
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
from collections.abc import Iterator
from pathlib import Path

DCMTK = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
SERVE = """
import signal, sys, threading
from pathlib import Path
from config.settings import load_settings
from daemon.receiver.server import run_receiver
from workers.identity import give_identity

rules = {"receiver": {"port": int(sys.argv[2])}, "spool": {"minimum_free_mb": 1}}
settings = load_settings(root=Path(sys.argv[1]), overrides=rules, environ={})
settings.layout.make_private()
give_identity(settings.layout.spool)
give_identity(settings.layout.archive)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run_receiver(settings, stop)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def stamped(folder: Path, count: int) -> list[Path]:
    """Write `count` instances, CT and PET in turn, that differ in their SOPInstanceUID."""
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import instance

    whole = []
    for series in ("CT IMAGES", "PET AC"):
        data_set = instance(PhantomSpec(size="whole-body"), series, 0)
        encoded = io.BytesIO()
        data_set.save_as(encoded, enforce_file_format=True)
        whole.append((encoded.getvalue(), str(data_set.SOPInstanceUID).encode()))
    files = []
    for number in range(count):
        content, uid = whole[number % 2]
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
        end = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not listen")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[int]:
    port = free_port()
    with serving([sys.executable, "-P", "-c", SERVE, str(folder / "root"), str(port)], port):
        yield port


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[int]:
    port = free_port()
    command = ["/usr/bin/storescp", "--fork", "-pdu", "131072", "-od", str(folder), str(port)]
    with serving(command, port, **DCMTK):
        yield port


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[int]:
    port = free_port()
    rules = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomPort": port,
        "HttpServerEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(rules))
    with serving([str(shutil.which("Orthanc")), str(folder / "orthanc.json")], port):
        yield port


def send(port: int, groups: list[list[Path]]) -> float:
    """Send each group over an association of its own, all at once; return seconds."""
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["/usr/bin/dcmsend", "127.0.0.1", str(port), *map(str, group)],
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


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--instances", type=int, default=600)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    asked.add_argument("--only", choices=("ours", "storescp", "orthanc"))
    asked.add_argument("--folder", type=Path, help="on the file system to measure")
    given = asked.parse_args()
    peers = {"ours": ours, "storescp": storescp}
    if shutil.which("Orthanc"):
        peers["orthanc"] = orthanc
    if given.only:
        peers = {given.only: peers[given.only]}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        (source := Path(folder) / "source").mkdir()
        files = stamped(source, given.instances)
        size = sum(path.stat().st_size for path in files) / 1e6
        print(f"{len(files)} instances, {size:.0f} MB, {os.cpu_count()} cores")
        for associations in given.associations:
            groups = [files[one::associations] for one in range(associations)]
            rates: dict[str, list[float]] = {name: [] for name in (*peers, "disk")}
            for _ in range(given.repeats):
                for name, peer in peers.items():
                    (place := Path(folder) / name).mkdir()
                    with peer(place) as port:
                        rates[name].append(len(files) / send(port, groups))
                    shutil.rmtree(place)
                (place := Path(folder) / "disk").mkdir()
                rates["disk"].append(len(files) / disk_alone(place, files))
                shutil.rmtree(place)
            report(associations, rates)
    return 0


def report(associations: int, rates: dict[str, list[float]]) -> None:
    for name, found in rates.items():
        line = f"{associations:2d} associations  {name:<9} {statistics.median(found):5.0f} inst/s"
        line += f"  ({min(found):.0f}-{max(found):.0f})"
        if name != "ours" and "ours" in rates:
            ratios = [mine / its for mine, its in zip(rates["ours"], found, strict=True)]
            line += f"  ours is {statistics.median(ratios):.2f}x"
            line += f" ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
