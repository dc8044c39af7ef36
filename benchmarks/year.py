"""Measure what an index costs that holds more and more: a year, as far as the disk allows.

    python benchmarks/year.py ROOT --stops 100000,1000000,10000000 --url postgresql://…/year
    python benchmarks/year.py ROOT --stops 100000,1000000

At each stop the index is filled up to so many instances (rows alone, no files; keys spread over
their whole range), and each operation is done by the code that does it in a real installation, in
this process. Told are its best time, its growth (the exponent that fits time ~ instances^e
over the stops), and on PostgreSQL how many rows its questions visit, by EXPLAIN ANALYZE; on SQLite
which tables they read whole. ROOT should lie in memory or on a quick disk: files are not the point.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from capacity import exponent
from synthetic_index import SLICES, fill

from config.settings import Settings, load_settings
from daemon.sweeper import Sweeper
from workers import clock
from workers.completeness.judging import judge_studies
from workers.export.matching import find_rows
from workers.filing.protocol import Filer
from workers.filing.report import FilingReport
from workers.index.counting import count_all, filed_since
from workers.index.engine import MetadataIndex, asking, prepare_index
from workers.index.queries import list_studies
from workers.index.searching import WantedStudies, page_of_studies
from workers.index.tables import series, study
from workers.mirroring.reading import instances_after, newest_instance
from workers.phantom.study import write_many
from workers.spool.batches import BatchSource, BatchWriter, EntryName

BATCH = 100
SMALLEST = 100_000
"""Below it small tables are read whole, because that is quicker."""
_CHUNK = 200
"""Studies of one statement."""

_STUDY = """
INSERT INTO study (id, study, "patient_ID", issuer_of_patient_id, study_description, study_date,
  study_time, two_patients, first_at, last_at)
SELECT n, '1.2.826.0.1.3680043.10.' || n, 'GROWN-' || n, '', 'PET/CT', '20260101', '120000', false,
  :at, to_char(timestamp '2020-01-01' + n * interval '1 minute', 'YYYY-MM-DD"T"HH24:MI:SS".000Z"')
FROM generate_series(:first, :last) n
"""
_SERIES = """
INSERT INTO series (id, study_id, series, series_description, series_number, modality,
  frame_of_reference_uid, instances, source, subject, session, role, role_reasons, state, expected,
  state_reasons, last_boot, last_monotonic, quiet, first_at, last_at)
SELECT 2 * n + k, n, '1.2.826.0.1.3680043.10.' || n || '.' || k,
  CASE k WHEN 0 THEN 'CT IMAGES' ELSE 'PET AC' END, k + 2, CASE k WHEN 0 THEN 'CT' ELSE 'PT' END,
  '1.2.826.0.1.3680043.10.' || n || '.9', :slices, 'SENDER>PETCT_INGEST@127.0.0.1', '', '',
  CASE k WHEN 0 THEN 'ct' ELSE 'pet_ac' END, '[]', 'complete', :slices, '[]', 'earlier', 0, true,
  :at, :at FROM generate_series(:first, :last) n, generate_series(0, 1) k
"""
_FOLDER = """
INSERT INTO folder (id, series_id, home, digits, accession_number, adopted)
SELECT 2 * n + k, 2 * n + k, 'GROWN-' || n || '/G' || n,
  lpad((n / 100000)::text, 5, '0') || '/' || lpad(mod(n, 100000)::text, 5, '0') || '/0000' || k
  || '/00000', 'G' || n, false FROM generate_series(:first, :last) n, generate_series(0, 1) k
"""
_INSTANCE = """
INSERT INTO instance (series_id, folder_id, instance_uid, file_name, sop_class_uid,
  transfer_syntax_uid, size, sha256, dataset_sha256, subseries, instance_number, orientation,
  facts, filed_at)
SELECT s, s, uid, uid || '.dcm', '1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.1.2.1', 525668,
  repeat(md5(uid), 2), repeat(md5(uid), 2), '1', i + 1, '1\\0\\0\\0\\1\\0', :facts, :at
