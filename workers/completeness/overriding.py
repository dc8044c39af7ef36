"""A person's word on a study's pair: force, choose, forget, wait; kept in the archive's journal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

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


@dataclass(frozen=True, slots=True)
class _Word:
    """What is said of a study from now on; None: nothing."""

    study_uid: str
    study_id: int
    override: Override | None


class NoSuchStudy(WorkersError):
    """The index knows no such study, or no such series in it."""


class NoSuchNumber(WorkersError):
    """A weight or dose that nothing has; it would stand in the journal for good."""


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

    Raises NoSuchStudy for an unknown study, or a PET or CT that the index does not have, and
    NoSuchNumber for a weight or dose that is not finite and above 0.
    """
    for what, number in (("weight", given.weight_kg), ("dose", given.dose_bq)):
        if number is not None and not 0 < number < math.inf:
            raise NoSuchNumber(f"a {what} of {number:g} is none")
    with index.read() as connection:
        study_id, before = _said_before(connection, study_uid)
        for uid in filter(None, (given.pet, given.ct)):
            known = sa.select(series.c.id).where(series.c.series == uid)
            if connection.execute(known).first() is None:
                raise NoSuchStudy(f"no series {uid!r} in the index")
    said = {key: value for key, value in asdict(given).items() if value not in (None, False)}
    override = replace(before or Override(), **said)
    _record(index, settings, _Word(study_uid, study_id, override), "override", by=by, **said)
    return judge_studies(index, settings, [study_id])


def forget_override(
    index: MetadataIndex, settings: Settings, study_uid: str, by: str | None = None
) -> list[PairWish]:
    """Take back all that was said of a study's pair, and judge it by its evidence alone.

    Raises NoSuchStudy for an unknown study, and for one of which nothing was said.
    """
    with index.read() as connection:
        study_id, before = _said_before(connection, study_uid)
    if before is None:
        raise NoSuchStudy(f"nothing was decided for study {study_uid!r}: nothing to forget")
    _record(index, settings, _Word(study_uid, study_id, None), "override-forgotten", by=by)
    return judge_studies(index, settings, [study_id])


def _said_before(connection: sa.Connection, study_uid: str) -> tuple[int, Override | None]:
    """Return the row of a study that has a pair to decide, and what was said of it."""
    row = connection.execute(
        sa.select(study.c.id, pair.c.override)
        .join(pair, pair.c.study_id == study.c.id)
        .where(study.c.study == study_uid)
    ).first()
    if row is None:
        raise NoSuchStudy(
            f"no pair to decide in study {study_uid!r}: `petct-ingest held` lists them"
        )
    return int(row.id), read_override(row.override)


def _record(
    index: MetadataIndex, settings: Settings, word: _Word, kind: str, **details: Any
) -> None:
    """Write what counts from now on into the journal, then with an event into the index."""
    words, at = asdict(word.override or Override()), clock.utc_now()
    fact = {"kind": "override", "study": word.study_uid, "at": at, **words}
    append_facts(settings.layout.output, [fact], settings.layout.file_mode)
    with index.write() as connection:
        connection.execute(
            pair.update()
            .where(pair.c.study_id == word.study_id)
            .values(override=None if word.override is None else json.dumps(words))
        )
        insert_event(connection, kind, at, study_id=word.study_id, **details)


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
