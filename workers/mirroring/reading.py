"""What the index says is to be mirrored, page by page, each in a short transaction of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import event, folder, instance, pair, series, study
from workers.mirroring.planning import Wanted

PAGE = 500

_PAIR_KINDS = ("pair-ready", "pair-held", "pair-no_pair", "pair-taken-over")
_OTHER_BYTES = ("replaced", "changed")
"""Events of files of the tree that took the place of others."""

_INSTANCE = (
    sa.select(instance.c.id, folder.c.home, folder.c.digits, instance.c.file_name,
              instance.c.size, instance.c.sha256)
    .join(folder, folder.c.id == instance.c.folder_id)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MadePair:
    """A pair that has a folder, as the index knows it."""

    id: int
    study: str
    state: str
    folder: str
    """Relative to the layout's output."""


@dataclass(frozen=True, slots=True)
class Happened:
    """What the next events ask for, and the last one that was looked at."""

    pairs: tuple[int, ...]
    """Studies whose pair is another, or has another state (ids)."""
    replaced: tuple[int, ...]
    """Studies in which files were replaced."""
    last: int
    full: bool


def newest_instance(connection: Connection) -> int:
    """Return the id of the newest instance, 0 before the first."""
    return int(connection.execute(sa.select(sa.func.max(instance.c.id))).scalar() or 0)


def instances_after(connection: Connection, after: int, until: int) -> tuple[list[Wanted], int]:
    """Return the next instances by id, and the last id of the page; `until` when none is left."""
    rows = connection.execute(
        _INSTANCE.where(instance.c.id > after, instance.c.id <= until)
        .order_by(instance.c.id)
        .limit(PAGE)
    ).all()
    return [_wanted(row) for row in rows], rows[-1].id if len(rows) == PAGE else until


def instances_of(connection: Connection, study_id: int) -> list[Wanted]:
    """Return every instance of a study."""
    rows = connection.execute(
        _INSTANCE.join(series, series.c.id == instance.c.series_id)
        .where(series.c.study_id == study_id)
        .order_by(instance.c.id)
    )
    return [_wanted(row) for row in rows]


def events_after(connection: Connection, after: int, until: int) -> Happened:
    """Return what the next events of interest ask for."""
    rows: Sequence[Any] = connection.execute(
        sa.select(event.c.id, event.c.kind, event.c.study_id)
        .where(event.c.id > after, event.c.id <= until)
        .where(event.c.kind.in_((*_PAIR_KINDS, *_OTHER_BYTES)), event.c.study_id.is_not(None))
        .order_by(event.c.id)
        .limit(PAGE)
    ).all()
    full = len(rows) == PAGE
    return Happened(
        pairs=tuple(dict.fromkeys(row.study_id for row in rows if row.kind in _PAIR_KINDS)),
        replaced=tuple(dict.fromkeys(row.study_id for row in rows if row.kind in _OTHER_BYTES)),
        last=rows[-1].id if full else until,
        full=full,
    )


def pair_of(connection: Connection, study_id: int) -> MadePair | None:
    """Return the pair of a study, None where none was ever made."""
    row = connection.execute(_made().where(pair.c.study_id == study_id)).first()
    return None if row is None else MadePair(*row)


def pairs_after(connection: Connection, after: int) -> list[MadePair]:
    """Return the next pairs by id."""
    rows = connection.execute(_made().where(pair.c.id > after).order_by(pair.c.id).limit(PAGE))
    return [MadePair(*row) for row in rows]


def _made() -> sa.Select[Any]:
    return (
        sa.select(pair.c.id, study.c.study, pair.c.state, pair.c.folder)
        .join(study, study.c.id == pair.c.study_id)
        .where(pair.c.folder.is_not(None), pair.c.done_generation > 0)
    )


def _wanted(row: Any) -> Wanted:
    path = PurePosixPath(row.home, "studies", row.digits, row.file_name)
    return Wanted(str(path), row.size, row.sha256)
