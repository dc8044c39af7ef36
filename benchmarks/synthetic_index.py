"""Fill an installation's SQLite index with instances that were never filed, for measuring growth.

    python benchmarks/synthetic_index.py ROOT --instances 5000000

Studies of one CT and one PET series, each whole and with a pair that is ready, as rows alone: no
file lies in the tree. Facts are those of a phantom (about 2 KB an instance; 5 M make about 20 GB).
Keys are spread over their whole range, so that what is filed later falls between them. The root is
prepared where it is not; it is filled once.
"""

from __future__ import annotations

import argparse
import io
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

SLICES = 500
"""Instances of a series."""

_SERIES = (("CT", "CT IMAGES", "ct"), ("PT", "PET AC", "pet_ac"))
_AT = "2026-01-01T00:00:00.000Z"
_SPREAD = 8 * 10**18

FILL = """
WITH RECURSIVE slice(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM slice WHERE n < :slices - 1)
INSERT INTO instance (series_id, folder_id, instance_uid, file_name, sop_class_uid,
    transfer_syntax_uid, size, sha256, dataset_sha256, subseries, instance_number, orientation,
    facts, filed_at)
SELECT :series, :folder, :prefix || printf('%010d', n), :prefix || printf('%010d', n) || '.dcm',
    :sop_class, '1.2.840.10008.1.2.1', 525668, lower(hex(randomblob(32))),
    lower(hex(randomblob(32))), '1', n + 1, '1\\0\\0\\0\\1\\0',
    replace(replace(:facts, '@uid', :prefix || printf('%010d', n)), '"@z"', n * 1.5), :at
FROM slice
"""
ARRIVALS = """
WITH RECURSIVE slice(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM slice WHERE n < :slices - 1)
INSERT INTO arrival (entry, instance_uid, source, outcome, size, dataset_sha256, received_at, at)
SELECT printf('%016x', :first + n * :step) || lower(hex(randomblob(8))),
    :prefix || printf('%010d', n), 'SENDER>PETCT_INGEST@127.0.0.1', 'filed', 525668,
    lower(hex(randomblob(32))), :at, :at
FROM slice
"""


