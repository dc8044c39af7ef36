"""Measure pairs a minute with more pairing workers, and filing with more receivers, on one machine.

    python benchmarks/elastic.py                      1, 2, 4 workers; 1, 2 receivers
    python benchmarks/elastic.py --size whole-body --studies 8
    python benchmarks/elastic.py --index postgresql://me@/petct     an empty database; else SQLite

Each receiver is a host of its own: a root, a spool with a name, a filing worker; they share one
queue server, one index and one archive. Half of the files goes to each, over an association each.
The clock runs from the first C-STORE to the last row. The model is that cores are all that counts:
cores / (CPU seconds an instance of the hosts' own processes); sender and servers are not in it.

Then no pair is made until `work pairing --workers N` is ready; the clock runs from the moment at
which all are wanted to the last one in its place. Up to two seconds of it are the sweeper's. The
model is the same: cores / (CPU seconds a pair), less where workers are fewer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from daemon.valkey import server_program

COMMAND = [sys.executable, "-P", "-m", "daemon"]
CORES = len(os.sched_getaffinity(0))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def process(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        one = subprocess.Popen(words, stdout=out, stderr=out)
    try:
        yield one
    finally:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)
            one.wait(150)


def settings(folder: Path, name: str, index: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        f'root = "{folder}/{name}"\n[paths]\narchive = "{folder}/archive"\n'
        f'[spool]\nname = "{name}"\n[redis]\nurl = "unix://{folder}/queue.sock"\n'
        f'[index]\nurl = "{index}"\n[pairing]\nworkers = 0\n[web]\nenabled = false\n'
    )
    return path


@contextlib.contextmanager
def host(folder: Path, name: str, index: str) -> Iterator[tuple[int, int]]:
    """Run a receiving host; yield its port and the id of its process."""
    port, log = free_port(), folder / f"{name}.log"
    config = settings(folder, name, index)
    with process([*COMMAND, "run", "--config", str(config), "--port", str(port)], log) as run:
        wait_until(lambda: "petct-ingest is ready" in log.read_text(), 120, f"host {name}")
        yield port, run.pid


class Index:
    """What is asked of the index from outside."""

    def __init__(self, url: str) -> None:
        import sqlalchemy as sa

        self._sa = sa
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def count(self, what: str) -> int:
        with self._engine.connect() as one:
            asked = f"SELECT count(*) FROM {what}"  # noqa: S608 - words of this file
            return int(one.execute(self._sa.text(asked)).scalar_one())

    def want_all(self) -> None:
        """Want every pair once more."""
        with self._engine.begin() as one:
            one.execute(
                self._sa.text("UPDATE pair SET state = 'pending', generation = generation + 1")
            )


def receive(files: list[Path], hosts: list[tuple[int, int]], index: Index) -> tuple[float, float]:
    """Send a part to each host at once; return seconds to the last row, and CPU seconds."""
    ports = [port for port, _ in hosts]
    before, loaded = index.count("instance"), sum(worked(pid) for _, pid in hosts)
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["/usr/bin/dcmsend", "127.0.0.1", str(port), *map(str, files[n :: len(ports)])],
            env={"PATH": "/usr/bin", "TCP_NODELAY": "1"},
        )
        for n, port in enumerate(ports)
    ]
    if any(one.wait() for one in senders):
        raise RuntimeError("dcmsend failed")
    wait_until(lambda: index.count("instance") == before + len(files), 600, "the last row")
    took = time.perf_counter() - began
    return took, sum(worked(pid) for _, pid in hosts) - loaded


def pair(folder: Path, config: Path, workers: int, index: Index) -> tuple[float, float]:
    """Make all pairs anew; return seconds and CPU seconds."""
    log = folder / f"pool-{workers}.log"
    words = [*COMMAND, "work", "pairing", "--workers", str(workers), "--config", str(config)]
    with process(words, log) as pool:
        wait_until(lambda: "petct-ingest is ready" in log.read_text(), 180, "the workers")
        loaded = worked(pool.pid)
        index.want_all()
        began = time.perf_counter()
        wait_until(lambda: not index.count("pair WHERE state = 'pending'"), 1800, "the pairs")
        took = time.perf_counter() - began
        time.sleep(1)  # the last child is waited for by then
        return took, worked(pool.pid) - loaded


def worked(pid: int) -> float:
    """Return the CPU seconds of a process, of its children, and of those that they waited for."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # proc(5): utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK") + sum(worked(int(child)) for child in children)


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--size", default="small")
    asked.add_argument("--studies", type=int, default=12)
    asked.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    asked.add_argument("--index", help="a PostgreSQL URL; else a file")
    asked.add_argument("--folder", type=Path, help="where to work, on the file system to measure")
    given = asked.parse_args()
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="el") as made:
        folder = Path(made)
        url = given.index or f"sqlite:///{folder}/index.sqlite"
        queue = [str(server_program()), "--port", "0", "--save", "", "--dir", made]
        with process([*queue, "--unixsocket", f"{made}/queue.sock"], folder / "queue.log"):
            return measure(folder, url, given)


def measure(folder: Path, url: str, given: argparse.Namespace) -> int:
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import write_study

    groups: list[list[Path]] = [[], []]
    for number in range(2 * given.studies):
        spec = PhantomSpec(number + 1, size=given.size)
        write_study(spec, folder / f"{number}", only=("CT IMAGES", "PET AC"))
        groups[number % 2] += sorted((folder / f"{number}").rglob("*.dcm"))
    with host(folder, "a", url) as first, host(folder, "b", url) as second:
        index = Index(url)
        for files, hosts in zip(groups, ([first], [first, second]), strict=True):
            took, spent = receive(files, hosts, index)
            print(
                f"receivers {len(hosts)}: {len(files) / took:.0f} instances/s;"
                f" {1000 * spent / len(files):.1f} ms of a core an instance,"
                f" by the model at most {CORES * len(files) / spent:.0f}/s",
                flush=True,
            )
        due = "pair WHERE state = 'pending' AND generation > done_generation"
        wait_until(lambda: index.count(due) == 2 * given.studies, 180, "the pairs to be wanted")
        rates: list[float] = []
        for workers in given.workers:
            took, spent = pair(folder, folder / "a.toml", workers, index)
            pairs = 2 * given.studies
            rates.append(60 * pairs / took)
            model = 60 * min(workers, CORES) / (spent / pairs)
            print(
                f"workers {workers}: {rates[-1]:.1f} pairs/min, {rates[-1] / rates[0]:.2f} of one;"
                f" {spent / pairs:.1f} CPU seconds a pair, by the model at most {model:.1f}/min",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
