"""Who may read and write what is filed: nobody beyond what the settings say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from workers.checking.codes import Code
from workers.checking.reading import facts_of
from workers.checking.rows import has_adopted
from workers.checking.scene import Scene

_PRIVATE = 0o700
_NOT_ALL_WRITE = 0o775


def too_wide(mode: int, allowed: int) -> int:
    """Return the permissions that go beyond what is allowed."""
    return stat.S_IMODE(mode) & 0o777 & ~allowed


class ModeCheck:
    """Look at modes; narrow what is too wide where that is asked for."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        layout = scene.layout
        self._file, self._folder = layout.file_mode, layout.folder_mode
        # who delivered a tree decided who reads it; only that everybody may write is never meant
        self._folders = _NOT_ALL_WRITE if has_adopted(scene.index) else self._folder

    def look_at_file(self, path: str, facts: os.stat_result, *, adopted: bool) -> None:
        """Look at one instance of the tree."""
        self._compare(path, facts, _NOT_ALL_WRITE if adopted else self._file)

    def look_at_folder(self, path: str, facts: os.stat_result) -> None:
        """Look at one folder of the tree."""
        self._compare(path, facts, self._folders)

    def look_at_stores(self) -> None:
        """Look at what is our user's alone, at the index and at the journal."""
        layout = self._scene.layout
        for folder in (layout.spool, layout.quarantine, layout.run):
            self._look(folder, _PRIVATE)
        self._look(layout.archive, self._folders)
        self._look(layout.archive_private, self._folder)
        self._look(layout.archive_private / "facts.jsonl", self._file)
        for suffix in ("", "-wal", "-shm"):
            self._look(layout.index.with_name(layout.index.name + suffix), self._file)

    def _compare(self, path: str, facts: os.stat_result, allowed: int) -> None:
        if too_wide(facts.st_mode, allowed):
            self._tell(self._scene.layout.archive / path, path, facts, allowed)

    def _look(self, path: Path, allowed: int) -> None:
        facts = facts_of(path)
        if facts is None or stat.S_ISLNK(facts.st_mode):
            return  # a link's own mode means nothing; what it leads to is its owner's
        if too_wide(facts.st_mode, allowed):
            self._tell(path, str(path), facts, allowed)

    def _tell(self, path: Path, where: str, facts: os.stat_result, allowed: int) -> None:
        mode = stat.S_IMODE(facts.st_mode)
        detail = f"{mode:04o}, at most {allowed:04o}"
        self._scene.settle(Code.MODE_WIDE, where, detail, lambda: _narrow(path, allowed))


def _narrow(path: Path, allowed: int) -> str | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.fchmod(descriptor, mode & (allowed | ~0o777))
    finally:
        os.close(descriptor)
    return None
