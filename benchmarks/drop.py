"""Measure a folder drop, from its rename into the inbox to the last row in the index.

    python benchmarks/drop.py --peer ENV/bin/imgtools
    python benchmarks/drop.py --peer ENV/bin/imgtools --instances 4800 --repeats 5

A phantom study (CT of 525 KB and PET of 82 KB, half each, in a folder a series) is given in turn to
`cp -r`, to med-imagetools (`index`, then `dicomsort --action copy`, as many processes as cores) and
to ours: `petct-ingest run` as it comes, which the folder is moved to. Ours waits until nothing has
changed for `settle_seconds` (2); the rate is told with that wait and without it. Everything read
lies in memory before. Ours and nobody else makes files and index durable, and hashes them. Ours
runs when the clock starts, the others start: `imgtools` alone is told, as `start`. Install the peer
into an environment of its own: `pip install med-imagetools`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from end_to_end import ours, study, wait_until, worked

SETTLE_SECONDS = 2.0


def drop(top: Path, source: Path, files: int) -> tuple[float, dict[str, float]]:
    """Return the seconds that ours took, and what its processes worked, in ms an instance."""
    waiting = top / "waiting"
    shutil.copytree(source, waiting)
    os.sync()
    with ours(top / "root") as peer:
        before = worked(peer.pid)
        began = time.perf_counter()
        waiting.rename(top / "root" / "inbox" / "drop")
        wait_until(lambda: peer.count() == files, 600, "the last row")
        seconds = time.perf_counter() - began
        spent = worked(peer.pid) - before
    return seconds, {name: 1000 * one / files for name, one in spent.items()}


def timed(*command: str | Path) -> float:
    began = time.perf_counter()
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def imgtools(program: Path, source: Path, top: Path) -> dict[str, float]:
    """Return the seconds of both commands, and of starting twice alone."""
    cores = str(os.cpu_count() or 1)
    index = timed(
        program, "index", "--dicom-dir", source, "--output-dir", top / "index",
        "--dataset-name", "data", "--n-jobs", cores,
    )  # fmt: skip
    target = f"{top}/sorted/%PatientID/%StudyInstanceUID/%SeriesInstanceUID"
    sort = timed(program, "dicomsort", "--action", "copy", "-j", cores, source, target)
    copied = sum(len(files) for _, _, files in os.walk(top / "sorted"))
    expected = sum(len(files) for _, _, files in os.walk(source))
    if copied < expected:
        raise SystemExit(f"dicomsort made {copied} of {expected} files")
    return {"imgtools": index + sort, "index": index, "dicomsort": sort}


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--peer", type=Path, help="the program imgtools of med-imagetools")
    asked.add_argument("--instances", type=int, default=2400)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--folder", type=Path, help="on the file system to measure")
    given = asked.parse_args()
    taken: dict[str, list[float]] = {}
    spent: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source = Path(folder) / "source"
        files = len(study(source, given.instances))
        given.instances = files
        for _ in range(given.repeats):
            (place := Path(folder) / "run").mkdir()
            for path in source.rglob("*.dcm"):
                path.read_bytes()
            taken.setdefault("cp -r", []).append(timed("cp", "-r", source, place / "copy"))
            if given.peer:
                for name, seconds in imgtools(given.peer, source, place).items():
                    taken.setdefault(name, []).append(seconds)
                taken.setdefault("start", []).append(2 * timed(given.peer, "--help"))
            seconds, worked_ms = drop(place, source, files)
            taken.setdefault("ours", []).append(seconds)
            taken.setdefault("ours, settled", []).append(seconds - SETTLE_SECONDS)
            spent.append(worked_ms)
            shutil.rmtree(place)
    report(files, taken, spent)
    return 0


def report(files: int, taken: dict[str, list[float]], spent: list[dict[str, float]]) -> None:
    print(f"{files} files, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, found in taken.items():
        middle = statistics.median(found)
        line = f"{name:<14} {middle:6.2f} s ({min(found):.2f}-{max(found):.2f})"
        print(f"{line}, {files / middle:5.0f} files/s")
    for mine in ("ours", "ours, settled"):
        for peer in ("imgtools", "cp -r"):
            ratios = [its / one for one, its in zip(taken[mine], taken.get(peer, ()), strict=False)]
            if ratios:
                middle = statistics.median(ratios)
                print(f"{mine} is {middle:.2f}x of {peer} ({min(ratios):.2f}-{max(ratios):.2f})")
    for process in sorted({one for run in spent for one in run}):
        each = statistics.median(run.get(process, 0) for run in spent)
        if each >= 0.005:
            print(f"    {process:<14} {each:5.2f} ms of a core a file")


if __name__ == "__main__":
    sys.exit(main())
