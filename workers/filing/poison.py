"""Entries in whose hands workers die.

While a worker reads an entry, its name stands in a file that the worker holds locked. Who finds
such a file unlocked knows that its worker died over that entry, and counts. An entry with too many
deaths is quarantined.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from workers import durable

_NAME_BYTES = 32


class Hand:
    """What this worker holds; a context manager around its work on a batch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "hands"
        self._deaths = folder / "deaths"
        self._path = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._descriptor = -1
        self._dead: set[str] = set()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._deaths.mkdir(exist_ok=True)
        while not self._take_up():
            pass  # whoever looked at it before it was locked took it for a dead worker's
        self._dead.update(os.listdir(self._deaths))
        return self

    def _take_up(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        if durable.try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            self._descriptor = descriptor
            return True
        os.close(descriptor)
        self._path.unlink(missing_ok=True)
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    @contextmanager
    def holding(self) -> Iterator[Callable[[str], None]]:
        """Yield what says that an entry is being read.

        Whatever kills the worker until the next one is, or until the end, is counted to it.
        """
        try:
            yield self._hold
        finally:
            os.ftruncate(self._descriptor, 0)

    def _hold(self, entry: str) -> None:
        os.pwrite(self._descriptor, entry.encode("ascii"), 0)

    def count_the_dead(self) -> list[str]:
        """Count one death for each entry that a dead worker held; return those entries."""
        found = []
        for item in os.scandir(self._folder):
            if item.name == self._path.name:
                continue
            try:
                descriptor = os.open(item.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if not durable.try_lock(descriptor):
                    continue  # its worker lives
                entry = os.pread(descriptor, _NAME_BYTES, 0).decode("ascii", "replace")
                if len(entry) == _NAME_BYTES and entry.isalnum() and os.path.exists(item.path):
                    with open(self._deaths / entry, "ab") as deaths:
                        deaths.write(b"x")
                    found.append(entry)
                os.unlink(item.path)
            except FileNotFoundError:
                continue  # somebody else counted it
            finally:
                os.close(descriptor)
        self._dead.update(found)
        return found

    def deaths(self, entry: str) -> int:
        """Return how many workers died while they held this entry."""
        if entry not in self._dead:
            return 0
        try:
            return os.stat(self._deaths / entry).st_size
        except FileNotFoundError:
            return 0

    def forget(self, entry: str) -> None:
        """Forget an entry that is done."""
        if entry in self._dead:
            (self._deaths / entry).unlink(missing_ok=True)
            self._dead.discard(entry)
