"""Compare the tree with the rows of instances: who lacks whom, and whether the files are whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from workers.checking.codes import Code
from workers.checking.merging import merge
from workers.checking.modes import ModeCheck
from workers.checking.reading import digest_of, facts_of
from workers.checking.rows import (
    InstanceRow,
    count_instances,
    instances_by_id,
    instances_in_order,
)
from workers.checking.scene import Scene
from workers.checking.suspects import Suspects
from workers.checking.waiting import waiting_like
from workers.checking.walking import Seen, place_key, series_folder, walk

PAIR_FOLDER = "Auto-Paired"

_TOLD_EVERY = 1000


def compare_tree(scene: Scene, suspects: Suspects) -> None:
    """Walk tree and index side by side; what lacks the other becomes a suspect."""
    total = count_instances(scene.index)
    rows = instances_in_order(scene.index)
    modes = ModeCheck(scene)
    files = _TreeWalk(scene, suspects, modes).instances()
    for row, seen in merge(rows, files, _row_key, _file_key):
        if row is not None:
            scene.report.compare("instances")
            done = scene.report.compared["instances"]
            if done % _TOLD_EVERY == 0:
                scene.progress("tree and index", done, total)
        if row is None and seen is not None:
            if seen.is_file:
                suspects.add_stray(seen.path)
        elif row is not None and seen is None:
            suspects.add_lost(row.id, row.path)
        elif row is not None and seen is not None and seen.is_file:
            modes.look_at_file(seen.path, seen.facts, adopted=row.adopted)
            _compare_file(scene, row, seen)
    scene.progress("tree and index", total, total)


class _TreeWalk:
    """The files of the tree; what is no file, or lies beside, is dealt with on the way."""

    def __init__(self, scene: Scene, suspects: Suspects, modes: ModeCheck) -> None:
        self._scene = scene
        self._suspects = suspects
        self._modes = modes

    def instances(self) -> Iterator[Seen]:
        """Yield what lies in folders of series, links and other things too, in order."""
        for folder, items in walk(self._scene.layout.archive, self._enter, self._trouble):
            inside = series_folder(folder) is not None
            for seen in items:
                self._scene.report.compare("files")
                if not seen.is_file:
                    self._scene.tell(Code.NOT_REGULAR, seen.path, seen.kind)
                elif not inside:
                    self._suspects.add_stray(seen.path)
                if inside:
                    yield seen

    def _enter(self, seen: Seen) -> bool:
        self._modes.look_at_folder(seen.path, seen.facts)
        if is_pair_folder(seen.path):
            self._suspects.add_pair_folder(seen.path)
            return False
        return True

    def _trouble(self, folder: str, error: OSError) -> None:
        self._scene.tell(Code.UNREADABLE, folder or ".", error.strerror or type(error).__name__)


def is_pair_folder(path: str) -> bool:
    """Tell whether a folder of the tree is one of a pair, by its name and place."""
    parts = path.split("/")
    return len(parts) == 3 and (parts[2] == PAIR_FOLDER or parts[2].startswith(f"{PAIR_FOLDER}-"))


def _row_key(row: InstanceRow) -> tuple[str, tuple[str, ...], str]:
    return place_key(row.home, row.digits, row.file_name)


def _file_key(seen: Seen) -> tuple[str, tuple[str, ...], str]:
    place = series_folder(seen.folder)
    return place_key(place.home, place.digits, seen.name) if place else ("", (), seen.name)


def _compare_file(scene: Scene, row: InstanceRow, seen: Seen) -> None:
    what = _difference(scene, row, seen.facts)
    if what is None:
        return
    # a worker may be replacing it (filing.duplicates = "replace"): then its entry waits yet
    now = facts_of(scene.layout.archive / row.path)
    if now is None or not stat.S_ISREG(now.st_mode):
        return  # whoever changes the tree at this moment is met again by the next check
    if waiting_like(scene.index, scene.layout, {row.path: now}, {row.path: row.uid}):
        return
    fresh = instances_by_id(scene.index, [row.id]).get(row.id)
    what = _difference(scene, fresh, now) if fresh is not None else None
    if what is not None:
        code, detail = what
        scene.tell(code, row.path, detail)


def _difference(scene: Scene, row: InstanceRow, facts: os.stat_result) -> tuple[Code, str] | None:
    """Say how a file differs from its row."""
    if facts.st_size != row.size:
        return Code.SIZE_DIFFERS, f"{facts.st_size} bytes, filed with {row.size}"
    if not scene.checksums:
        return None
    try:
        found = digest_of(scene.layout.archive / row.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Code.UNREADABLE, error.strerror or type(error).__name__
    if found != row.sha256:
        return Code.BYTES_DIFFER, f"SHA-256 {found[:16]}…, filed with {row.sha256[:16]}…"
    return None
