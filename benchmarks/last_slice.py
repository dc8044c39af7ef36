"""Measure the time from the last slice on the wire to the pair, against the pair's bare parts.

    python benchmarks/last_slice.py                      600 CT of 512x512, then 600 PET of 200x200
    python benchmarks/last_slice.py --size total-body    1,000 CT of 512x512, 645 PET of 440x440

A whole system (`petct-ingest run`, settings as they come) takes the study from DCMTK's dcmsend, the
CT first. The clock runs from the moment at which the last slice was durable in the spool, which is
before its C-STORE is answered, to the moment at which the pair stands in its place. Bare are the
parts of benchmarks/pair.py: decode every slice, resample the CT onto the PET with SimpleITK, save
two arrays; in a process of their own, in the same run. Also told: where the time went. Exits 1
above twice the bare parts.
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
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pair import measure, written

MOST = 2.0
"""Times the bare parts."""
STAGES = ("filed", "decided", "ready")


@contextlib.contextmanager
def system(root: Path) -> Iterator[int]:
    """Run everything below a new root; yields the port of its receiver."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = int(one.getsockname()[1])
    words = root.with_suffix(".log")
    with words.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon", "run", "--root", root, "--port", str(port)],
            stdout=log,
            stderr=log,
            env=os.environ | {"PETCT_INGEST_SPOOL__MINIMUM_FREE_MB": "100"},
        )
    try:
        end = time.monotonic() + 180
        while b"petct-ingest is ready" not in words.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(words.read_text())
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def send(port: int, study: Path) -> None:
    """Send the CT, then the PET, over one association, in the order of their names."""
    files = [
        str(path) for name in ("CT IMAGES", "PET AC") for path in sorted((study / name).iterdir())
    ]
    subprocess.run(
        ["/usr/bin/dcmsend", "-aec", "PETCT_INGEST", "127.0.0.1", str(port), *files],
        check=True,
        env={"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
    )


def pair_row(root: Path) -> dict[str, float] | None:
    """Return the times (wall, s) of the last slice and its stages, once the pair is ready."""
    question = """select max(arrival.received_at) received, max(arrival.at) filed,
                         max(pair.decided_at) decided, max(pair.ready_at) ready
                  from arrival, pair where pair.state = 'ready'"""
    with contextlib.closing(
        sqlite3.connect(f"file:{root}/index.sqlite?mode=ro", uri=True, timeout=30)
    ) as index:
        index.row_factory = sqlite3.Row
        row = index.execute(question).fetchone()
    if row["ready"] is None:
        return None
    return {name: datetime.fromisoformat(row[name]).timestamp() for name in row.keys()}  # noqa: SIM118


def one_run(place: Path, study: Path) -> dict[str, float]:
    """Seconds from the last slice to each stage."""
    root = place / "root"
    try:
        with system(root) as port:
            began = time.monotonic()
            send(port, study)
            sent = time.monotonic() - began
            end = time.monotonic() + 300
            while (times := pair_row(root)) is None:
                if time.monotonic() > end:
                    raise RuntimeError((place / "root.log").read_text())
                time.sleep(0.02)
            pair = next(root.glob("archive/*/*/Auto-Paired/pair.json"))
            if json.loads(pair.read_bytes())["revision"] != 1:
                raise RuntimeError("the pair was made before its last slice came")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {"sending": sent} | {name: times[name] - times["received"] for name in STAGES}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument(
        "--size", choices=("small", "whole-body", "total-body"), default="whole-body"
    )
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--study", type=Path, help="a phantom that was written before")
    asked.add_argument("--folder", type=Path, help="on the file system to measure")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place = Path(folder)
        (place / "study").mkdir()
        study = given.study or written(place / "study", given.size)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        found = []
        for _ in range(given.repeats):
            bare, _ = measure("bare", study)
            run = one_run(place, study)
            found.append(run | {"bare": bare, "ratio": run["ready"] / bare})
            print("  ".join(f"{name} {value:.2f}" for name, value in found[-1].items()), flush=True)
    ratio = statistics.median(run["ratio"] for run in found)
    spread = sorted(run["ratio"] for run in found)
    print(f"last slice to pair: {ratio:.2f}x the bare parts ({spread[0]:.2f}-{spread[-1]:.2f})")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
