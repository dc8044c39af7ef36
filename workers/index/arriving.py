"""What arrived when: for a chart of the last day, and for the life of one study."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import arrival, event, instance, pair, series, study

HOURS = 24
_HOUR = len("2026-01-31T10")
"""So much of a time of the index names its hour."""


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of the chart."""

    at: str
    """Its begin, ISO 8601 UTC."""
    received: int
    """Instances, by when they were in the spool."""
    filed: int
    """Instances that were new."""
    paired: int
    """Revisions of pairs."""


class HourCounts:
    """Count by hour what left the spool and was paired; each row is read once."""

    def __init__(self) -> None:
        self._received: Counter[str] = Counter()
        self._filed: Counter[str] = Counter()
        self._paired: Counter[str] = Counter()
        self._arrival: int | None = None
        self._event = 0

    def update(self, connection: Connection, now: datetime) -> tuple[Hour, ...]:
        """Count what is new; return the last 24 hours, the current one last."""
        hours = [_hour_of(now - timedelta(hours=ago)) for ago in reversed(range(HOURS))]
        if self._arrival is None:
            self._arrival = _first_since(connection, hours[0]) - 1
        self._count_arrivals(connection, self._arrival)
        self._count_pairs(connection, hours[0])
        for counts in (self._received, self._filed, self._paired):
            for old in [hour for hour in counts if hour < hours[0]]:
                del counts[old]
        return tuple(
            Hour(f"{hour}:00:00.000Z", self._received[hour], self._filed[hour], self._paired[hour])
            for hour in hours
        )

    def _count_arrivals(self, connection: Connection, after: int) -> None:
        newest = connection.execute(sa.select(sa.func.max(arrival.c.id))).scalar() or 0
        came = _hour_in(sa.func.coalesce(arrival.c.received_at, arrival.c.at))
        left = _hour_in(arrival.c.at)
        rows = connection.execute(
            sa.select(came, left, arrival.c.outcome, sa.func.count())
            .where(arrival.c.id > after, arrival.c.id <= newest)
            .group_by(came, left, arrival.c.outcome)
        )
        for received, filed, outcome, count in rows:
            self._received[received] += count
            if outcome == "filed":
                self._filed[filed] += count
        self._arrival = newest

    def _count_pairs(self, connection: Connection, since: str) -> None:
        rows = connection.execute(
            sa.select(event.c.id, event.c.at)
            .where(event.c.kind == "pair-ready", event.c.at >= since, event.c.id > self._event)
            .order_by(event.c.id)
        )
        for number, at in rows:
            self._paired[at[:_HOUR]] += 1
            self._event = number


def _hour_in(at: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Return the hour of a time; without parameters, of which PostgreSQL groups by each anew."""
    return sa.func.substr(at, sa.literal_column("1"), sa.literal_column(str(_HOUR)))


def _hour_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()[:_HOUR]


def _first_since(connection: Connection, at: str) -> int:
    """Return the id of the first arrival since a time, without reading those before.

    Ids grow with time, so a bisection finds it; ids that are no more there do not matter.
    """
    low, high = connection.execute(
        sa.select(sa.func.min(arrival.c.id), sa.func.max(arrival.c.id))
    ).one()
    if low is None:
        return 1
    low, high = int(low), int(high) + 1
    while low < high:
        middle = (low + high) // 2
        row: Any = connection.execute(
            sa.select(arrival.c.id, arrival.c.at)
            .where(arrival.c.id >= middle)
            .order_by(arrival.c.id)
            .limit(1)
        ).first()
        if row is None or row.at >= at:
            high = middle
        else:
            low = int(row.id) + 1
    return low


@dataclass(frozen=True, slots=True)
class Life:
    """When a study came, and what was decided of its pair."""

    first_received: str | None
    last_received: str | None
    first_filed: str
    last_filed: str
    needed: str | None
    """When the last instance that the pair needed was filed."""
    ready: str | None
    decision: dict[str, Any]
    result: dict[str, Any]
    override: dict[str, Any] | None


def life_of_study(connection: Connection, study_id: int) -> Life:
    """Read the moments of one study and the words of its pair."""
    # not in the condition: SQLite would walk along the index of outcomes, so along all arrivals
    came = sa.case((arrival.c.outcome == "filed", arrival.c.received_at))
    received: Any = connection.execute(
        sa.select(sa.func.min(came), sa.func.max(came))
        .join(instance, instance.c.instance_uid == arrival.c.instance_uid)
        .join(series, series.c.id == instance.c.series_id)
        .where(series.c.study_id == study_id)
    ).one()
    row: Any = connection.execute(
        sa.select(study.c.first_at, study.c.last_at, pair.c.needed_at, pair.c.ready_at,
                  pair.c.decision, pair.c.result, pair.c.override)
        .join(pair, pair.c.study_id == study.c.id, isouter=True)
        .where(study.c.id == study_id)
    ).one()  # fmt: skip
    return Life(
        received[0], received[1], row.first_at, row.last_at, row.needed_at, row.ready_at,
        json.loads(row.decision or "{}"), json.loads(row.result or "{}"),
        json.loads(row.override) if row.override else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceCount:
    """What one source has sent."""

    source: str
    studies: int
    series: int
    instances: int
    first_at: str
    last_at: str


def count_sources(connection: Connection, limit: int = 1000) -> list[SourceCount]:
    """List where the series came from, the latest first."""
    last = sa.func.max(series.c.last_at)
    rows = connection.execute(
        sa.select(series.c.source, sa.func.count(sa.distinct(series.c.study_id)), sa.func.count(),
                  sa.func.sum(series.c.instances), sa.func.min(series.c.first_at), last)
        .where(series.c.instances > 0)
        .group_by(series.c.source)
        .order_by(last.desc())
        .limit(limit)
    )  # fmt: skip
    return [SourceCount(*row) for row in rows]


def newest_change(connection: Connection, study_id: int | None = None) -> str:
    """Return a word that changes with the index: with all of it, or with one study of it."""
    happened = sa.select(sa.func.max(event.c.id))
    if study_id is not None:
        return str(connection.execute(happened.where(event.c.study_id == study_id)).scalar())
    arrived = sa.select(sa.func.max(arrival.c.id))
    return f"{connection.execute(happened).scalar()}/{connection.execute(arrived).scalar()}"
