"""Make a pair: build it beside, and exchange the folder whole.

One process at a time makes the pair of a study (locking.py), and no more at once than the host has
memory for (share.py). The new folder is built under
`<archive>/.petct/tmp` (of a read-only archive: below `pairing.output_root`), durable; then, in one
write transaction, the index is asked whether this generation is still wanted, the folder takes its
place by RENAME_EXCHANGE, and the generation is done. Killed anywhere, the old pair stands whole or
the new one does; running again builds it again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from config.layout import Layout
from config.logs import get_logger, short
from config.settings import Settings
from config.tables.work import PairingSettings
from workers import clock, durable
from workers.completeness.judging import read_override
from workers.errors import DataError, PairingRefused, StoreUnavailable
from workers.filing.rows import insert_event
from workers.header.facts import InstanceFacts
from workers.identity import check_archive, check_writable
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, pair, series, study
from workers.pairing.build import PairContext, PairOptions, PairSummary, SeriesInput, build_pair
from workers.pairing.claiming import claim_folder, is_free
from workers.pairing.exchanging import exchange_folder
from workers.pairing.locking import pair_lock
from workers.pairing.need import in_words, memory_need
from workers.pairing.selection import Override
from workers.pairing.share import memory_budget, share_of_memory
from workers.pairing.suv import judge_suv
from workers.pairing.volume_input import volume_input
from workers.rooted import LinkRefused, folder_below, is_file

log = get_logger(__name__)

_LINK_WORDS = (
    "a symbolic link stands in the tree where a file or folder of this study belongs: remove it "
    "(`petct-ingest check` names it), then force the pair"
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A generation of a pair that is to be built."""

    pair_id: int
    study_id: int
    study_uid: str
    generation: int
    revision: int
    override: Override | None
    decision: dict[str, Any]
    folder: str
    pet: SeriesInput
    ct: SeriesInput
    last_instance: int
    """The newest instance (row id) of the two series: what came later is not in this revision."""


def make_pair(index: MetadataIndex, settings: Settings, pair_id: int, generation: int) -> str:
    """Make the wanted generation of a pair; say what came of it.

    Returns "ready", "held" (refused with reasons), "busy" (another process makes it), "done" (made
    already) or "stale" (something newer is wanted). Errors of the system are raised: the sweeper
    asks again.
    """
    layout = settings.layout
    archive = index.identities().archive
    check_archive(layout, archive)
    check_writable(layout.output, "archive")
    with pair_lock(index, layout, pair_id) as alone:
        if not alone:
            return "busy"
        with index.write() as connection:
            wanted = _read_wanted(connection, layout, pair_id)
        if wanted is None or wanted.generation < generation:
            return "done"
        with _building(layout, wanted) as building:
            try:
                for file in (*wanted.pet.files, *wanted.ct.files):
                    is_file(layout.archive, file.relative_to(layout.archive))
                need = _need(wanted, settings.pairing)
                budget = memory_budget(settings.pairing.memory_mb)
                with share_of_memory(layout, need, budget):
                    summary = _build(wanted, settings.pairing, building)
                check_archive(layout, archive)  # unmounted meanwhile, nothing is laid below
                return _put_in_place(index, layout, wanted, building, summary)
            except (PairingRefused, DataError) as error:
                _refuse(index, wanted, str(error))
                return "held"
            except FileNotFoundError as error:
                check_archive(layout, archive)
                missing = sum(not file.exists() for file in (*wanted.pet.files, *wanted.ct.files))
                if not missing:
                    raise
                _refuse(index, wanted, _missing_words(missing))
                log.warning("files-missing", files=missing, error=type(error).__name__)
                return "held"
            except LinkRefused:
                _refuse(index, wanted, _LINK_WORDS)
                return "held"
            except OSError as error:
                if why := durable.why_full(error):
                    raise StoreUnavailable(f"the archive cannot be written: {why}") from error
                raise


def memory_words(index: MetadataIndex, settings: Settings, pair_id: int) -> str:
    """Say what memory a pair takes and what there is; "" where nobody can tell."""
    with index.write() as connection:
        wanted = _read_wanted(connection, settings.layout, pair_id)
    if wanted is None:
        return ""
    try:
        need = _need(wanted, settings.pairing)
    except (PairingRefused, DataError):
        return ""
    budget = memory_budget(settings.pairing.memory_mb)
    return (
        f"it takes about {in_words(need)}, and the pairs of this host may take"
        f" {in_words(budget)} together (pairing.memory_mb)"
    )


def _need(wanted: _Wanted, settings: PairingSettings) -> int:
    options = options_of(settings, wanted.override)
    pet, ct = volume_input(wanted.pet), volume_input(wanted.ct)
    return memory_need(pet, ct, options, _threads(settings))


def _threads(settings: PairingSettings) -> int:
    """Return how many threads decode, so that all workers of this host have a core for each."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, settings.workers))


def options_of(settings: PairingSettings, override: Override | None) -> PairOptions:
    """Return what the settings and a person say about the arrays."""
    return PairOptions(
        grid=settings.grid,
        ct_dtype=settings.ct_dtype,
        nifti=settings.nifti,
        bridge_gaps=override is not None and override.forced,
    )


def _missing_words(missing: int) -> str:
    files = "1 file" if missing == 1 else f"{missing} files"
    return f"{files} of the index missing in the tree: send the series again, then force the pair"


@contextmanager
def _building(layout: Layout, wanted: _Wanted) -> Iterator[Path]:
    """Make a locked temporary folder on the archive's file system, removed at the end."""
    name = f"pair-{wanted.pair_id}-{wanted.generation}-{secrets.token_hex(4)}"
    path = layout.archive_private / "tmp" / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.try_lock(descriptor)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # the old pair by now, or what was refused
        os.close(descriptor)


