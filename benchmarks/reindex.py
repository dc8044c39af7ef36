"""Measure how many files a second `reindex` adopts, against med-imagetools' `index`.

    python benchmarks/reindex.py --peer ENV/bin/imgtools
    python benchmarks/reindex.py --peer ENV/bin/imgtools --kilobytes 20 --repeats 3

`python -m venv ENV && ENV/bin/pip install med-imagetools` makes the peer's environment. Both read
the same tree of synthetic CT instances (Gradient shape, 200 a series, 4 series a patient) with the
same number of processes, one after the other, each run from nothing, by turns ours or theirs first;
before each, the tree is read once, so that both find it in memory. Ours takes header and checksum
of the whole file, commits durably and judges; theirs takes headers alone. Then both run again with
nothing changed (theirs reads its own cache). `--no-pair`: the tree holds no PET. Prints files a
second, and the ratios of each run.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

FILES_A_SERIES = 200
SERIES_A_STUDY = 4
_SET_CHILD_SUBREAPER = 36  # prctl(2)


def deliver(tree: Path, files: int, kilobytes: int) -> int:
    """Write a delivery; return how many bytes it has."""
    import io

    import numpy as np
    from pydicom import dcmwrite
    from pydicom.uid import UID, generate_uid

    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import instance

    dataset = instance(PhantomSpec(size="tiny"), "CT IMAGES", 0)
    side = int((kilobytes * 1024 / 2) ** 0.5)
    dataset.Rows = dataset.Columns = side
    noise = np.random.default_rng(1).integers(0, 4000, (side, side), dtype=np.uint16)
    dataset.PixelData = noise.tobytes()
    mark = "2.25." + "8" * 38
    dataset.AccessionNumber = "A1"
    total = 0
    for series in range(-(-files // FILES_A_SERIES)):
        study = series // SERIES_A_STUDY
        dataset.PatientID = f"BENCH-{study:05d}"
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(study)])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(series)])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(mark)
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        content = buffer.getvalue()
        digits = f"{study:05d}/00000/{series:05d}/00000"
        folder = tree / dataset.PatientID / "A1" / "studies" / digits
        folder.mkdir(parents=True)
        for number in range(min(FILES_A_SERIES, files - series * FILES_A_SERIES)):
            uid = f"2.25.1{series:017d}{number:020d}".encode()
            (folder / f"{number:05d}.dcm").write_bytes(content.replace(mark.encode(), uid))
            total += len(content)
    return total


def warm(tree: Path) -> None:
    for path in tree.rglob("*.dcm"):
        path.read_bytes()


def timed(command: list[str | Path]) -> tuple[float, float, str]:
    """Run a command; return its seconds by the clock and on processors, and what it printed."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    with suppress(ChildProcessError):
        while True:  # its helpers, left to us: their time counts too
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, worked, done.stdout


def ours(top: Path, number: int, processes: int) -> list[str | Path]:
    return [
        sys.executable, "-P", "-m", "daemon", "reindex", "--root", top / f"site-{number}",
        "--archive", top / "delivery", "--no-pair", "--json", "--processes", str(processes),
    ]  # fmt: skip


def theirs(peer: Path, top: Path, number: int, processes: int) -> list[str | Path]:
    return [
        peer, "index", "--dicom-dir", top / "delivery", "--output-dir", top / f"peer-{number}",
        "--dataset-name", "data", "--n-jobs", str(processes),
    ]  # fmt: skip


def indexed_by_peer(top: Path, number: int) -> int:
    with open(top / f"peer-{number}" / "data" / "index.csv", newline="") as table:
        return sum(int(row["instances"]) for row in csv.DictReader(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, help="the program imgtools of med-imagetools")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files are written [temporary]")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        top = Path(folder)
        size = deliver(top / "delivery", asked.files, asked.kilobytes)
        count = -(-asked.files // FILES_A_SERIES)
        print(
            f"{asked.files:,} CT files of {size / asked.files / 1024:,.0f} KB in {count:,} series "
            f"of {-(-count // SERIES_A_STUDY):,} patients, {size / 1e6:,.0f} MB; "
            f"{asked.processes} processes, {os.cpu_count()} processors, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        rates: dict[str, list[float]] = {}
        for number in range(asked.repeats):
            shutil.rmtree(top / "delivery" / ".petct", ignore_errors=True)
            runs = [("ours", ours(top, number, asked.processes))]
            if asked.peer:
                runs.append(("peer", theirs(asked.peer, top, number, asked.processes)))
            for name, command in runs[:: 1 if number % 2 == 0 else -1]:
                for again in ("", " again"):
                    warm(top / "delivery")
                    seconds, worked, told = timed(command)
                    rate = asked.files / seconds
                    rates.setdefault(name + again, []).append(rate)
                    took = f"{seconds:.1f} s ({worked:.1f} CPU)"
                    print(f"{name + again}: {took}, {rate:,.0f} files/s", flush=True)
                    if name == "ours":
                        found = json.loads(told)
                        assert found["unchanged" if again else "adopted"] == asked.files, found
                    else:
                        assert indexed_by_peer(top, number) == asked.files
        for name in [name for name in rates if not name.endswith(" again")]:
            both = zip(rates[f"{name} again"], rates[name], strict=True)
            print(f"{name}, again / first: {statistics.median(a / b for a, b in both):.1f}")
        if asked.peer:
            ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
            print(f"ours / peer: {', '.join(f'{one:.2f}' for one in ratios)}")


if __name__ == "__main__":
    main()
