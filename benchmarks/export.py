"""Measure `export csv` and `export parquet` of a large index: rows a second and memory.

    python benchmarks/export.py
    python benchmarks/export.py --rows 1000000 --largest 20000 --folder /data/scratch

The index is synthetic: CT series of 500 instances, four series a study, and one series of
`--largest`, since memory grows with the largest one. Every row is what filing writes for a slice
of the phantom, with a UID and a position of its own. No file of an instance exists: an export
reads the index alone. Memory is the largest VmHWM (proc(5)) that was seen of the process, all of
Python's modules and SQLite's cache included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import dcmwrite

from config.settings import load_settings
from workers.export.dictionary import count_instances
from workers.filing.examining import Digests, Instance
from workers.filing.placing import Place
from workers.filing.rows import instance_values
from workers.header.read import read_header
from workers.index.engine import prepare_index
from workers.index.tables import folder, instance, series, study
from workers.phantom.spec import PhantomSpec
from workers.phantom.study import instance as phantom_instance

A_SERIES, SERIES_A_STUDY = 500, 4
AT_ONCE = 10_000
NOW = "2026-01-31T10:00:00Z"


def a_row(where: Path) -> dict[str, Any]:
    """Return the columns of one slice of the phantom, as filing writes them."""
    path = where / "one.dcm"
    dcmwrite(path, phantom_instance(PhantomSpec(), "CT IMAGES", 0), enforce_file_format=True)
    facts = read_header(path).facts
    found = Instance(facts, Digests("0" * 64, "1" * 64), path.stat().st_size)
    return instance_values(found, Place(0, 0, 0, "", ""), "", NOW)


def sizes(rows: int, largest: int) -> Iterator[int]:
    """Yield how many instances each series has."""
    yield min(rows, largest)
    for start in range(largest, rows, A_SERIES):
        yield min(A_SERIES, rows - start)


def fill(connection: sa.Connection, rows: int, largest: int, like: dict[str, Any]) -> None:
    waiting: list[dict[str, Any]] = []
    uid, facts, z = like["instance_uid"], like["facts"], '"image_position_patient":['
    assert uid in facts
    assert z in facts
    before, _, rest = facts.partition(z)
    x, y, _ = rest.split(",", 2)
    after = rest[rest.index("]") :]
    for number, count in enumerate(sizes(rows, largest), 1):
        of = (number - 1) // SERIES_A_STUDY + 1
        patient, study_uid, series_uid = f"BENCH-{of:06d}", f"1.2.826.0.{of}", f"1.2.826.1.{number}"
        if number % SERIES_A_STUDY == 1:
            connection.execute(
                study.insert().values(id=of, study=study_uid, patient_ID=patient, first_at=NOW,
                                      study_description="PET/CT WHOLE BODY", last_at=NOW)
            )  # fmt: skip
        connection.execute(
            series.insert().values(id=number, study_id=of, series=series_uid, modality="CT",
                                   series_description="CT IMAGES", instances=count, first_at=NOW,
                                   last_at=NOW)
        )  # fmt: skip
        digits = f"{of:05d}/00000/{number:05d}/00000"
        connection.execute(
            folder.insert().values(id=number, series_id=number, home=f"{patient}/A1", digits=digits)
        )
        for place in range(count):
            own = f"{uid[:40]}.{number}.{place}"
            position = f"{z}{x},{y}, {(place * 7919) % count * 2.5}"
            waiting.append(
                like | {"series_id": number, "folder_id": number, "instance_uid": own,
                        "file_name": f"{own}.dcm", "instance_number": place + 1,
                        "facts": f"{before}{position}{after}".replace(uid, own)}
            )  # fmt: skip
            if len(waiting) == AT_ONCE:
                connection.execute(instance.insert(), waiting)
                waiting.clear()
    if waiting:
        connection.execute(instance.insert(), waiting)


def watched(command: list[str | Path]) -> tuple[float, int]:
    """Run a command; return its seconds and the most memory in bytes that it had at once."""
    began, most = time.monotonic(), 0
    process = subprocess.Popen([str(one) for one in command], stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    most = max(most, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.monotonic() - began, most


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--largest", type=int, default=20_000, help="instances of one series")
    parser.add_argument("--folder", type=Path, help="where the index is made [temporary]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        root = Path(place, "site")
        settings = load_settings(root=root, environ={})
        index = prepare_index(settings)
        like = a_row(Path(place))
        began = time.monotonic()
        with index.write() as connection:
            fill(connection, asked.rows, asked.largest, like)
        index.checkpoint()
        assert count_instances(index) == asked.rows
        index.close()
        size = settings.layout.index.stat().st_size
        print(f"{asked.rows:,} rows, the largest series {asked.largest:,}: {size / 1e6:,.0f} MB "
              f"of index in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        for name in ("csv", "parquet"):
            for level in ("instance", "series"):
                out = Path(place, f"{level}.{name}")
                seconds, most = watched([
                    sys.executable, "-P", "-m", "daemon", "export", name, out, "--level", level,
                    "--root", root,
                ])  # fmt: skip
                print(f"{name} --level {level}: {seconds:.1f} s, {asked.rows / seconds:,.0f} "
                      f"instances/s, {most / 1e6:.0f} MB of memory, {out.stat().st_size / 1e6:.0f} "
                      "MB written", flush=True)  # fmt: skip
        with open(Path(place, "instance.csv"), "rb") as file:
            assert sum(1 for _ in file) == asked.rows + 1


if __name__ == "__main__":
    main()