def _build(wanted: _Wanted, settings: PairingSettings, out: Path) -> PairSummary:
    override = wanted.override or Override()
    pet, ct = volume_input(wanted.pet), volume_input(wanted.ct)
    suv = judge_suv(
        pet.facts,
        strict=settings.strict_suv,
        weight_kg=override.weight_kg,
        dose_bq=override.dose_bq,
    )
    decision = dict(wanted.decision)
    decision["override"] = asdict(override) if wanted.override else None
    context = PairContext(
        study_uid=wanted.study_uid,
        revision=wanted.revision + 1,
        decision=decision,
        warnings=(),
        made_at=clock.utc_now(),
    )
    options = replace(options_of(settings, wanted.override), threads=_threads(settings))
    return build_pair(pet, ct, suv, context, options, out)


def _read_wanted(connection: Connection, layout: Layout, pair_id: int) -> _Wanted | None:
    row = connection.execute(
        sa.select(pair, study.c.study)
        .join(study, study.c.id == pair.c.study_id)
        .where(pair.c.id == pair_id)
    ).first()
    if row is None or row.generation <= max(row.done_generation, row.failed_generation):
        return None
    if row.state != "pending" or not row.pet or not row.ct:
        return None
    place = row.folder
    if not place or not (row.done_generation or is_free(layout.output / place, row.study)):
        place = claim_folder(connection, layout.output, pair_id, row.study_id, row.study, row.pet)
    return _Wanted(
        pair_id=pair_id,
        study_id=row.study_id,
        study_uid=row.study,
        generation=row.generation,
        revision=row.revision,
        override=read_override(row.override),
        decision=json.loads(row.decision),
        folder=place,
        pet=_read_series(connection, layout, row.pet, row.study_id),
        ct=_read_series(connection, layout, row.ct, row.study_id),
        last_instance=connection.execute(
            sa.select(sa.func.max(instance.c.id))
            .join(series, series.c.id == instance.c.series_id)
            .where(series.c.series.in_((row.pet, row.ct)))
        ).scalar_one(),
    )


def _read_series(
    connection: Connection, layout: Layout, series_uid: str, study_id: int
) -> SeriesInput:
    """Read which files a series has; the study's own before another's of the same UID."""
    own = sa.case((series.c.study_id == study_id, 0), else_=1)
    series_id = connection.execute(
        sa.select(series.c.id).where(series.c.series == series_uid).order_by(own).limit(1)
    ).scalar_one()
    rows = connection.execute(
        sa.select(instance, folder.c.home, folder.c.digits)
        .join(folder, folder.c.id == instance.c.folder_id)
        .where(instance.c.series_id == series_id)
        .order_by(instance.c.instance_uid)
    ).all()
    return SeriesInput(
        series_uid=series_uid,
        files=tuple(
            layout.archive / row.home / "studies" / row.digits / row.file_name for row in rows
        ),
        facts=tuple(InstanceFacts.from_json(row.facts) for row in rows),
        digests=tuple(row.sha256 for row in rows),
    )


def _refuse(index: MetadataIndex, wanted: _Wanted, reason: str) -> None:
    at = clock.utc_now()
    with index.write() as connection:
        connection.execute(
            pair.update()
            .where(pair.c.id == wanted.pair_id, pair.c.generation == wanted.generation)
            .values(state="held", failed_generation=wanted.generation,
                    reasons=json.dumps([reason]))
        )  # fmt: skip
        insert_event(connection, "pair-held", at, study_id=wanted.study_id,
                     generation=wanted.generation, reasons=[reason])  # fmt: skip
    log.warning("pair-refused", study=short(wanted.study_uid), generation=wanted.generation)


def _put_in_place(
    index: MetadataIndex, layout: Layout, wanted: _Wanted, building: Path, summary: PairSummary
) -> str:
    at = clock.utc_now()
    place = PurePosixPath(wanted.folder)
    with (
        folder_below(layout.output, place.parent, layout.folder_mode) as home,
        index.write() as connection,
    ):
        row = connection.execute(sa.select(pair).where(pair.c.id == wanted.pair_id)).one()
        if row.generation != wanted.generation or row.done_generation >= wanted.generation:
            return "stale"
        if row.state != "pending":  # held meanwhile: a verdict that a finished pair must not undo
            return "stale"
        target = Path(f"/proc/self/fd/{home}", place.name)  # wherever its name leads by now
        if not row.done_generation and not is_free(target, wanted.study_uid):
            return "stale"  # somebody laid a folder there meanwhile: another name is claimed
        exchange_folder(building, target, layout.file_mode, layout.folder_mode)
        connection.execute(
            pair.update()
            .where(pair.c.id == wanted.pair_id)
            .values(
                state="ready",
                done_generation=wanted.generation,
                revision=wanted.revision + 1,
                result=json.dumps(asdict(summary), default=str),
                ready_at=at,
            )
        )
        insert_event(connection, "pair-ready", at, study_id=wanted.study_id,
                     generation=wanted.generation, revision=wanted.revision + 1,
                     pet=wanted.pet.series_uid, ct=wanted.ct.series_uid,
                     last_instance=wanted.last_instance)  # fmt: skip
    log.info("pair-ready", study=short(wanted.study_uid), revision=wanted.revision + 1)
    return "ready"
