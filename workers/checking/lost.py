"""Rows whose file is not in the tree: looked at again, and looked for in quarantine and spool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from workers.checking.codes import Code
from workers.checking.mending import put_back
from workers.checking.reading import digest_of, facts_of, is_file, leads_through_link
from workers.checking.rows import InstanceRow, instances_by_id
from workers.checking.scene import Scene
from workers.checking.suspects import Lost, Suspects
from workers.errors import DataError
from workers.filing import quarantine
from workers.header.read import read_header
from workers.identity import check_archive
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival
from workers.spool.batches import waiting_entries


def settle_lost(scene: Scene, suspects: Suspects) -> None:
    """Look at every lost row again, and tell or mend what is really wrong."""
    done = 0
    for batch in suspects.lost():
        _settle_batch(scene, batch)
        done += len(batch)
        scene.progress("rows without a file", done, 0)


def _settle_batch(scene: Scene, batch: Sequence[Lost]) -> None:
    layout = scene.layout
    rows = [
        row
        for row in instances_by_id(scene.index, [one.instance_id for one in batch]).values()
        if _is_missing(layout.archive, row.path)
    ]
    if not rows:
        return
    check_archive(layout, scene.index.identities().archive)  # is it mounted yet?
    spooled = _in_spool(scene, rows)
    for row in rows:
        found = spooled.get(row.id) or _in_quarantine(scene, row)
        if found is None:
            scene.tell(Code.ROW_WITHOUT_FILE, row.path)
        else:
            file, place, digest = found, row.path, row.sha256
            detail = f"the same bytes lie at {file}"
            scene.settle(Code.ROW_WITHOUT_FILE, place, detail,
                         lambda file=file, place=place, digest=digest:  # type: ignore[misc]
                         put_back(layout, file, place, digest))  # fmt: skip


def _is_missing(archive: Path, path: str) -> bool:
    """Tell whether nothing lies there; what hides behind a link is told of the link."""
    try:
        missing = facts_of(archive / path) is None
    except OSError:
        return False
    return missing and not leads_through_link(archive, path)


def _in_spool(scene: Scene, rows: Sequence[InstanceRow]) -> dict[int, Path]:
    """Find waiting entries with the bytes of lost files."""
    wanted = {row.uid: row for row in rows}
    found: dict[int, Path] = {}
    for entry in waiting_entries(scene.layout):
        path = entry.where(scene.layout)
        try:
            row = wanted.get(read_header(path).facts.sop_instance_uid)
            if row is not None and digest_of(path) == row.sha256:
                found[row.id] = path
        except (OSError, DataError):
            continue
    return found


def _in_quarantine(scene: Scene, row: InstanceRow) -> Path | None:
    with scene.index.read() as connection:
        entries = connection.execute(
            sa.select(arrival.c.entry)
            .where(arrival.c.instance_uid == row.uid, arrival.c.outcome.in_(SET_ASIDE))
            .limit(100)
        ).scalars()
        files = [quarantine.file_of(scene.layout.quarantine, entry) for entry in entries]
    for file in files:
        try:
            if is_file(file) and digest_of(file) == row.sha256:
                return file
        except OSError:
            continue
    return None
