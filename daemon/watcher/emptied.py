"""Which emptied folders of a drop may go?

A drop is a folder at the top of the watched folder out of which files were taken. What is left of
it when everything is taken are empty folders; they go when nothing has come into them or left them
for 10 minutes. A folder that we took nothing from, and one that holds anything at all (a dotfile is
enough), stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from daemon.watcher.scanning import FolderState
from workers import durable

QUIET_SECONDS = 600.0
"""How long an empty folder must be left alone before it is removed."""


class Emptied:
    """Keep how long hollow folders have been as they are; `now` is monotonic seconds."""

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._since: dict[str, tuple[FolderState, float]] = {}

    def saw(self, hollow: Mapping[str, FolderState], now: float) -> None:
        """Note what a whole scan found to hold nothing but empty folders, deepest first."""
        before = self._since
        self._since = {}
        for folder, state in hollow.items():
            known = before.get(folder)
            since = known[1] if known is not None and known[0] == state else now
            self._since[folder] = (state, since)

    def due(self, now: float) -> list[str]:
        """Name the folders that may go, deepest first: quiet themselves, and all below them."""
        lively: set[str] = set()
        quiet = []
        for folder, (_, since) in self._since.items():
            if folder in lively or now - since < self._quiet_seconds:
                lively.add(os.path.dirname(folder))
            else:
                quiet.append(folder)
        return quiet


class Drops:
    """The names of the drops that are being taken, kept over a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._names = {str(name) for name in json.loads(path.read_bytes())}
        except (FileNotFoundError, ValueError):
            self._names = set()

    def add(self, paths: Iterable[str]) -> None:
        """Note files that were taken, by their paths in the watched folder."""
        self._keep(self._names | {top for path in paths for top in (_top(path),) if top})

    def retain(self, present: Container[str]) -> None:
        """Forget the drops that are gone."""
        self._keep({name for name in self._names if name in present})

    def cover(self, folder: str) -> bool:
        """Tell whether a folder is part of a drop."""
        return (_top(folder) or folder) in self._names

    def _keep(self, names: set[str]) -> None:
        if names != self._names:
            durable.replace_file(self._path, json.dumps(sorted(names)).encode())
            self._names = names


def remove_folders(root: str, folders: Iterable[str]) -> int:
    """Remove empty folders, given deepest first; what is not empty any more stays."""
    removed = 0
    for folder in folders:
        try:
            os.rmdir(os.path.join(root, folder))
            removed += 1
        except (
            OSError
        ):  # something came in, or it is not ours to remove: both are no reason to fail
            continue
    return removed


def _top(path: str) -> str | None:
    top, slash, _ = path.partition("/")
    return top if slash else None