def fill(root: Path, instances: int) -> int:
    """Add at least so many instances to the index below `root`; return how many it has then."""
    from config.settings import load_settings
    from workers.index.engine import prepare_index

    settings = load_settings(root=root, environ={})
    settings.layout.make_private()
    prepare_index(settings).close()
    with closing(sqlite3.connect(settings.layout.index, isolation_level=None)) as index:
        index.execute("PRAGMA synchronous=OFF")
        index.execute("PRAGMA cache_size=-200000")
        index.execute("BEGIN IMMEDIATE")
        first = int(index.execute("SELECT coalesce(max(id), 0) FROM study").fetchone()[0])
        studies = -(-instances // (SLICES * len(_SERIES)))
        templates = [_template(description) for _, description, _ in _SERIES]
        for study in range(studies):
            _study(index, first + study + 1, study / studies, 1 / studies, templates)
            if study % 200 == 199:  # the log of one transaction is never larger than the cache
                index.execute("COMMIT")
                index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                index.execute("BEGIN IMMEDIATE")
        index.execute("COMMIT")
        index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(index.execute("SELECT count(*) FROM instance").fetchone()[0])


def _study(
    index: sqlite3.Connection, number: int, place: float, width: float, templates: list[str]
) -> None:
    """Add one study; `place` and `width` are its part of the keys' range (0 to 1)."""
    patient, accession = f"GROWN-{number:06d}", f"G{number:06d}"
    home, uid = f"{patient}/{accession}", f"1.2.826.0.1.3680043.10.{number}"
    index.execute(
        "INSERT INTO study (id, study, patient_ID, issuer_of_patient_id, study_description,"
        " study_date, study_time, two_patients, first_at, last_at)"
        " VALUES (?, ?, ?, '', 'PET/CT', '20260101', '120000', 0, ?, ?)",
        (number, uid, patient, _AT, _AT),
    )
    index.executemany(
        "INSERT INTO component (parent, folded, name, value) VALUES (?, ?, ?, ?)",
        [(above, one.lower(), one, one) for above, one in (("", patient), (patient, accession))],
    )
    for which, (modality, description, role) in enumerate(_SERIES):
        made = index.execute(
            "INSERT INTO series (study_id, series, series_description, series_number, modality,"
            " frame_of_reference_uid, instances, source, subject, session, role, role_reasons,"
            " state, expected, state_reasons, last_boot, last_monotonic, quiet, first_at, last_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 'SENDER>PETCT_INGEST@127.0.0.1', '', '', ?, '[]',"
            " 'complete', ?, '[]', 'earlier', 0, 1, ?, ?)",
            (number, f"{uid}.{which}", description, which + 2, modality, f"{uid}.9", SLICES, role,
             SLICES, _AT, _AT),
        )  # fmt: skip
        series = made.lastrowid
        digits = f"{number // 100:05d}/{number % 100:05d}/{which:05d}/00000"
        folder = index.execute(
            "INSERT INTO folder (series_id, home, digits, accession_number, adopted)"
            " VALUES (?, ?, ?, ?, 0)",
            (series, home, digits, accession),
        ).lastrowid
        part = width / len(_SERIES)
        begin = place + which * part
        values = {
            "slices": SLICES,
            "series": series,
            "folder": folder,
            "prefix": f"2.25.{int(begin * _SPREAD) + 10**18}",
            "sop_class": f"1.2.840.10008.5.1.4.1.1.{2 if modality == 'CT' else 128}",
            "facts": templates[which].replace("@study", uid).replace("@series", f"{uid}.{which}"),
            "first": int(begin * 2**63),
            "step": int(part * 2**63) // SLICES,
            "at": _AT,
        }
        index.execute(FILL, values)
        index.execute(ARRIVALS, values)
        index.executemany(
            "INSERT INTO event (at, kind, study_id, series_id, source, details)"
            " VALUES (?, 'filed', ?, ?, 'SENDER>PETCT_INGEST@127.0.0.1', ?)",
            [(_AT, number, series, '{"instances": 100}')] * (SLICES // 100),
        )
    index.execute(
        "INSERT INTO pair (study_id, state, pet, ct, reasons, decision, generation,"
        " done_generation, failed_generation, wanted, revision, folder, begun_boot,"
        " begun_monotonic, needed_at, decided_at, ready_at)"
        " VALUES (?, 'ready', ?, ?, '[]', '{}', 1, 1, 0, 'synthetic', 1, ?, 'earlier', 0, ?, ?, ?)",
        (number, f"{uid}.1", f"{uid}.0", f"{home}/Auto-Paired", _AT, _AT, _AT),
    )


def _template(series: str) -> str:
    """Return the facts of a phantom's instance, with marks where its identity stands."""
    from workers.header.read import read_header
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import instance

    encoded = io.BytesIO()
    data_set = instance(PhantomSpec(size="whole-body"), series, 0)
    data_set.save_as(encoded, enforce_file_format=True)
    with tempfile.NamedTemporaryFile() as file:
        file.write(encoded.getvalue())
        file.flush()
        facts = json.loads(read_header(file.name).facts.to_json())
    facts |= {"sop_instance_uid": "@uid", "study_instance_uid": "@study"}
    facts["series_instance_uid"] = "@series"
    facts["image_position_patient"] = [*facts["image_position_patient"][:2], "@z"]
    return json.dumps(facts, separators=(",", ":"))


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("root", type=Path)
    asked.add_argument("--instances", type=int, default=1_000_000)
    given = asked.parse_args()
    began = time.perf_counter()
    count = fill(given.root, given.instances)
    print(f"{count:,} instances in the index, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
