"""Take what is uploaded into the spool: one upload is one batch, each file an entry of its own.

A file is given its name in the batch when it is whole and fsynced. Folders are fsynced once for a
group of files; only then they are counted as received and offered for filing. What breaks off
leaves the files that came whole, and nothing of the one that did not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.layout import Layout
from config.logs import get_logger
from daemon.errors import UploadRefused
from daemon.room import Room
from daemon.watcher.names import entry_path
from workers import clock, durable
from workers.archives.paths import Paths
from workers.spool.batches import BatchSource, BatchWriter, EntryName
from workers.spool.uploads import add_entries, begin_list

FOLDER = "upload"
"""The folder that uploads come from, below the root: a source can match on it."""

MOST_FILES = 100_000
GROUP_FILES = 50
"""Files that share the fsync of their folders."""

TOO_LARGE, NO_ROOM = 413, 507

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """What is durable in the spool."""

    batch: str
    files: int
    bytes: int


class Upload:
    """Write the files of one upload, one after the other. For one thread at a time.

    Raises UploadRefused where nothing more is taken; then, and when all came, it is closed.
    """

    def __init__(
        self, layout: Layout, room: Room, offer: Callable[[EntryName], None], maximum_bytes: int
    ) -> None:
        self._layout = layout
        self._room = room
        self._offer = offer
        self._left = maximum_bytes
        self._maximum = maximum_bytes
        self._paths = Paths()
        self._batch: BatchWriter | None = None
        self._descriptor = -1
        self._path = ""
        self._adopted: list[EntryName] = []
        self._files = self._bytes = self._size = 0

    @property
    def received(self) -> Received:
        """What is durable by now."""
        return Received(self._name, self._files, self._bytes)

    def begin(self, name: str) -> None:
        """Begin a file; its name may be anything, and has its folders in it."""
        if self._files + len(self._adopted) >= MOST_FILES:
            raise UploadRefused(TOO_LARGE, f"an upload has at most {MOST_FILES:,} files")
        self.check_room(0)
        path, wrong = self._paths.give(name)
        if wrong:
            log.info("upload-name-changed", reason=wrong)
        self._path, self._size = entry_path(path), 0
        try:
            if self._batch is None:
                source = BatchSource(kind="folder", folder=os.fspath(self._layout.root / FOLDER))
                self._batch = BatchWriter(self._layout, source)
                begin_list(self._layout, self._batch.name, clock.wall())
            self._descriptor = durable.create_new(self._temporary, self._layout.file_mode)
        except OSError as error:
            raise _unwritable(error) from error

    def write(self, data: bytes | memoryview) -> None:
        """Write a piece of the file that was begun."""
        self._left -= len(data)
        if self._left < 0:
            raise too_large(self._maximum)
        self.check_room(len(data))
        try:
            self._size += durable.write_whole(self._descriptor, data)
        except OSError as error:
            raise _unwritable(error) from error
        self._room.took(len(data))

    def end(self) -> None:
        """End the file: it is whole."""
        if self._batch is None:
            raise ValueError("no file was begun")
        try:
            os.fsync(self._descriptor)
            entry = self._batch.adopt(self._temporary, self._path, sync=False)
        except OSError as error:
            raise _unwritable(error) from error
        self._let_go()
        self._bytes += self._size
        self._adopted.append(entry)
        if len(self._adopted) >= GROUP_FILES:
            self._flush()

    def close(self) -> Received:
        """End the upload: drop a file that did not come whole, make all others durable."""
        try:
            if self._descriptor >= 0:
                self._let_go()
                self._temporary.unlink(missing_ok=True)
            self._flush()
        finally:
            if self._batch is not None:
                self._batch.close()
        return self.received

    def check_room(self, size: int) -> None:
        """Refuse what the stores have no room for."""
        if reason := self._room.refusal(size, time.monotonic()):
            raise UploadRefused(NO_ROOM, f"{reason}; try again when there is room")

    def _flush(self) -> None:
        """Make the names of what was adopted durable, and offer it."""
        entries, self._adopted = self._adopted, []
        try:
            for folder in {entry.where(self._layout).parent for entry in entries}:
                durable.fsync_folder(folder)
        except OSError as error:
            raise _unwritable(error) from error
        self._files += len(entries)
        if self._batch is not None:
            add_entries(self._layout, self._batch.name, entries)
        for entry in entries:
            self._offer(entry)

    @property
    def _name(self) -> str:
        return self._batch.name if self._batch is not None else ""

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    @property
    def _temporary(self) -> Path:
        return self._layout.incoming / f"{self._name}.upload"


def too_large(maximum_bytes: int) -> UploadRefused:
    """Return the refusal of more than this."""
    return UploadRefused(
        TOO_LARGE,
        f"an upload has at most {maximum_bytes >> 20:,} MiB (web.maximum_upload_mb)",
    )


def _unwritable(error: OSError) -> UploadRefused:
    log.warning("upload-not-written", reason=error.strerror)
    return UploadRefused(NO_ROOM, f"the spool cannot be written: {error.strerror}")