FROM (SELECT s, i, '2.25.' || (1000000000000000000 + (s::bigint * :slices + i) * :step + :mark)
  || '00000000000000000000' AS uid
  FROM generate_series(2 * :first, 2 * :last + 1) s, generate_series(0, :slices - 1) i) keys
"""
_ARRIVAL = """
INSERT INTO arrival (entry, instance_uid, source, outcome, size, dataset_sha256, received_at, at)
SELECT lpad(to_hex((s::bigint * :slices + i) * :step + :mark), 16, '0') || '0123456789abcdef',
  '2.25.' || (1000000000000000000 + (s::bigint * :slices + i) * :step + :mark)
  || '00000000000000000000',
  'SENDER>PETCT_INGEST@127.0.0.1', 'filed', 525668, repeat(md5(s::text), 2), :at, :at
FROM generate_series(2 * :first, 2 * :last + 1) s, generate_series(0, :slices - 1) i
"""
_EVENT = """
INSERT INTO event (at, kind, study_id, series_id, source, details)
SELECT :at, 'filed', s / 2, s, 'SENDER>PETCT_INGEST@127.0.0.1', '{"instances": 100}'
FROM generate_series(2 * :first, 2 * :last + 1) s, generate_series(1, :slices / 100) i
"""
_PAIR = """
INSERT INTO pair (study_id, state, pet, ct, reasons, decision, generation, done_generation,
  failed_generation, wanted, revision, folder, begun_boot, begun_monotonic, needed_at, decided_at,
  ready_at)
SELECT n, 'ready', '1.2.826.0.1.3680043.10.' || n || '.1', '1.2.826.0.1.3680043.10.' || n || '.0',
  '[]', '{}', 1, 1, 0, 'synthetic', 1, 'GROWN-' || n || '/G' || n || '/Auto-Paired', 'earlier', 0,
  :at, :at, :at FROM generate_series(:first, :last) n
"""
_TABLES = ("study", "series", "folder", "instance", "arrival", "event", "pair")


def fill_postgresql(index: MetadataIndex, instances: int, facts: str) -> None:
    """Add studies until there are so many instances; keys of each call lie over the whole range."""
    with index.read() as connection:
        # what was filed between the stops took numbers of its own
        first = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(study.c.id), 0)))
        have = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(series.c.instances), 0)))
    missing = -(-(instances - have) // (2 * SLICES))
    keys = 2 * (first + missing + 1) * SLICES
    values = {"at": "2026-01-01T00:00:00.000Z", "slices": SLICES, "mark": first,
              "step": 8 * 10**18 // keys, "facts": facts}  # fmt: skip
    for start in range(first + 1, first + missing + 1, _CHUNK):
        last = min(start + _CHUNK - 1, first + missing)
        with index.engine.begin() as connection:
            # what these rows point to was inserted a moment ago: no look-up for each
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            for statement in (_STUDY, _SERIES, _FOLDER, _INSTANCE, _ARRIVAL, _EVENT, _PAIR):
                given = values | {"first": start, "last": last}
                connection.exec_driver_sql(_filled(statement, given))
        print(f"{last * 2 * SLICES:,}", end="\r", file=sys.stderr)
    with index.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in _TABLES:
            newest = f"SELECT max(id) + 1 FROM {table}"  # noqa: S608 - names of ours
            sequence = f"pg_get_serial_sequence('{table}', 'id')"
            connection.exec_driver_sql(f"SELECT setval({sequence}, ({newest}))")
            connection.exec_driver_sql(f"ANALYZE {table}")


def _filled(statement: str, values: dict[str, object]) -> str:
    """Write values of ours into a statement, so that the server knows their types."""

    def literal(match: re.Match[str]) -> str:
        value = values[match[1]]
        return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"

    return re.sub(r"(?<![:\w]):([a-z]+)", literal, statement)


# operations ---------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One installation and what is done with it."""

    settings: Settings
    index: MetadataIndex
    patient: int = field(default_factory=lambda: int(time.time()) % 1_000_000)
    waiting: list[EntryName] = field(default_factory=list)
    report: FilingReport | None = None

    def put_batch(self) -> None:
        """Lay a new study of 100 small instances into the spool."""
        self.patient += 1
        source = BatchSource(kind="association", calling_ae="S", called_ae="P", address="127.0.0.1")
        with tempfile.TemporaryDirectory() as folder:
            files = write_many(Path(folder), BATCH, patient_number=self.patient)
            with BatchWriter(self.settings.layout, source) as batch:
                self.waiting = [batch.publish((path.read_bytes(),)) for path in files.values()]

    def file_batch(self) -> None:
        self.report = Filer(self.index, self.settings).file_entries(self.waiting)

    def judge(self) -> None:
        assert self.report is not None
        judge_studies(self.index, self.settings, self.report.touched_studies,
                      self.report.touched_series)  # fmt: skip

    def status(self) -> None:
        with self.index.read() as connection:
            ask = asking(connection)
            count_all(ask)
            filed_since(ask, clock.utc_of(clock.wall() - 300))

    def page(self) -> None:
        with self.index.read() as connection:
            list_studies(connection, limit=50)

    def search(self) -> None:
        with self.index.read() as connection:
            uid = connection.execute(
                sa.select(study.c.study).order_by(study.c.last_at.desc()).limit(1)
            ).scalar_one()
            page_of_studies(connection, WantedStudies(term=uid), 50)

    def export(self) -> None:
        with self.index.read() as connection:
            name = connection.execute(
                sa.select(study.c["patient_ID"]).order_by(study.c.last_at.desc()).limit(1)
            ).scalar_one()
        list(find_rows(self.index, {"patient_ID": name}, "instance"))

    def sweep(self) -> None:
        now = clock.monotonic()
        sweeper = Sweeper(self.index, self.settings)
        sweeper.judge_quiet_series(now)
        sweeper.judge_interrupted()
        sweeper._judge_capped(now)

    def mirror_page(self) -> None:
        with self.index.read() as connection:
            newest = newest_instance(connection)
            instances_after(connection, newest - 500, newest)


