"""A person's word on a study's pair: force, choose, wait; recorded in the archive's journal."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import sqlalchemy as sa

from config.settings import Settings
from workers import clock
from workers.completeness.judging import PairWish, judge_studies, read_override
from workers.errors import WorkersError
from workers.filing.journal import append_facts
from workers.filing.rows import insert_event
from workers.index.engine import MetadataIndex
from workers.index.tables import pair, series, study
from workers.pairing.evidence import Override


class NoSuchStudy(WorkersError):
    """The index knows no such study, or no such series in it."""


def override_pair(
    index: MetadataIndex,
    settings: Settings,
    study_uid: str,
    given: Override,
    by: str | None = None,
) -> list[PairWish]:
    """Record an override for a study and judge it again; fields not given keep what was said
    before.

    `by` is who said it, for the audit.

    Raises NoSuchStudy for an unknown study, or a PET or CT that the index does not have.
    """
    with index.read() as connection:
        row = connection.execute(
            sa.select(study.c.id, pair.c.id.label("pair_id"), pair.c.override)
            .join(pair, pair.c.study_id == study.c.id, isouter=True)
            .where(study.c.study == study_uid)
        ).first()
        if row is None or row.pair_id is None:
            raise NoSuchStudy(
                f"no pair to decide in study {study_uid!r}: `petct-ingest held` lists them"
            )
        for uid in filter(None, (given.pet, given.ct)):
            known = sa.select(series.c.id).where(series.c.series == uid)
            if connection.execute(known).first() is None:
                raise NoSuchStudy(f"no series {uid!r} in the index")
    before = read_override(row.override) or Override()
    said = {key: value for key, value in asdict(given).items() if value not in (None, False)}
    override = replace(before, **said)
    at = clock.utc_now()
    append_facts(
        settings.layout.output,
        [{"kind": "override", "study": study_uid, "at": at, **asdict(override)}],
        settings.layout.file_mode,
    )
    with index.write() as connection:
        connection.execute(
            pair.update()
            .where(pair.c.id == row.pair_id)
            .values(override=json.dumps(asdict(override)))
        )
        insert_event(connection, "override", at, study_id=row.id, by=by, **said)
    return judge_studies(index, settings, [row.id])


def wait_longer(
    index: MetadataIndex, settings: Settings, study_uid: str, by: str | None = None
) -> list[PairWish]:
    """Start the hard cap of a study anew; `by` is who wants it, for the audit."""
    with index.write() as connection:
        study_id = connection.execute(
            sa.select(study.c.id)
            .join(pair, pair.c.study_id == study.c.id)
            .where(study.c.study == study_uid)
        ).scalar()
        if study_id is None:
            raise NoSuchStudy(f"no pair to wait for in study {study_uid!r}")
        connection.execute(
            pair.update()
            .where(pair.c.study_id == study_id)
            .values(begun_boot=clock.boot_id(), begun_monotonic=clock.monotonic())
        )
        insert_event(connection, "wait", clock.utc_now(), study_id=study_id, by=by)
    return judge_studies(index, settings, [study_id])
