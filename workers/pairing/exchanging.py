"""Put a newly built pair in the place of the old one, whole, and finish what a kill interrupted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import sqlalchemy as sa

from config.layout import Layout
from workers import durable
from workers.index.engine import MetadataIndex
from workers.index.tables import pair


def exchange_folder(building: Path, target: Path) -> None:
    """Put the new folder in the place of the old one, which is left where the new one was built."""
    durable.fsync_folder(building)
    building.chmod(0o755)
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
    folder.

    Called at start, before any pair is made; returns how many were put back.
    """
    done = 0
    for old in (layout.archive_private / "tmp").glob("pair-*.old"):
        pair_id = int(old.name.split("-")[1])
        with index.read() as connection:
            place = connection.execute(
                sa.select(pair.c.folder).where(pair.c.id == pair_id)
            ).scalar()
        if place and not (layout.archive / place).exists():
            os.rename(old, layout.archive / place)
            durable.fsync_folder((layout.archive / place).parent)
            done += 1
    return done
