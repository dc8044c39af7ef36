"""Put a newly built pair in the place of the old one, whole, and finish what a kill interrupted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import sqlalchemy as sa

from config.layout import Layout
from workers import durable
from workers.index.engine import MetadataIndex
from workers.index.tables import pair, study
from workers.pairing.locking import pair_lock
from workers.rooted import LinkRefused


def exchange_folder(
    building: Path, target: Path, file_mode: int = 0o644, folder_mode: int = 0o755
) -> None:
    """Put the new folder in the place of the old one, which is left where the new one was built.

    Raises LinkRefused where a symbolic link, or something that is no folder, has its name.
    """
    for file in building.iterdir():
        file.chmod(file_mode)
    durable.give_folder_mode(building, folder_mode)
    durable.fsync_folder(building)
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise LinkRefused(target)
    if not target.exists():
        fresh = building.with_name(building.name + ".new")
        os.rename(building, fresh)  # the context removes `building`, not what is in its place
        os.rename(fresh, target)
    elif not durable.exchange(building, target):  # a file system without RENAME_EXCHANGE
        old = building.with_name(building.name + ".old")
        os.rename(target, old)
        os.rename(building, target)
        shutil.rmtree(old, ignore_errors=True)
    durable.fsync_folder(target.parent)


def finish_exchanges(index: MetadataIndex, layout: Layout) -> int:
    """Put back the pairs that a kill between two renames (no RENAME_EXCHANGE) left without a
    folder, and remove the old ones that have been replaced.

    A pair that is being made is left alone, so this may run at any time; returns how many were put
    back.
    """
    done = 0
    for old in (layout.archive_private / "tmp").glob("pair-*.old"):
        pair_id = int(old.name.split("-")[1])
        with pair_lock(index, layout, pair_id) as alone:
            if alone and old.exists():
                done += _finish(index, layout, old, pair_id)
    return done


def _finish(index: MetadataIndex, layout: Layout, old: Path, pair_id: int) -> bool:
    """Put one old pair back where nothing took its place; tell whether it was."""
    with index.read() as connection:
        row = connection.execute(
            sa.select(pair.c.folder, study.c.study)
            .join(study, study.c.id == pair.c.study_id)
            .where(pair.c.id == pair_id)
        ).first()
    study_there = _study_in(old)
    if study_there is None:
        return False
    if row is not None and row.folder and row.study == study_there:
        target = layout.output / row.folder
        if not _stands(target):
            os.rename(old, target)  # never over a folder that holds something
            durable.fsync_folder(target.parent)
            return True
    shutil.rmtree(old, ignore_errors=True)
    return False


def _stands(folder: Path) -> bool:
    """Tell whether a pair is there: opened, for the look of a name may be minutes old on NFS."""
    try:
        with open(folder / "pair.json", "rb"):
            return True
    except FileNotFoundError:
        return os.path.lexists(folder) and bool(os.listdir(folder))


def _study_in(folder: Path) -> str | None:
    """Return which study a pair is of: an index made anew may have numbered pairs otherwise.

    "" where it is of none, None where it cannot be read now: it may be the only one that stands.
    """
    try:
        return str(json.loads((folder / "pair.json").read_bytes())["study"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return ""
    except OSError:
        return None