OPERATIONS: dict[str, tuple[Callable[[Bench], None], Callable[[Bench], None] | None]] = {
    "file a batch of 100": (Bench.file_batch, Bench.put_batch),
    "judge its study": (Bench.judge, None),
    "status": (Bench.status, None),
    "a page of 50 studies": (Bench.page, None),
    "search a study by name": (Bench.search, None),
    "export one patient": (Bench.export, None),
    "the sweeper's look": (Bench.sweep, None),
    "a page of the mirror": (Bench.mirror_page, None),
}


@dataclass(frozen=True)
class Cost:
    """What an operation took at one stop."""

    seconds: float
    visited: int | None
    whole: str
    """Tables of which it reads every row."""


def measure(bench: Bench, repeats: int) -> dict[str, Cost]:
    found: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for _ in range(repeats):
        for name, (action, before) in OPERATIONS.items():
            if before is not None:
                before(bench)
            began = time.perf_counter()
            action(bench)
            found[name].append(time.perf_counter() - began)
    costs = {}
    for name, (action, before) in OPERATIONS.items():
        if before is not None:
            before(bench)
        with captured(bench.index) as statements:
            action(bench)
        costs[name] = Cost(min(found[name]), *explained(bench.index, statements))
    return costs


@contextmanager
def captured(index: MetadataIndex) -> Iterator[list[tuple[str, Any]]]:
    """Note every question that is asked meanwhile."""
    found: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, values: Any, _x: Any, many: bool) -> None:
        asks = statement.lstrip().upper().startswith("SELECT") and "advisory" not in statement
        if asks and not many:
            found.append((statement, values))

    sa.event.listen(index.engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(index.engine, "before_cursor_execute", note)


def explained(index: MetadataIndex, statements: list[tuple[str, Any]]) -> tuple[int | None, str]:
    """Return how many rows these questions visit, and the tables that they read whole."""
    visited, whole = 0, Counter[str]()
    sqlite = index.engine.dialect.name == "sqlite"
    for statement, values in statements:
        with index.read() as connection:
            if sqlite:
                rows = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, values).all()
                for row in rows:
                    scanned = re.match(r"SCAN (\w+)( USING INDEX)?", row[3])
                    if scanned and not (scanned[2] and "LIMIT" in statement):  # in order, some rows
                        whole[scanned[1]] += 1
                continue
            asked = "EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) " + statement
            (plan,) = connection.exec_driver_sql(asked, values).scalar_one()
            visited += _visit(plan["Plan"], whole)
    return None if sqlite else visited, " ".join(sorted(whole))


