"""Measure how the end-to-end rate changes with what is indexed already.

    python benchmarks/synthetic_index.py /data/grown-1m --instances 1000000
    python benchmarks/synthetic_index.py /data/grown-5m --instances 5000000
    python benchmarks/growth.py /data/grown-1m /data/grown-5m --repeats 5

Each repeat sends the same phantom study (1,200 instances, DCMTK's dcmsend, one association) to an
empty root and to each of the given ones in turn, from the first C-STORE to the last row in the
index; then it is another patient's. The prepared roots grow by what is sent. An empty root for each
repeat is made beside the first of them. The operating system's memory is left as it is: what an
index of 20 GB does not find there is read from the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from end_to_end import Run, measure, ours, study


def indexed(root: Path) -> int:
    with closing(sqlite3.connect(root / "index.sqlite")) as index:
        return int(index.execute("SELECT coalesce(max(id), 0) FROM instance").fetchone()[0])


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("roots", type=Path, nargs="+", help="made by synthetic_index.py")
    asked.add_argument("--instances", type=int, default=1200)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--associations", type=int, default=1)
    given = asked.parse_args()
    runs: dict[str, list[Run]] = {}
    patient = int(time.time()) % 1_000_000_000  # nobody that was sent before
    with tempfile.TemporaryDirectory(dir=given.roots[0].parent) as folder:
        for repeat in range(given.repeats):
            source = Path(folder) / f"source-{repeat}"
            files = study(source, given.instances, first_patient=patient + repeat * 100)
            groups = [files[one :: given.associations] for one in range(given.associations)]
            (empty := Path(folder) / "empty").mkdir()
            for root in (empty, *given.roots):
                name = f"{indexed(root) // 100_000 / 10:g} M" if root != empty else "empty"
                with ours(root) as peer:
                    one = measure(peer, groups)
                runs.setdefault(name, []).append(one)
                rate = len(files) / one.indexed
                print(f"{name}: {rate:.0f} inst/s", file=sys.stderr, flush=True)
            shutil.rmtree(empty)
            shutil.rmtree(source)
    report(runs)
    return 0


def report(runs: dict[str, list[Run]]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, found in runs.items():
        rates = [one.instances / one.indexed for one in found]
        ratios = [
            first.indexed / one.indexed for first, one in zip(runs["empty"], found, strict=True)
        ]
        worked = statistics.median(1000 * sum(one.worked.values()) / one.instances for one in found)
        print(
            f"{name:>6}  {statistics.median(rates):5.0f} inst/s ({min(rates):.0f}-{max(rates):.0f})"
            f", {worked:.2f} ms of a core an instance, {statistics.median(ratios):.2f}x of empty"
            f" ({min(ratios):.2f}-{max(ratios):.2f})"
        )


if __name__ == "__main__":
    sys.exit(main())
