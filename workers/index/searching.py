"""Search the index: studies by what is known of them, one study whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.engine import MetadataIndex
from workers.index.queries import SET_ASIDE, list_studies
from workers.index.tables import (
    SHORT_DESCRIPTION,
    arrival,
    folder,
    instance,
    pair,
    series,
    study,
)

_STUDIES_A_PAGE = 200
MOST_SET_ASIDE = 10_000
_ESCAPE = "\\"


@dataclass(frozen=True, slots=True)
class WantedStudies:
    """Which studies are asked for; what is None is not asked. `*` stands for anything."""

    patient: str | None = None
    modality: str | None = None
    """Some series of the study has it."""
    role: str | None = None
    """Some series of the study plays it."""
    state: str | None = None
    """Of the pair: pending, ready, held, no_pair."""
    since: str | None = None
    """An instance was filed then or later (ISO 8601 UTC)."""
    until: str | None = None
    """The last instance was filed before."""
    source: str | None = None
    """Some series of the study came from it; a part of the source's name."""
    term: str | None = None
    """A PatientID, accession number, description, each with `*`, or a StudyInstanceUID."""

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Return what is asked of a row of study joined with its pair."""
        asked: list[sa.ColumnElement[bool]] = []
        if self.patient is not None:
            asked.append(matches(study.c["patient_ID"], self.patient))
        for column, value in ((series.c.modality, self.modality), (series.c.role, self.role)):
            if value is not None:
                member = sa.exists().where(
                    series.c.study_id == study.c.id, series.c.instances > 0, column == value
                )
                asked.append(member)
        if self.source is not None:
            sent = sa.exists().where(
                series.c.study_id == study.c.id,
                series.c.instances > 0,
                series.c.source.contains(self.source, autoescape=True),
            )
            asked.append(sent)
        if self.term is not None:
            asked.append(_is_called(self.term))
        if self.state is not None:
            asked.append(pair.c.state == self.state)
        if self.since is not None:
            asked.append(study.c.last_at >= self.since)
        if self.until is not None:
            asked.append(study.c.last_at < self.until)
        return asked


def matches(column: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    """Ask for a text, with `*` for anything. SQLite does not tell the case of A to Z then."""
    if "*" not in pattern:
        return column == pattern
    like = pattern.replace(_ESCAPE, _ESCAPE * 2).replace("%", r"\%").replace("_", r"\_")
    return column.like(like.replace("*", "%"), escape=_ESCAPE)


def _is_called(term: str) -> sa.ColumnElement[bool]:
    """Ask for studies that one of their names stands for."""
    called = sa.alias(study)
    described = matches(called.c.study_description, term)
    if len(term) <= SHORT_DESCRIPTION and "*" not in term:
        length = sa.func.length(called.c.study_description)
        described &= length <= sa.literal_column(str(SHORT_DESCRIPTION))  # as its index says
    own = (called.c.study == term, matches(called.c["patient_ID"], term), described)
    accessions = (
        sa.select(series.c.study_id)
        .join(folder, folder.c.series_id == series.c.id)
        .where(matches(folder.c.accession_number, term))
    )
    # not OR: each name has an index of its own
    found = sa.union_all(*(sa.select(called.c.id).where(one) for one in own), accessions)
    return study.c.id.in_(found)


def page_of_studies(
    connection: Connection, wanted: WantedStudies, limit: int, behind: int | None = None
) -> list[dict[str, Any]]:
    """Return studies as `list_studies` tells them, each with its row's `id`.

    `behind` is the id of the last study of the page before.
    """
    asked = wanted.conditions()
    if behind is not None:
        row: Any = connection.execute(
            sa.select(study.c.study, study.c.last_at).where(study.c.id == behind)
        ).first()
        if row is not None:
            asked.append(_is_behind({"study": row.study, "last_at": row.last_at}))
    return with_ids(connection, list_studies(connection, limit=limit, where=asked))


def with_ids(connection: Connection, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each study the `id` of its row, by which a page names it: a UID names a patient's."""
    uids = [one["study"] for one in found]
    rows = connection.execute(sa.select(study.c.study, study.c.id).where(study.c.study.in_(uids)))
    ids = {row.study: row.id for row in rows}
    return [one | {"id": ids[one["study"]]} for one in found]


def uid_of(connection: Connection, study_id: int) -> str | None:
    """Return the StudyInstanceUID of a row."""
    return connection.execute(sa.select(study.c.study).where(study.c.id == study_id)).scalar()


