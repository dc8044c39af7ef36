"""Commit what became of a batch: instances, events and arrivals, in one transaction.

Step 5 of the filing protocol (protocol.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from workers import clock
from workers.completeness.series import SeriesState
from workers.filing import quarantine
from workers.filing.report import FilingReport
from workers.filing.rows import (
    KnownInstance,
    header_columns,
    insert_arrivals,
    insert_event,
    instance_values,
    study_ids,
)
from workers.filing.work import Work
from workers.index.engine import MetadataIndex
from workers.index.inserting import insert_new_rows
from workers.index.queries import SET_ASIDE
from workers.index.tables import instance, series, study


def commit_batch(
    index: MetadataIndex, place: Path, works: Sequence[Work], report: FilingReport
) -> list[Work]:
    """Commit a batch and report it; return the entries that another worker was faster with.

    `place` is the quarantine.
    """
    if not any(work.row is not None or work.target is not None for work in works):
        return []
    _withdraw(place, works)
    at = clock.utc_now()
    again = []
    filed: Counter[tuple[int, int, str]] = Counter()
    linked = [work for work in works if work.row is None and work.target is not None]
    rows = [_instance_row(work, at) for work in linked]
    with index.write() as connection:
        new = insert_new_rows(connection, instance, rows, instance.c.instance_uid)
        for work in linked:
            if work.uid not in new:
                again.append(work)
            elif work.place is not None:
                work.becomes("filed")
                filed[work.place.study_id, work.place.series_id, work.source.key] += 1
        done = [work.row for work in works if work.row is not None]
        insert_arrivals(connection, done, index.spool)
        for work in works:
            if work.replaces is not None:
                _update_instance(connection, work, work.replaces)
        _tell_what_was_not_filed(connection, works, at)
        _tell_what_was_filed(connection, filed, at)
    report.facts += [
        (row["facts"], (work.adopted or work.instance).facts)
        for work, row in zip(linked, rows, strict=True)
    ]
    for work in works:  # only now: what was rolled back was not done
        if work.row is not None:
            report.count(work.row)
        if work.replaces is not None:
            report.touched_series.add(work.replaces.series_id)
            report.replaced_in.add(work.replaces.series_id)
    report.touched_studies.update(study_id for study_id, _, _ in filed)
    report.touched_series.update(series_id for _, series_id, _ in filed)
    return again


def _withdraw(place: Path, works: Sequence[Work]) -> None:
    """Take back from quarantine what a killed run set aside and this one judges otherwise."""
    for work in works:
        outcome = work.row.outcome if work.row is not None else "filed"
        if outcome not in SET_ASIDE and quarantine.has(place, work.identifier):
            quarantine.remove(place, work.identifier)


def _instance_row(work: Work, at: str) -> dict[str, Any]:
    """Return the row of a linked instance."""
    if work.place is None or work.target is None:
        raise LookupError("this entry was not linked yet")
    return instance_values(work.adopted or work.instance, work.place, work.target.name, at)


def _update_instance(connection: sa.Connection, work: Work, known: KnownInstance) -> None:
    connection.execute(
        series.update()
        .where(series.c.id == known.series_id)
        .values(state=str(SeriesState.RECEIVING))
    )
    connection.execute(
        instance.update()
        .where(instance.c.id == known.id)
        .values(
            size=work.instance.size,
            sha256=work.instance.digests.file,
            dataset_sha256=work.instance.digests.dataset,
            **header_columns(work.instance.facts),
        )
    )


def _tell_what_was_filed(
    connection: sa.Connection, filed: Counter[tuple[int, int, str]], at: str
) -> None:
    """Count new instances in their series, which are open again; write an event for each."""
    for study_id in sorted({study_id for study_id, _, _ in filed}):  # one order for all workers
        connection.execute(_study_grows(), {"grown": study_id, "last_at": at})
    for (study_id, series_id, source), count in sorted(filed.items()):
        values = {
            "grown": series_id,
            "more": count,
            "last_boot": clock.boot_id(),
            "last_monotonic": clock.monotonic(),
            "quiet": False,
            "state": str(SeriesState.RECEIVING),  # until it is judged again, by whomever
            "last_at": at,
        }
        connection.execute(_series_grows(), values)
        insert_event(
            connection, "filed", at, study_id=study_id, series_id=series_id,
            source=source, instances=count,
        )  # fmt: skip


@cache
def _study_grows() -> sa.Update:
    return study.update().where(study.c.id == sa.bindparam("grown"))


@cache
def _series_grows() -> sa.Update:
    more = series.c.instances + sa.bindparam("more")
    return series.update().where(series.c.id == sa.bindparam("grown")).values(instances=more)


def _tell_what_was_not_filed(connection: sa.Connection, works: Sequence[Work], at: str) -> None:
    """Write an event for each entry that was set aside, and one for the duplicates of a study."""
    told = [work for work in works if work.row is not None and work.row.outcome != "filed"]
    wanted = {work.study_uid for work in told if work.found is not None}
    known = study_ids(connection, wanted) if wanted else {}
    duplicates: Counter[tuple[int | None, str]] = Counter()
    for work in told:
        if work.row is None:
            continue
        study_id = known.get(work.study_uid) if work.found is not None else None
        if work.row.outcome == "duplicate":
            duplicates[study_id, work.source.key] += 1
        elif work.row.outcome in SET_ASIDE:
            insert_event(
                connection, work.row.outcome, at, study_id=study_id, source=work.source.key,
                entry=work.identifier, code=work.row.code,
            )  # fmt: skip
    for (study_id, source), count in duplicates.items():
        insert_event(connection, "duplicate", at, study_id=study_id, source=source, instances=count)
