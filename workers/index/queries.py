"""What the faces ask of the index: counts and lists, each in one short reading transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import arrival, event, instance, pair, series, study

SET_ASIDE = ("quarantined", "variant", "conflict", "replaced")
"""Outcomes whose file lies in quarantine."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of `status`."""

    filed: int
    duplicates: int
    quarantined: int
    skipped: int
    studies: int
    series: dict[str, int]
    pairs: dict[str, int]


def count_all(connection: Connection) -> Counts:
    """Count instances, series, studies and pairs."""
    outcomes = _grouped(connection, arrival.c.outcome)
    states = _grouped(connection, series.c.state, series.c.instances > 0)
    pairs = _grouped(connection, pair.c.state)
    filed = connection.execute(sa.select(sa.func.count()).select_from(instance)).scalar_one()
    studies = connection.execute(
        sa.select(sa.func.count(sa.distinct(series.c.study_id))).where(series.c.instances > 0)
    ).scalar_one()
    return Counts(
        filed=filed,
        duplicates=outcomes.get("duplicate", 0),
        quarantined=sum(outcomes.get(outcome, 0) for outcome in SET_ASIDE),
        skipped=outcomes.get("skipped", 0),
        studies=studies,
        series=states,
        pairs={name: pairs.get(name, 0) for name in ("ready", "held", "pending")},
    )


def filed_since(connection: Connection, at: str) -> int:
    """Count the instances filed since a time (ISO 8601 UTC)."""
    found = connection.execute(
        sa.select(event.c.details).where(event.c.at >= at, event.c.kind == "filed")
    ).scalars()
    return sum(int(json.loads(details).get("instances", 0)) for details in found)


def _grouped(
    connection: Connection, column: sa.Column[Any], *conditions: sa.ColumnElement[bool]
) -> dict[str, int]:
    found = connection.execute(
        sa.select(column, sa.func.count()).where(*conditions).group_by(column).order_by(column)
    )
    return {str(name): int(count) for name, count in found}


def list_studies(
    connection: Connection,
    *,
    limit: int = 1000,
    state: str | None = None,
    where: Sequence[sa.ColumnElement[bool]] = (),
) -> list[dict[str, Any]]:
    """List studies, newest first, each with its series and its pair.

    `where` asks something of a row of study joined with its pair.
    """
    chosen = (
        sa.select(study, pair.c.state.label("pair_state"), pair.c.reasons, pair.c.pet, pair.c.ct,
                  pair.c.revision, pair.c.folder, pair.c.needed_at, pair.c.ready_at)
        .join(pair, pair.c.study_id == study.c.id, isouter=True)
        .where(
            sa.exists().where(series.c.study_id == study.c.id, series.c.instances > 0), *where
        )
        .order_by(study.c.last_at.desc(), study.c.id.desc())
        .limit(limit)
    )  # fmt: skip
    if state is not None:
        chosen = chosen.where(pair.c.state == state)
    rows = connection.execute(chosen).all()
    members = _series_of(connection, [row.id for row in rows])
    return [
        {
            "study": row.study,
            "patient_ID": row.patient_ID,
            "study_date": row.study_date,
            "study_description": row.study_description,
            "last_at": row.last_at,
            "series": members.get(row.id, []),
            "pair": {
                "state": row.pair_state,
                "pet": row.pet,
                "ct": row.ct,
                "revision": row.revision,
                "folder": row.folder,
                "needed_at": row.needed_at,
                "ready_at": row.ready_at,
                "reasons": json.loads(row.reasons),
            }
            if row.pair_state
            else None,
        }
        for row in rows
    ]


def _series_of(connection: Connection, studies: list[int]) -> dict[int, list[dict[str, Any]]]:
    found = connection.execute(
        sa.select(series)
        .where(series.c.study_id.in_(studies), series.c.instances > 0)
        .order_by(series.c.study_id, series.c.series_number, series.c.id)
    )
    members: dict[int, list[dict[str, Any]]] = {}
    for row in found:
        members.setdefault(row.study_id, []).append(
            {
                "series": row.series,
                "modality": row.modality,
                "series_description": row.series_description,
                "instances": row.instances,
                "role": row.role,
                "role_reasons": json.loads(row.role_reasons),
                "state": row.state,
                "expected": row.expected,
                "reasons": json.loads(row.state_reasons),
            }
        )
    return members


def list_set_aside(connection: Connection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """List what lies in quarantine, newest first."""
    found = connection.execute(
        sa.select(arrival)
        .where(arrival.c.outcome.in_(SET_ASIDE))
        .order_by(arrival.c.id.desc())
        .limit(limit)
    )
    return [
        {
            "entry": row.entry,
            "outcome": row.outcome,
            "code": row.code,
            "reason": row.reason,
            "source": row.source,
            "size": row.size,
            "at": row.at,
        }
        for row in found
    ]
