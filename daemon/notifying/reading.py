"""Read from the index what is to be told next."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from config.tables.telling import NotifySettings
from daemon.notifying.notices import (
    EventRow,
    Notice,
    notice_of,
    parse_details,
    wanted_kinds,
)
from workers.index.engine import MetadataIndex
from workers.index.tables import arrival, event, study


@dataclass(frozen=True, slots=True)
class Page:
    """Some notices in the order of their events, and the event up to which they tell all."""

    notices: tuple[Notice, ...]
    last: int
    full: bool


def read_page(
    index: MetadataIndex,
    settings: NotifySettings,
    origin: str,
    *,
    after: int,
    until: int,
    limit: int,
) -> Page:
    """Read at most `limit` notices of the events behind `after`, up to `until`."""
    with index.read() as connection:
        rows = connection.execute(
            sa.select(event.c.id, event.c.at, event.c.kind, event.c.details, event.c.study_id,
                      event.c.source, study.c.study, study.c["patient_ID"], study.c.study_date,
                      study.c.study_description, arrival.c.reason)
            .join(study, study.c.id == event.c.study_id, isouter=True)
            .join(arrival, arrival.c.entry == event.c.entry, isouter=True)
            .where(event.c.id > after, event.c.id <= until)
            .where(event.c.kind.in_(wanted_kinds(settings)))
            .order_by(event.c.id)
            .limit(limit)
        ).all()  # fmt: skip
    notices = tuple(
        notice_of(EventRow(*row[:3], parse_details(row[3]), *row[4:]), origin, settings)
        for row in rows
    )
    full = len(rows) == limit
    return Page(notices, int(rows[-1][0]) if full else until, full)
