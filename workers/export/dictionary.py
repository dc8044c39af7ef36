"""The metadata dictionary: what the index holds of each series or instance, under its fixed names.

References are resolved when they are read: an object and what it refers to may arrive in either
order, and the one that is still missing keeps the UID that the header says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.filing.rows import DEFAULT_SUBSERIES
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, series, study

COLUMNS = (
    "patient_ID",
    "study",
    "study_description",
    "series",
    "series_description",
    "subseries",
    "modality",
    "instances",
    "instance_uid",
    "reference_ct",
    "reference_rs",
    "reference_pl",
    "reference_frame",
    "folder",
    "file_path",
    "orientation",
    "orientation_type",
    "MR_repetition_time",
    "MR_echo_time",
    "MR_scan_sequence",
    "MR_magnetic_field_strength",
    "MR_imaged_nucleus",
)
"""Every column of the export, in its order."""

Level = Literal["series", "instance"]

_STUDIES_A_PAGE = 100
_ROWS_A_PAGE = 1000
REFERENCES = ("reference_ct", "reference_rs", "reference_pl")
"""Columns that name the series of a referenced instance, where it is known."""
_COPIED = (
    "instance_uid",
    *REFERENCES,
    "reference_frame",
    "orientation",
    "orientation_type",
    "MR_repetition_time",
    "MR_echo_time",
    "MR_scan_sequence",
    "MR_magnetic_field_strength",
    "MR_imaged_nucleus",
)


@dataclass(frozen=True, slots=True)
class _Member:
    """One instance, and where it stands among the slices of its series.

    A series may have many thousands: each is kept without its facts, and what is the same for many
    only once.
    """

    copied: tuple[Any, ...]
    """The values of the columns of `_COPIED`."""
    folder: str
    file_name: str
    subseries: str
    order: tuple[float, float, str]


def dictionary_rows(
    index: MetadataIndex,
    level: Level = "series",
    *,
    only: sa.ColumnElement[bool] | None = None,
    of_studies: sa.ColumnElement[bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row for each (patient_ID, study, series, subseries), or for each instance.

    Rows come ordered by patient_ID, study, series, subseries and slice, whatever order they were
    filed in. The index is read series by series, in short transactions: memory is bounded by the
    largest series. `only` asks something of a row of series joined with its study, `of_studies` of
    a row of study alone: by that the few studies are found without a look at each.
    """
    wanted = sa.and_(series.c.instances > 0, sa.true() if only is None else only)
    for found in _studies(index, wanted, sa.true() if of_studies is None else of_studies):
        for member in _series_of(index, found.id, wanted):
            with index.read() as connection:
                members = _members(connection, member.id)
                resolved = _resolve(connection, members)
            common = {
                "patient_ID": found.patient_ID,
                "study": found.study,
                "study_description": found.study_description,
                "series": member.series,
                "series_description": member.series_description,
                "modality": member.modality,
            }
            yield from _rows(common, members, resolved, level)


def count_series(index: MetadataIndex) -> int:
    """Return how many series `dictionary_rows` goes through."""
    with index.read() as connection:
        found = connection.execute(
            sa.select(sa.func.count()).select_from(series).where(series.c.instances > 0)
        )
        return int(found.scalar_one())


def count_instances(index: MetadataIndex) -> int:
    """Return how many instances the index has."""
    with index.read() as connection:
        found = connection.execute(sa.select(sa.func.count()).select_from(instance))
        return int(found.scalar_one())


def _studies(
    index: MetadataIndex, wanted: sa.ColumnElement[bool], of_studies: sa.ColumnElement[bool]
) -> Iterator[Any]:
    """Yield the studies with a wanted series, ordered by patient and study, a page at a time."""
    patient = study.c["patient_ID"]
    chosen = (
        sa.select(study.c.id, patient, study.c.study, study.c.study_description)
        .where(of_studies)
        .where(sa.exists().where(series.c.study_id == study.c.id, wanted).correlate(study))
        .order_by(patient, study.c.study)
        .limit(_STUDIES_A_PAGE)
    )
    last: Any | None = None
    while True:
        page = chosen
        if last is not None:
            page = chosen.where(
                sa.or_(
                    patient > last.patient_ID,
                    sa.and_(patient == last.patient_ID, study.c.study > last.study),
                )
            )
        with index.read() as connection:
            rows = connection.execute(page).all()
        yield from rows
        if len(rows) < _STUDIES_A_PAGE:
            return
        last = rows[-1]