def find_studies(
    index: MetadataIndex, wanted: WantedStudies, limit: int
) -> Iterator[dict[str, Any]]:
    """Yield studies as `list_studies` tells them, newest first, a page at a time."""
    asked, last = wanted.conditions(), None
    while limit > 0:
        behind = asked if last is None else [*asked, _is_behind(last)]
        with index.read() as connection:
            page = list_studies(connection, limit=min(limit, _STUDIES_A_PAGE), where=behind)
        yield from page
        if len(page) < _STUDIES_A_PAGE:
            return
        limit, last = limit - len(page), page[-1]


def read_study(connection: Connection, uid: str) -> dict[str, Any] | None:
    """Return all that the index knows of a study: its series with labels and folders, its pair.

    Paths are relative to the archive.
    """
    found = list_studies(connection, limit=1, where=[study.c.study == uid])
    if not found:
        return None
    row: Any = connection.execute(sa.select(study).where(study.c.study == uid)).one()
    known = found[0] | {name: getattr(row, name) for name in ("study_time", "two_patients",
                                                              "first_at", "last_at")}  # fmt: skip
    folders = _folders(connection, row.id)
    for one, member in zip(known["series"], _labels(connection, row.id), strict=True):
        one |= {name: getattr(member, name) for name in ("source", "subject", "session")}
        one["folders"] = folders.get(member.id, [])
    return known


def files_of(connection: Connection, uid: str) -> Iterator[str]:
    """Yield every file of a study, relative to the archive."""
    rows = connection.execute(
        sa.select(folder.c.home, folder.c.digits, instance.c.file_name)
        .join(instance, instance.c.folder_id == folder.c.id)
        .join(series, series.c.id == instance.c.series_id)
        .join(study, study.c.id == series.c.study_id)
        .where(study.c.study == uid)
        .order_by(folder.c.home, folder.c.digits, instance.c.file_name)
    )
    return (f"{row.home}/studies/{row.digits}/{row.file_name}" for row in rows)


def set_aside_rows(
    connection: Connection, uid: str, most: int = MOST_SET_ASIDE
) -> Iterator[tuple[Any, bool]]:
    """Yield what lies in quarantine, newest first, and whether the study is known to hold its UID.

    Of the others only the reason beside the file can tell which study they are of.
    """
    own = (
        sa.select(instance.c.id)
        .join(series, series.c.id == instance.c.series_id)
        .join(study, study.c.id == series.c.study_id)
        .where(study.c.study == uid, instance.c.instance_uid == arrival.c.instance_uid)
        .correlate(arrival)
    )
    rows = connection.execute(
        sa.select(arrival, sa.exists(own).label("own"))
        .where(arrival.c.outcome.in_(SET_ASIDE))
        .order_by(arrival.c.id.desc())
        .limit(most)
    )
    return ((row, bool(row.own)) for row in rows)


def _is_behind(last: dict[str, Any]) -> sa.ColumnElement[bool]:
    """Ask for what comes behind a study in the order of `list_studies`."""
    mine = sa.select(study.c.id).where(study.c.study == last["study"]).scalar_subquery()
    # the first part bounds the walk along the index: SQLite finds no bound inside an OR
    return sa.and_(
        study.c.last_at <= last["last_at"],
        sa.or_(study.c.last_at < last["last_at"], study.c.id < mine),
    )


def _labels(connection: Connection, study_id: int) -> list[Any]:
    """Return the series of a study in the order of `list_studies`."""
    return list(
        connection.execute(
            sa.select(series.c.id, series.c.source, series.c.subject, series.c.session)
            .where(series.c.study_id == study_id, series.c.instances > 0)
            .order_by(series.c.series_number, series.c.id)
        )
    )


def _folders(connection: Connection, study_id: int) -> dict[int, list[dict[str, Any]]]:
    rows = connection.execute(
        sa.select(folder.c.home, folder.c.digits, instance.c.series_id,
                  sa.func.count().label("files"))
        .join(instance, instance.c.folder_id == folder.c.id)
        .join(series, series.c.id == instance.c.series_id)
        .where(series.c.study_id == study_id)
        .group_by(instance.c.series_id, folder.c.home, folder.c.digits)
        .order_by(folder.c.home, folder.c.digits)
    )  # fmt: skip
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        place = {"folder": f"{row.home}/studies/{row.digits}", "files": row.files}
        found.setdefault(row.series_id, []).append(place)
    return found
