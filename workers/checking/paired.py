"""Compare pairs with their rows: is the folder there, of the right revision, and whole?"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from workers.checking.codes import Code
from workers.checking.reading import digest_of, facts_of, is_left_over, leads_through_link
from workers.checking.rows import PAGE, paged
from workers.checking.scene import Scene
from workers.checking.suspects import Suspects
from workers.completeness.judging import PairWish
from workers.errors import PairDamaged
from workers.index.tables import pair, study
from workers.pairing.exchanging import finish_exchanges
from workers.pairing.load import open_pair
from workers.pairing.locking import pair_lock
from workers.pairing.pair_json import PairMeta

_OLD = re.compile(r"pair-(\d+)-.*\.old")
_MADE = sa.select(pair, study.c.study).join(study, study.c.id == pair.c.study_id)


def compare_pairs(scene: Scene, suspects: Suspects) -> None:
    """Compare every pair that is made with its folder, and every folder with the pairs."""
    _settle_exchanges(scene)
    wishes: list[PairWish] = []
    done = sa.and_(pair.c.folder.is_not(None), pair.c.done_generation > 0)
    for row in paged(scene.index, _MADE.where(done), pair.c.id):
        scene.report.compare("pairs")
        scene.progress("pairs", scene.report.compared["pairs"], 0)
        if _is_wanted(row) or _trouble_of(scene, row) is None:
            continue
        with pair_lock(scene.index, scene.layout, row.id) as alone:
            if alone:
                _settle(scene, row.id, wishes)
    _tell_folders_without_row(scene, suspects)
    _ask(scene, wishes)


def _is_wanted(row: Any) -> bool:
    """Tell whether the pair will be made again anyway."""
    made = max(int(row.done_generation), int(row.failed_generation))
    return bool(row.state == "pending" and row.generation > made)


def _settle(scene: Scene, pair_id: int, wishes: list[PairWish]) -> None:
    """Look again while nobody makes this pair."""
    with scene.index.read() as connection:
        row: Any = connection.execute(_MADE.where(pair.c.id == pair_id)).first()
    if row is None or _is_wanted(row):
        return
    trouble = _trouble_of(scene, row)
    if trouble is None:
        return

    def mend() -> str | None:
        if row.state != "ready":
            return f"the pair is {row.state}: it is made again when that is resolved"
        with scene.index.write() as connection:
            changed = connection.execute(
                pair.update()
                .where(pair.c.id == row.id, pair.c.state == "ready",
                       pair.c.generation == row.generation)
                .values(state="pending", generation=row.generation + 1)
            ).rowcount  # fmt: skip
        if changed:
            wishes.append(PairWish(row.id, row.generation + 1))
        return None

    code, detail = trouble
    scene.settle(code, row.folder, detail, mend)


def _trouble_of(scene: Scene, row: Any) -> tuple[Code, str] | None:
    """Say what is wrong with the folder of a pair."""
    folder = scene.layout.output / row.folder
    facts = facts_of(folder)
    if facts is None:
        hidden = leads_through_link(scene.layout.output, row.folder)
        return None if hidden else (Code.PAIR_MISSING, f"revision {row.revision}")
    if not stat.S_ISDIR(facts.st_mode):
        return None  # told as what it is by the walk of the tree
    try:
        meta = open_pair(folder).meta
        if (meta.study, meta.revision) != (row.study, row.revision):
            found = f"revision {meta.revision} of {meta.study}"
            return Code.PAIR_DIFFERS, f"{found}, the index says {row.revision} of {row.study}"
        why = _difference(folder, meta, checksums=scene.checksums)
    except PairDamaged as error:
        why = str(error)
    except OSError as error:
        why = f"{os.path.basename(error.filename or '')}: {error.strerror}"
    return (Code.PAIR_DAMAGED, why) if why else None


def _difference(folder: Path, meta: PairMeta, *, checksums: bool) -> str | None:
    """Say which file of a pair is missing or, with checksums, not what pair.json says."""
    digests = {meta.ct.file: meta.ct.sha256, meta.pet.file: meta.pet.sha256, **meta.outputs}
    for name, digest in digests.items():
        facts = facts_of(folder / name)
        if facts is None or not stat.S_ISREG(facts.st_mode):
            return f"{name} is missing"
        if checksums and digest_of(folder / name) != digest:
            return f"{name} has other bytes than pair.json says"
    return None


def _tell_folders_without_row(scene: Scene, suspects: Suspects) -> None:
    batch: list[str] = []
    for path in _and_none(suspects.pair_folders()):
        if path is not None:
            batch.append(path)
        if batch and (path is None or len(batch) >= PAGE):
            with scene.index.read() as connection:
                found = connection.execute(sa.select(pair.c.folder).where(pair.c.folder.in_(batch)))
                known = set(found.scalars())
            for one in batch:
                if one not in known and facts_of(scene.layout.archive / one) is not None:
                    scene.tell(Code.PAIR_WITHOUT_ROW, one)
            batch = []


def _and_none(paths: Iterator[str]) -> Iterator[str | None]:
    yield from paths
    yield None


def _settle_exchanges(scene: Scene) -> None:
    """Look at what lies in the archive's place for half-made things."""
    place = scene.layout.archive_private / "tmp"
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return
    now = time.time()
    for name in names:
        old = _OLD.fullmatch(name)
        if old is None:
            if is_left_over(place / name, now):
                scene.tell(Code.TEMPORARY_LEFT_OVER, f".petct/tmp/{name}")
            continue
        with pair_lock(scene.index, scene.layout, int(old[1])) as alone:
            unfinished = alone and facts_of(place / name) is not None
        if unfinished:
            scene.settle(Code.EXCHANGE_UNFINISHED, f".petct/tmp/{name}", "",
                         lambda name=name: _finish(scene, name))  # type: ignore[misc]  # fmt: skip


def _finish(scene: Scene, name: str) -> str | None:
    finish_exchanges(scene.index, scene.layout)
    left = facts_of(scene.layout.archive_private / "tmp" / name)
    return "its pair is being made" if left is not None else None


def _ask(scene: Scene, wishes: list[PairWish]) -> None:
    if wishes and scene.settings.pairing.enabled:
        from workers.jobs import ask_for_pairs  # RQ loads only where something is mended

        ask_for_pairs(scene.settings, wishes)
