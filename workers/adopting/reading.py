"""Read files of a delivery in several processes at once: header and checksums, nothing written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workers.adopting.helpers import open_helpers
from workers.adopting.walking import Finding, FindingCode, FoundFile
from workers.errors import DataError
from workers.filing.examining import Instance, Skip, examine
from workers.filing.rows import header_columns
from workers.spool.batches import BatchSource

_FILES_A_TASK = 32
_MOST_LOADED = 16 << 20
"""Bytes of a file that is read into memory at once."""
_ARCHIVE = BatchSource(kind="archive")

Read = Future[list["ReadFile | Finding"]]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """One file that is an instance."""

    folder: str
    """Relative to the archive."""
    file: FoundFile
    instance: Instance
    columns: dict[str, Any]
    """Of the header: made here, since one process commits what many read."""

    @property
    def path(self) -> str:
        """The file, relative to the archive."""
        return f"{self.folder}/{self.file.name}"


class Readers:
    """Processes that read; results come in the order of the files, whoever was quicker."""

    def __init__(self, archive: Path, pool: ProcessPoolExecutor | None) -> None:
        self._archive = archive
        self._pool = pool

    def begin(self, files: Sequence[tuple[str, FoundFile]]) -> list[Read]:
        """Start reading files, each with its folder relative to the archive."""
        tasks = [files[at : at + _FILES_A_TASK] for at in range(0, len(files), _FILES_A_TASK)]
        if self._pool is None:
            return [_done(read_files(self._archive, task)) for task in tasks]
        return [self._pool.submit(read_files, self._archive, task) for task in tasks]


@contextmanager
def open_readers(archive: Path, processes: int) -> Iterator[Readers]:
    """Start `processes` readers; one reads in this process."""
    if processes <= 1:
        yield Readers(archive, None)
        return
    with open_helpers(processes, __name__) as pool:
        yield Readers(archive, pool)


def read_files(archive: Path, files: Sequence[tuple[str, FoundFile]]) -> list[ReadFile | Finding]:
    """Examine files, each with its folder; whatever is wrong with one is its finding."""
    found: list[ReadFile | Finding] = []
    for folder, file in files:
        path = f"{folder}/{file.name}"
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a fifo in its place by now
            with open(os.open(f"{archive}/{path}", flags), "rb") as opened:
                result = examine(_loaded(opened), file.name, _ARCHIVE)
        except DataError as error:
            found.append(Finding(FindingCode.NOT_ADOPTED, path, str(error)))
        except OSError as error:
            found.append(Finding(FindingCode.UNREADABLE, path, error.strerror or "cannot be read"))
        else:
            if isinstance(result, Skip):
                found.append(Finding(FindingCode.SKIPPED, path, result.reason))
            else:
                found.append(ReadFile(folder, file, result, header_columns(result.facts)))
    return found


class _Loaded(io.BytesIO):
    """A file whose content is in memory: every step in an open file asks the system."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file.read(size))
        self._file = file

    def fileno(self) -> int:
        """Return the descriptor of the file itself, for its facts."""
        return self._file.fileno()


def _loaded(file: BinaryIO) -> BinaryIO:
    size = os.fstat(file.fileno()).st_size
    return _Loaded(file, size) if size <= _MOST_LOADED else file


def _done(result: list[ReadFile | Finding]) -> Read:
    future: Read = Future()
    future.set_result(result)
    return future