def _series_of(
    index: MetadataIndex, study_id: int, wanted: sa.ColumnElement[bool]
) -> Sequence[Any]:
    with index.read() as connection:
        return connection.execute(
            sa.select(series.c.id, series.c.series, series.c.series_description, series.c.modality)
            .join(study, study.c.id == series.c.study_id)
            .where(series.c.study_id == study_id, wanted)
            .order_by(series.c.series)
        ).all()


def _members(connection: Connection, series_id: int) -> list[_Member]:
    own = [instance.c[name] for name in (*_COPIED, "file_name", "subseries", "instance_number")]
    found = connection.execute(
        sa.select(*own, instance.c.facts, folder.c.home, folder.c.digits)
        .join(folder, folder.c.id == instance.c.folder_id)
        .where(instance.c.series_id == series_id)
        .execution_options(yield_per=_ROWS_A_PAGE)
    )
    once: dict[Any, Any] = {}
    members = [
        _Member(
            copied=tuple(once.setdefault(value, value) for value in row[: len(_COPIED)]),
            folder=once.setdefault(where := f"{row.home}/studies/{row.digits}", where),
            file_name=row.file_name,
            subseries=row.subseries or DEFAULT_SUBSERIES,
            order=_order(row),
        )
        for row in found
    ]
    members.sort(key=lambda one: (_natural(one.subseries), one.order))
    return members


def _order(row: Any) -> tuple[float, float, str]:
    """Place an instance among its slices: along the normal, else by InstanceNumber, else by UID."""
    facts = json.loads(row.facts)
    position = facts.get("image_position_patient")
    orientation = facts.get("image_orientation_patient")
    number = float(row.instance_number) if row.instance_number is not None else float("inf")
    if not position or not orientation:
        return float("inf"), number, row.instance_uid
    a, b, c, d, e, f = orientation
    x, y, z = position
    along = x * (b * f - c * e) + y * (c * d - a * f) + z * (a * e - b * d)
    return round(along, 4), number, row.instance_uid


def _natural(subseries: str) -> tuple[int, str]:
    return (int(subseries), "") if subseries.lstrip("-").isdecimal() else (1 << 62, subseries)


def _resolve(connection: Connection, members: Sequence[_Member]) -> dict[str, str]:
    """Return the series of every referenced instance that the index knows."""
    places = [_COPIED.index(name) for name in REFERENCES]
    wanted = {one.copied[place] for one in members for place in places} - {None}
    resolved: dict[str, str] = {}
    uids = sorted(wanted)
    for start in range(0, len(uids), 500):  # below the databases' limits on parameters
        found = connection.execute(
            sa.select(instance.c.instance_uid, series.c.series)
            .join(series, series.c.id == instance.c.series_id)
            .where(instance.c.instance_uid.in_(uids[start : start + 500]))
        )
        resolved.update((uid, of) for uid, of in found)
    return resolved


def _rows(
    common: dict[str, Any], members: Sequence[_Member], resolved: dict[str, str], level: Level
) -> Iterator[dict[str, Any]]:
    counts: dict[str, int] = {}
    for one in members:
        counts[one.subseries] = counts.get(one.subseries, 0) + 1
    told: set[str] = set()
    for one in members:
        if level == "series" and one.subseries in told:
            continue
        told.add(one.subseries)
        yield _row(common, one, counts[one.subseries], resolved)


def _row(
    common: dict[str, Any], member: _Member, count: int, resolved: dict[str, str]
) -> dict[str, Any]:
    values = common | dict(zip(_COPIED, member.copied, strict=True))
    values |= {
        "subseries": member.subseries,
        "instances": count,
        "folder": member.folder,
        "file_path": f"{member.folder}/{member.file_name}",
    }
    for name in REFERENCES:
        values[name] = resolved.get(values[name], values[name])
    return {name: values[name] for name in COLUMNS}
