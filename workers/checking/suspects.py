"""What looks wrong at first sight, kept on disk until it is looked at again.

A daemon may be at work meanwhile. A file is linked before its row is committed, and a million files
can be moved by one command: so suspects neither count as findings nor stay in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

BATCH = 500


@dataclass(frozen=True, slots=True)
class Lost:
    """A row whose file was not seen."""

    instance_id: int
    path: str


class Suspects:
    """A temporary database of its own, gone with this object."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            "CREATE TABLE lost (id INTEGER PRIMARY KEY, path TEXT)",
            "CREATE TABLE stray (path BLOB PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE pair_folder (path TEXT PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def add_lost(self, instance_id: int, path: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO lost VALUES (?, ?)", (instance_id, path))

    def add_stray(self, path: str) -> None:
        """Remember a file that no row was seen for; its name may be no text."""
        raw = path.encode("utf-8", "surrogateescape")
        self._database.execute("INSERT OR REPLACE INTO stray VALUES (?)", (raw,))

    def add_pair_folder(self, path: str) -> None:
        raw = path.encode("utf-8", "replace").decode()
        self._database.execute("INSERT OR REPLACE INTO pair_folder VALUES (?)", (raw,))

    def found(self, instance_id: int) -> None:
        """Forget a lost row: its file was found elsewhere."""
        self._database.execute("DELETE FROM lost WHERE id = ?", (instance_id,))

    def strays(self) -> Iterator[list[str]]:
        """Yield every stray file, some at a time, in order."""
        last = b""
        while found := self._database.execute(
            "SELECT path FROM stray WHERE path > ? ORDER BY path LIMIT ?", (last, BATCH)
        ).fetchall():
            last = found[-1][0]
            yield [path.decode("utf-8", "surrogateescape") for (path,) in found]

    def lost(self) -> Iterator[list[Lost]]:
        """Yield every lost row, some at a time."""
        last = -1
        while found := self._database.execute(
            "SELECT id, path FROM lost WHERE id > ? ORDER BY id LIMIT ?", (last, BATCH)
        ).fetchall():
            last = found[-1][0]
            yield [Lost(*row) for row in found]

    def pair_folders(self) -> Iterator[str]:
        """Yield every folder of a pair that was seen, in order."""
        last = ""
        while found := self._database.execute(
            "SELECT path FROM pair_folder WHERE path > ? ORDER BY path LIMIT ?", (last, BATCH)
        ).fetchall():
            last = found[-1][0]
            yield from (path for (path,) in found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._database.close()
