"""Pairs that cannot be made for an error of the system: never in silence.

A pair that the data refuses is held (making.py). An error of the system passes, mostly: the pair
stays pending and is tried again, and an event says why, which `status` shows. Where the process
that makes it dies again and again (no memory, mostly), it is held after `MOST_DEATHS`.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from config.logs import get_logger
from workers import clock
from workers.filing.rows import insert_event
from workers.index.counting import DIED, FAILING, HELD
from workers.index.engine import MetadataIndex
from workers.index.tables import event, pair

MOST_DEATHS = 5
"""So many processes may die over one generation of a pair."""

log = get_logger(__name__)


def note_failure(index: MetadataIndex, pair_id: int, generation: int, reason: str) -> None:
    """Note why a generation could not be made; the same reason once."""
    with index.write() as connection:
        row = _wanted(connection, pair_id, generation)
        if row is None:
            return
        if reason not in [one["reason"] for one in _told(connection, row, FAILING)]:
            insert_event(connection, FAILING, clock.utc_now(), study_id=row.study_id,
                         generation=generation, reason=reason)  # fmt: skip


def note_death(
    index: MetadataIndex, pair_id: int, generation: int, reason: str, memory: str = ""
) -> None:
    """Note that the process died that made a generation; hold the pair after `MOST_DEATHS`.

    `memory` says what the pair takes and what there is.
    """
    at = clock.utc_now()
    with index.write() as connection:
        row = _wanted(connection, pair_id, generation)
        if row is None:
            return
        insert_event(connection, DIED, at, study_id=row.study_id,
                     generation=generation, reason=reason)  # fmt: skip
        if len(_told(connection, row, DIED)) < MOST_DEATHS:
            return
        died = f"{MOST_DEATHS} processes died while making it ({reason}): has it memory enough?"
        words = [f"{died} {memory}".strip()]
        connection.execute(
            pair.update()
            .where(pair.c.id == pair_id)
            .values(state="held", failed_generation=generation, reasons=json.dumps(words))
        )
        insert_event(connection, HELD, at, study_id=row.study_id,
                     generation=generation, reasons=words)  # fmt: skip
    log.warning("pair-held", reason="its makers died", generation=generation)


def _wanted(connection: Connection, pair_id: int, generation: int) -> Any:
    """Return the pair's row, if this generation is still to be made."""
    row = connection.execute(sa.select(pair).where(pair.c.id == pair_id)).first()
    if row is None or row.state != "pending" or row.generation != generation:
        return None
    return row if row.done_generation < generation else None


def _told(connection: Connection, row: Any, *kinds: str) -> list[dict[str, Any]]:
    """Return what was told about the wanted generation of a pair, oldest first."""
    found = connection.execute(
        sa.select(event.c.at, event.c.details)
        .where(event.c.study_id == row.study_id, event.c.kind.in_(kinds))
        .order_by(event.c.id)
    )
    told = [{**json.loads(details), "at": at} for at, details in found]
    return [one for one in told if one.get("generation") == row.generation]
