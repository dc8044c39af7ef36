"""What the faces ask of the index: lists, each in one short reading transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.counting import SET_ASIDE as SET_ASIDE
from workers.index.tables import arrival, pair, series, study


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


def lies_here(spool: str) -> sa.ColumnElement[bool]:
    """Ask of an arrival whether this host has it; `spool` is the name of its spool."""
    return arrival.c.host.is_not_distinct_from(spool or None)


def list_set_aside(
    connection: Connection,
    *,
    limit: int = 1000,
    behind: str | None = None,
    where: sa.ColumnElement[bool] | None = None,
) -> list[dict[str, Any]]:
    """List what lies in quarantine, newest first; `behind` is the last entry of the page before.

    Each says on which host it lies, where hosts have names; `where` asks something of an arrival.
    """
    asked: list[sa.ColumnElement[bool]] = [arrival.c.outcome.in_(SET_ASIDE)]
    if where is not None:
        asked.append(where)
    if behind is not None:
        last = sa.select(arrival.c.id).where(arrival.c.entry == behind).scalar_subquery()
        asked.append(arrival.c.id < last)
    found = connection.execute(
        sa.select(arrival).where(*asked).order_by(arrival.c.id.desc()).limit(limit)
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
            **({"host": row.host} if row.host else {}),
        }
        for row in found
    ]
