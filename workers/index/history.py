"""What the audit can tell: events in the order that the index learned of them, and one
instance's life.

Everything is read in pages by key, each in one short transaction. Neither a PatientID nor an
accession number is in what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.engine import MetadataIndex
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival, event, instance, series, study

_PAGE_ROWS = 500
_TOLD_BY_EVENTS = (*SET_ASIDE, "retried", "dropped")
"""Outcomes that have an event of their own, which keeps what the arrival said before."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events; what is None is not asked for. Times are ISO 8601 UTC, as in the index."""

    study: str | None = None
    source: str | None = None
    """A part of the source's name."""
    kinds: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        asked: list[sa.ColumnElement[bool]] = []
        if self.study:
            asked.append(study.c.study == self.study)
        if self.source:
            asked.append(event.c.source.contains(self.source, autoescape=True))
        if self.kinds:
            asked.append(event.c.kind.in_(self.kinds))
        if self.since:
            asked.append(event.c.at >= self.since)
        if self.until:
            asked.append(event.c.at < self.until)
        return asked


def newest_events(index: MetadataIndex, wanted: Wanted, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the newest `limit` events, the newest last."""
    newest = (
        sa.select(event.c.id)
        .join(study, study.c.id == event.c.study_id, isouter=True)
        .where(*wanted.conditions())
        .order_by(event.c.id.desc())
        .limit(limit)
        .subquery()
    )
    with index.read() as connection:
        first = connection.execute(sa.select(sa.func.min(newest.c.id))).scalar()
    if first is not None:
        yield from events_after(index, wanted, first - 1)


def events_after(index: MetadataIndex, wanted: Wanted, after: int) -> Iterator[dict[str, Any]]:
    """Yield the events behind a given one (by id), oldest first."""
    while True:
        with index.read() as connection:
            rows = connection.execute(
                sa.select(event, study.c.study, series.c.series)
                .join(study, study.c.id == event.c.study_id, isouter=True)
                .join(series, series.c.id == event.c.series_id, isouter=True)
                .where(event.c.id > after, *wanted.conditions())
                .order_by(event.c.id)
                .limit(_PAGE_ROWS)
            ).all()
        for row in rows:
            yield _told(row)
        if len(rows) < _PAGE_ROWS:
            return
        after = rows[-1].id


def life_of(connection: Connection, instance_uid: str) -> list[dict[str, Any]]:
    """Tell from where and when an instance came, each time, and what became of it.

    Ordered by time; empty where nothing of this SOPInstanceUID ever left the spool or was adopted.
    """
    arrivals = connection.execute(
        sa.select(arrival).where(arrival.c.instance_uid == instance_uid).order_by(arrival.c.id)
    ).all()
    told: list[dict[str, Any]] = []
    for row in arrivals:
        if row.received_at:
            told.append(_moment(row, "received", row.received_at))
        if row.outcome not in _TOLD_BY_EVENTS:
            told.append(_moment(row, row.outcome, row.at, reason=row.reason))
    told += _of_entries(connection, {row.entry: row.reason for row in arrivals})
    mine = connection.execute(
        sa.select(instance.c.id, instance.c.filed_at, series.c.series, series.c.study_id,
                  series.c.source, sa.null().label("entry"))
        .join(series, series.c.id == instance.c.series_id)
        .where(instance.c.instance_uid == instance_uid)
    ).first()  # fmt: skip
    if mine is not None:
        if all(row.outcome != "filed" for row in arrivals):  # it lay in the tree already
            told.append(_moment(mine, "adopted", mine.filed_at))
        told += _of_pairs(connection, mine)
    return sorted(told, key=lambda one: str(one["at"]))


def _of_entries(connection: Connection, reasons: dict[str, str | None]) -> Iterator[dict[str, Any]]:
    """Yield the events that speak of these entries; what set one aside gets its reason."""
    rows = connection.execute(
        sa.select(event, study.c.study, series.c.series)
        .join(study, study.c.id == event.c.study_id, isouter=True)
        .join(series, series.c.id == event.c.series_id, isouter=True)
        .where(event.c.entry.in_(list(reasons)))
        .order_by(event.c.id)
    )
    for row in rows:
        one = _told(row)
        if row.kind in SET_ASIDE:
            one["details"]["reason"] = reasons[row.entry]
        yield one


def _of_pairs(connection: Connection, mine: Any) -> Iterator[dict[str, Any]]:
    """Yield the revisions of pairs that an instance is in, and what persons said of its study."""
    rows = connection.execute(
        sa.select(event, study.c.study, sa.null().label("series"))
        .join(study, study.c.id == event.c.study_id)
        .where(event.c.study_id == mine.study_id, event.c.kind.in_(("pair-ready", "override")))
        .order_by(event.c.id)
    )
    for row in rows:
        one = _told(row)
        said = one["details"]
        if row.kind == "override" or (
            mine.series in (said.get("pet"), said.get("ct"))
            and mine.id <= said.get("last_instance", 0)
        ):
            yield one


def _told(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at,
        "kind": row.kind,
        "study": row.study,
        "series": row.series,
        "source": row.source,
        "entry": row.entry,
        "details": json.loads(row.details),
    }


def _moment(row: Any, kind: str, at: str, **details: str | None) -> dict[str, Any]:
    """Tell a moment of an arrival in the words of an event."""
    return {
        "id": None,
        "at": at,
        "kind": kind,
        "study": None,
        "series": None,
        "source": row.source,
        "entry": row.entry,
        "details": {key: value for key, value in details.items() if value},
    }