_REMOVED = ("Filter", "Index Recheck")


def _visit(node: dict[str, Any], whole: Counter[str]) -> int:
    """Count the rows that a plan's scans look at."""
    count = 0
    kind = node["Node Type"]
    if kind.endswith("Scan") and kind not in ("Bitmap Index Scan", "Subquery Scan", "CTE Scan"):
        removed = sum(node.get(f"Rows Removed by {why}", 0) for why in _REMOVED)
        count = int((node["Actual Rows"] + removed) * node["Actual Loops"])
        if kind == "Seq Scan" and count > 1000:
            whole[node["Relation Name"]] += 1
    return count + sum(_visit(one, whole) for one in node.get("Plans", ()))


# report -------------------------------------------------------------------------------------------


def bytes_of(index: MetadataIndex, settings: Settings) -> int:
    if index.engine.dialect.name == "sqlite":
        return settings.layout.index.stat().st_size
    with index.read() as connection:
        asked = sa.select(sa.func.pg_database_size(sa.func.current_database()))
        return int(connection.execute(asked).scalar_one())


def report(costs: dict[int, dict[str, Cost]], sizes: dict[int, int]) -> None:
    stops = list(costs)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    heads = (
        "instances",
        *(f"{stop:,}" for stop in stops),
        "exponent",
        "rows visited",
        "reads whole",
    )
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in OPERATIONS:
        here = [costs[stop][name] for stop in stops]
        times = zip(stops, here, strict=True)
        points = [(stop, one.seconds) for stop, one in times if stop >= SMALLEST]
        grows = f"{exponent(points):.2f}" if len(points) > 1 else ""
        rows = " / ".join("" if one.visited is None else f"{one.visited:,}" for one in here)
        print(f"| {name} | " + " | ".join(f"{1000 * one.seconds:.1f} ms" for one in here)
              + f" | {grows} | {rows} | {here[-1].whole} |")  # fmt: skip
    print("| size | " + " | ".join(f"{sizes[stop] / 1e9:.2f} GB" for stop in stops) + " | | | |")


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("root", type=Path)
    asked.add_argument("--stops", default="0,100000,1000000", help="instances, joined by commas")
    asked.add_argument("--url", help="of an empty PostgreSQL database; else SQLite below ROOT")
    asked.add_argument("--facts", type=int, default=2000, help="bytes of facts an instance")
    asked.add_argument("--repeats", type=int, default=9)
    given = asked.parse_args()
    costs: dict[int, dict[str, Cost]] = {}
    sizes: dict[int, int] = {}
    for stop in (int(one) for one in given.stops.split(",")):
        # SQLite's is filled once: an index for each stop
        settings = settings_of(given.root if given.url else given.root / str(stop), given.url)
        with closing(prepare_index(settings)) as index:
            if given.url:
                facts = json.dumps({"of": "x" * given.facts})
                fill_postgresql(index, stop, facts)
            else:
                with index.read() as connection:
                    missing = stop - newest_instance(connection)
                if missing > 0:
                    fill(settings.root, missing)
            costs[stop] = measure(Bench(settings, index), given.repeats)
            sizes[stop] = bytes_of(index, settings)
        report(costs, sizes)
        print(flush=True)
    return 0


def settings_of(root: Path, url: str | None) -> Settings:
    room = {"minimum_free_mb": 1, "minimum_free_inodes": 1}
    overrides = {"index": {"url": url} if url else {}, "spool": room}
    return load_settings(root=root, overrides=overrides, environ={})


if __name__ == "__main__":
    sys.exit(main())
