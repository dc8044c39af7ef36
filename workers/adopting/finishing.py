"""After the walk: judge what was adopted, take over the pairs that stand there, make the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from config.settings import Settings
from config.tables.work import PairingSettings
from workers import clock
from workers.adopting.origins import ADOPTED
from workers.completeness.judging import PairWish, judge_studies
from workers.errors import PairDamaged
from workers.filing.journal import read_facts
from workers.filing.rows import insert_event
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, pair, series, study
from workers.pairing.evidence import Override
from workers.pairing.pair_json import PairMeta, from_json

_STUDIES_AT_ONCE = 50


def judge_adopted(
    index: MetadataIndex, settings: Settings, advance: Callable[[int, int], None]
) -> None:
    """Judge the studies whose series were adopted: nothing more of them is awaited.

    `advance` is told (studies judged, studies in all). Killed and run again, it goes on.
    """
    with index.write() as connection:
        connection.execute(
            series.update()
            .where(series.c.last_boot == ADOPTED)
            .values(quiet=True, last_boot=clock.boot_id(), last_monotonic=clock.monotonic())
        )
    with index.read() as connection:
        rows = connection.execute(
            sa.select(series.c.study_id, series.c.id)
            .where(
                series.c.quiet.is_(True),
                series.c.state == "receiving",
                series.c.instances > 0,
            )
            .order_by(series.c.study_id)
        ).all()
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(row.study_id, []).append(row.id)
    studies = sorted(members)
    for at in range(0, len(studies), _STUDIES_AT_ONCE):
        some = studies[at : at + _STUDIES_AT_ONCE]
        judge_studies(index, settings, some, [one for key in some for one in members[key]])
        advance(min(at + _STUDIES_AT_ONCE, len(studies)), len(studies))


def restore_overrides(index: MetadataIndex, settings: Settings) -> None:
    """Give studies back what a person said of them, from the archive's journal."""
    said: dict[str, dict[str, Any]] = {}
    for fact in read_facts(settings.layout.output):
        if fact.get("kind") == "override" and isinstance(fact.get("study"), str):
            said[fact["study"]] = fact
    known = Override.__dataclass_fields__
    for uid, fact in said.items():
        try:
            override = Override(**{key: fact[key] for key in fact if key in known})
        except TypeError:
            continue
        if override == Override():  # taken back
            continue
        words = json.dumps({key: getattr(override, key) for key in known})
        with index.write() as connection:
            study_id = connection.execute(
                sa.select(study.c.id)
                .join(pair, pair.c.study_id == study.c.id)
                .where(study.c.study == uid, pair.c.override.is_(None))
            ).scalar()
            if study_id is not None:
                connection.execute(
                    pair.update().where(pair.c.study_id == study_id).values(override=words)
                )
        if study_id is not None:
            judge_studies(index, settings, [study_id])


def take_over_pairs(index: MetadataIndex, settings: Settings) -> int:
    """Let a pair that stands in the tree be the one that is wanted, where it was made of just that.

    Returns how many were taken over; the others are made anew.
    """
    taken = 0
    for row in list(_wanted(index)):
        for home in _homes(index, row.study_id):
            for place in sorted((settings.layout.output / home).glob("Auto-Paired*")):
                meta = _read(place)
                if meta is None or meta.study != row.study:
                    continue
                with index.write() as connection:
                    if _is_wanted(connection, settings.pairing, row, meta):
                        _take_over(connection, row, meta, f"{home}/{place.name}")
                        taken += 1
    return taken


def wished_pairs(index: MetadataIndex) -> list[PairWish]:
    """Return the pairs that are to be made."""
    return [PairWish(row.id, row.generation) for row in _wanted(index)]


def _wanted(index: MetadataIndex) -> Iterator[Any]:
    with index.read() as connection:
        found = connection.execute(
            sa.select(pair, study.c.study)
            .join(study, study.c.id == pair.c.study_id)
            .where(
                pair.c.state == "pending",
                pair.c.generation > pair.c.done_generation,
                pair.c.generation > pair.c.failed_generation,
            )
            .order_by(pair.c.id)
        ).all()
    yield from found


def _homes(index: MetadataIndex, study_id: int) -> list[str]:
    with index.read() as connection:
        found = connection.execute(
            sa.select(folder.c.home)
            .join(series, series.c.id == folder.c.series_id)
            .where(series.c.study_id == study_id)
            .distinct()
            .order_by(folder.c.home)
        )
        return list(found.scalars())


def _read(place: Path) -> PairMeta | None:
    if place.is_symlink():
        return None
    try:
        return from_json((place / "pair.json").read_bytes())
    except (OSError, PairDamaged):
        return None


def _is_wanted(connection: Connection, settings: PairingSettings, row: Any, meta: PairMeta) -> bool:
    """Tell whether a pair was made of the very files that are wanted now, in the same way."""
    override = json.loads(row.override) if row.override else None
    made = (
        meta.pet.series,
        meta.ct.series,
        meta.grid,
        meta.ct.dtype,
        meta.decision.get("override"),
    )
    if made != (row.pet, row.ct, settings.grid, settings.ct_dtype, override):
        return False
    for volume in (meta.pet, meta.ct):
        own = sa.case((series.c.study_id == row.study_id, 0), else_=1)
        series_id = connection.execute(
            sa.select(series.c.id).where(series.c.series == volume.series).order_by(own).limit(1)
        ).scalar()
        files = dict(
            connection.execute(
                sa.select(instance.c.instance_uid, instance.c.sha256).where(
                    instance.c.series_id == series_id
                )
            ).all()
        )
        if files != volume.inputs:
            return False
    return True


def _take_over(connection: Connection, row: Any, meta: PairMeta, place: str) -> None:
    owner = connection.execute(sa.select(pair.c.id).where(pair.c.folder == place)).scalar()
    if owner not in (None, row.id):
        return
    connection.execute(
        pair.update()
        .where(pair.c.id == row.id, pair.c.generation == row.generation)
        .values(
            state="ready",
            done_generation=row.generation,
            revision=meta.revision,
            folder=place,
            ready_at=meta.made_at,
        )
    )
    insert_event(
        connection, "pair-taken-over", clock.utc_now(), study_id=row.study_id,
        revision=meta.revision,
    )  # fmt: skip
