"""Look into the spool: left-overs, entries that are filed already, and what waits for long."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from workers.checking.codes import Code
from workers.checking.reading import digest_of, facts_of, is_left_over
from workers.checking.rows import PAGE, instances_by_uid
from workers.checking.scene import Scene
from workers.errors import DataError
from workers.filing import quarantine
from workers.filing.comparing import Likeness, compare_files
from workers.filing.rows import known_arrivals
from workers.filing.work import lock_entry
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival
from workers.spool.batches import (
    DESCRIPTION,
    EntryName,
    batch_names,
    entries_of,
    remove_if_empty,
    waiting_entries,
)

WAITING_SECONDS = 600.0
"""After this long the sweeper dispatches an entry again; what waits longer lacks a worker."""


def compare_spool(scene: Scene) -> None:
    """Look at what is being received, at what waits, and at where it came from."""
    _tell_incoming(scene)
    for batch in batch_names(scene.layout):
        _look_at_description(scene, batch)
    known: list[EntryName] = []
    for page in _pages(waiting_entries(scene.layout)):
        scene.report.compare("waiting", len(page))
        scene.progress("spool", scene.report.compared["waiting"], 0)
        with scene.index.read() as connection:
            done = known_arrivals(connection, [entry.identifier for entry in page])
        for entry in page:
            if entry.identifier in done:
                known.append(entry)
            else:
                _look_at_waiting(scene, entry)
    if known:
        scene.sleep(scene.settle_seconds)  # a worker unlinks right after its commit
        for entry in known:
            _settle_known(scene, entry)


def _pages(entries: Iterable[EntryName]) -> Iterator[list[EntryName]]:
    each = iter(entries)
    while page := list(islice(each, PAGE)):
        yield page


def _tell_incoming(scene: Scene) -> None:
    now = time.time()
    try:
        items = sorted(os.listdir(scene.layout.incoming))
    except FileNotFoundError:
        return
    for name in items:
        if is_left_over(scene.layout.incoming / name, now):
            scene.tell(Code.INCOMING_LEFT_OVER, f"incoming/{name}")


def _look_at_description(scene: Scene, batch: str) -> None:
    top = scene.layout.ready / batch
    facts = facts_of(top / DESCRIPTION)
    if facts is not None and stat.S_ISREG(facts.st_mode):
        return
    entries = sum(1 for _ in islice(entries_of(scene.layout, batch), PAGE))
    if entries and facts_of(top / DESCRIPTION) is None:  # else an empty batch on its way out
        most = "+" if entries == PAGE else ""
        scene.tell(Code.BATCH_WITHOUT_DESCRIPTION, f"batch {batch}", f"{entries}{most} entries")


def _look_at_waiting(scene: Scene, entry: EntryName) -> None:
    facts = facts_of(entry.where(scene.layout))
    if facts is None:
        return
    where = f"entry {entry.identifier} of batch {entry.batch}"
    if not stat.S_ISREG(facts.st_mode):
        scene.tell(Code.NOT_REGULAR, where, "in the spool")
        return
    age = time.time() - facts.st_ctime
    if age > WAITING_SECONDS:
        scene.tell(Code.ENTRY_WAITING, where, f"for {age / 60:.0f} minutes")


def _settle_known(scene: Scene, entry: EntryName) -> None:
    """Look again at an entry that the index knows, in nobody's hands."""
    path = entry.where(scene.layout)
    try:
        file = lock_entry(path)
    except OSError:
        return
    if file is None:
        return  # a worker has it, or it is gone
    with file:
        with scene.index.read() as connection:
            row = connection.execute(
                sa.select(arrival).where(arrival.c.entry == entry.identifier)
            ).first()
        if row is not None:
            where = f"entry {entry.identifier} of batch {entry.batch}"
            scene.settle(Code.ENTRY_KNOWN, where, row.outcome, lambda: _remove(scene, path, row))
    if scene.repair:
        remove_if_empty(scene.layout, entry.batch)


def _remove(scene: Scene, path: Path, row: Any) -> str | None:
    """Unlink an entry whose bytes are surely kept elsewhere."""
    if row.outcome in SET_ASIDE and row.outcome != "replaced":
        kept = quarantine.file_of(scene.layout.quarantine, row.entry)
        if facts_of(kept) is None or digest_of(kept) != digest_of(path):
            return "its bytes are not in quarantine"
    elif (why_not := _not_in_tree(scene, path, row)) is not None:
        return why_not
    path.unlink(missing_ok=True)
    return None


def _not_in_tree(scene: Scene, path: Path, row: Any) -> str | None:
    known = instances_by_uid(scene.index, [row.instance_uid or ""]).get(row.instance_uid or "")
    if known is None:
        return f"it is {row.outcome}: no instance in the tree to compare it with"
    kept = scene.layout.archive / known.path
    if facts_of(kept) is None or digest_of(kept) != known.sha256:
        return "the file in the tree is missing or damaged"
    if digest_of(path) == known.sha256:
        return None
    try:
        likeness = compare_files(kept, path).likeness
    except DataError:
        return "it cannot be compared with the file in the tree"
    return None if likeness is Likeness.DUPLICATE else "the file in the tree is another one"
