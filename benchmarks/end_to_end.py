"""Measure from the first C-STORE to the last row in the index, against Orthanc.

    python benchmarks/end_to_end.py                600 CT of 525 KB and 600 PET of 82 KB, in turn
    python benchmarks/end_to_end.py --associations 1 4 --repeats 5 --instances 1200

DCMTK's dcmsend sends the same phantom study to each in turn, from this machine, over as many
associations as asked, TCP_NODELAY set on both sides (else each instance waits 40 ms). Ours is
`petct-ingest run` as it comes (receiver, watcher, workers, sweeper, queue server), an empty root;
the clock stops when the index holds a row for each instance. Orthanc's is fresh too, SQLite and
synchronous storage as they come: it indexes before it answers, so its clock stops with the senders,
and its REST interface must count the same.
Medians; ratios of runs in which both were measured one after the other; and what each process
spent on a core, in milliseconds an instance. `--folder DIR` is on the file system to measure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DCMTK = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """What one run took: seconds to the last answer and to the last row, CPU seconds by process."""

    instances: int
    answered: float
    indexed: float
    worked: Counter[str]


@dataclass(frozen=True)
class Peer:
    """A system that listens: its port, its first process, and how many instances it knows."""

    port: int
    pid: int
    count: Callable[[], int]


def study(folder: Path, instances: int, first_patient: int = 1) -> list[Path]:
    """Write a phantom study of CT and PET slices, half each; return its files in turn."""
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import write_study

    both = []
    for patient in range(first_patient, first_patient + -(-instances // 1200)):
        place = folder / f"{patient}"
        spec = PhantomSpec(patient, size="whole-body")
        if not place.exists():
            write_study(spec, place, only=("CT IMAGES", "PET AC"))
        series = [sorted((place / name).iterdir()) for name in ("CT IMAGES", "PET AC")]
        both += [file for pair in zip(*series, strict=True) for file in pair]
    return both[:instances]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int) -> Iterator[int]:
    """Run a server until the block ends; it listens when the block begins."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"TCP_NODELAY": "1"},  # else DCMTK's side of Orthanc waits 40 ms
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 120, command[0])
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Peer]:
    port = free_port()
    command = [sys.executable, "-P", "-m", "daemon", "run", "--port", str(port)]
    index = folder / "index.sqlite"
    with (
        serving([*command, "--root", str(folder)], port) as pid,
        contextlib.closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as connection,
    ):
        wait_until(lambda: any("filing" in name for _, name in processes(pid)), 60, "a worker")
        await_rest(pid)
        newest = "SELECT coalesce(max(id), 0) FROM instance"
        before = connection.execute(newest).fetchone()[0]
        yield Peer(port, pid, lambda: int(connection.execute(newest).fetchone()[0]) - before)


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Peer]:
    port, web = free_port(), free_port()
    rules = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomPort": port,
        "HttpPort": web,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(rules))

    def count() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/statistics") as answer:
            return int(json.load(answer)["CountInstances"])

    with serving([str(shutil.which("Orthanc")), str(folder / "orthanc.json")], port) as pid:
        yield Peer(port, pid, count)


def measure(peer: Peer, groups: list[list[Path]]) -> Run:
    """Send each group over an association of its own, all at once, and wait for the last row."""
    files = sum(map(len, groups))
    before = worked(peer.pid)
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["/usr/bin/dcmsend", "127.0.0.1", str(peer.port), *map(str, group)],
            env=DCMTK,
            stdout=subprocess.DEVNULL,
        )
        for group in groups
    ]
    failed = [one.wait() for one in senders]
    answered = time.perf_counter() - began
    if any(failed):
        raise RuntimeError(f"dcmsend: {failed}")
    wait_until(lambda: peer.count() == files, 600, "the last row")
    indexed = time.perf_counter() - began
    return Run(files, answered, indexed, worked(peer.pid) - before)


def await_rest(pid: int) -> None:
    """Wait until a system has loaded, and works on nothing more."""
    last: Counter[str] | None = None
    while (now := worked(pid)) != last:
        last = now
        time.sleep(1)


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.01)


def processes(pid: int) -> list[tuple[int, str]]:
    """Name a process and its children by what they do."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [(one, named(one)) for one in (pid, *map(int, children))]


def named(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    if "daemon" in words:
        words = [one for one in words[words.index("daemon") + 1 :] if not one.startswith("-")]
        return " ".join(words[:2]) if words[0] == "work" else words[0]
    return Path(words[0]).name


def worked(pid: int) -> Counter[str]:
    """Return the CPU seconds of a process and its children, by name."""
    spent: Counter[str] = Counter()
    for one, name in processes(pid):
        times = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        spent[name] += (int(times[11]) + int(times[12])) / _TICKS  # type: ignore[assignment]
    return spent


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--instances", type=int, default=1200)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    asked.add_argument("--only", choices=("ours", "orthanc"))
    asked.add_argument("--study", type=Path, help="where the study is kept for the next time")
    asked.add_argument("--folder", type=Path, help="on the file system to measure")
    given = asked.parse_args()
    peers = {"ours": ours, "orthanc": orthanc}
    if given.only or not shutil.which("Orthanc"):
        peers = {given.only or "ours": peers[given.only or "ours"]}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        files = study(given.study or Path(folder) / "source", given.instances)
        size = sum(path.stat().st_size for path in files) / 1e6
        print(
            f"{len(files)} instances, {size:.0f} MB, {os.cpu_count()} cores, {os.uname().release}"
        )
        for associations in given.associations:
            groups = [files[one::associations] for one in range(associations)]
            runs: dict[str, list[Run]] = {name: [] for name in peers}
            for _ in range(given.repeats):
                for name, peer in peers.items():
                    (place := Path(folder) / name).mkdir()
                    with peer(place) as one:
                        runs[name].append(measure(one, groups))
                    rate = len(files) / runs[name][-1].indexed
                    print(f"{name}: {rate:.0f} inst/s", file=sys.stderr, flush=True)
                    shutil.rmtree(place)
            report(associations, runs)
    return 0


def report(associations: int, runs: dict[str, list[Run]]) -> None:
    print(f"{associations} association{'s' * (associations > 1)}, load {os.getloadavg()[0]:.1f}")
    for name, found in runs.items():
        rates = [one.instances / one.indexed for one in found]
        behind = statistics.median(one.indexed - one.answered for one in found)
        line = f"  {name:<8} {statistics.median(rates):5.0f} inst/s indexed"
        line += f" ({min(rates):.0f}-{max(rates):.0f}), last row {behind:.2f} s behind the senders"
        if name != "ours" and "ours" in runs:
            ratios = [
                its.indexed / mine.indexed for mine, its in zip(runs["ours"], found, strict=True)
            ]
            line += f"; ours is {statistics.median(ratios):.2f}x"
            line += f" ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line)
        for process in sorted({one for run in found for one in run.worked}):
            each = statistics.median(1000 * run.worked[process] / run.instances for run in found)
            if each >= 0.005:
                print(f"    {process:<14} {each:5.2f} ms of a core an instance")


if __name__ == "__main__":
    sys.exit(main())
