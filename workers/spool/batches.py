"""Batches of the spool: written by an intake, read by the filing workers.

    spool/incoming/…                   being written, never acknowledged
    spool/ready/<batch>/batch.json     where it came from, durable before its first entry
    spool/ready/<batch>/<entry>        one instance; a path with folders where a folder was dropped

A batch is one association, one scan of a watched folder, or one archive. Whoever writes it holds a
lock on its batch.json; an empty batch that nobody holds is removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from config.layout import Layout
from workers import durable

DESCRIPTION = "batch.json"
_DESCRIPTION_BYTES = 64 << 10
_BATCH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Where a batch came from."""

    kind: Literal["association", "folder", "archive"]
    calling_ae: str = ""
    called_ae: str = ""
    address: str = ""
    folder: str = ""
    archive: str = ""

    @property
    def key(self) -> str:
        """The source as one word, for events and counts; no patient is in it."""
        if self.kind == "association":
            return f"{self.calling_ae}>{self.called_ae}@{self.address}"
        return f"{self.kind}:{hashlib.blake2b(os.fsencode(self.folder), digest_size=4).hexdigest()}"


@dataclass(frozen=True, slots=True, order=True)
class EntryName:
    """The name of one entry: its batch and its path inside it."""

    batch: str
    path: str

    @property
    def identifier(self) -> str:
        """32 hex digits that stand for this entry in queues, index and logs: paths name people."""
        words = os.fsencode(self.batch) + b"\0" + os.fsencode(self.path)
        return hashlib.blake2b(words, digest_size=16).hexdigest()

    def where(self, layout: Layout) -> Path:
        return layout.ready / f"{self.batch}/{self.path}"


class Unpublished:
    """An entry that is being written; it is in its batch only when `publish` has returned.

    It is locked until then (`durable.remove_stale` lets it be). Whoever began it publishes or
    abandons it. For one thread at a time. Raises OSError where it cannot be written.
    """

    def __init__(
        self, name: EntryName, incoming: str, batch: str, mode: int, nameless: int = -1
    ) -> None:
        """Begin an entry in the folder `incoming`, to be published in the folder `batch`.

        `nameless` is a file that was made for it (`durable.create_nameless`), if there is one.
        """
        self.name = name
        self._temporary = f"{incoming}/{name.batch}.{name.path}"
        self._batch = batch
        self._descriptor = self._create(mode, nameless)

    def _create(self, mode: int, nameless: int) -> int:
        if nameless >= 0:
            # what it cannot be named for, a new file says too; or the disk is another by now
            with suppress(OSError):
                return durable.name_new(nameless, self._temporary)
        return durable.create_new(self._temporary, mode)

    def write(self, *pieces: bytes | memoryview) -> None:
        durable.write_pieces(self._descriptor, pieces)

    def publish(self) -> EntryName:
        """Make it durable and give it its name."""
        os.fsync(self._descriptor)
        os.rename(self._temporary, f"{self._batch}/{self.name.path}")
        self._close()
        durable.fsync_folder(self._batch)
        return self.name

    def abandon(self) -> None:
        """Remove what was written, unless it has its name already; may be called again."""
        if self._descriptor >= 0:
            self._close()
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class BatchWriter:
    """Write one batch; safe for several threads, closed with its association or scan.

    Every publishing method returns only when the entry is durable, and raises OSError otherwise.
    """

    def __init__(self, layout: Layout, source: BatchSource, name: str | None = None) -> None:
        """Begin a batch, or with `name` take an earlier one up again.

        A batch taken up again (made anew where it was filed and removed meanwhile) gives an entry
        the name that it had, so that an intake which was killed finishes without anything counted
        twice; it adopts and never numbers. Raises BlockingIOError where somebody else holds that
        batch.
        """
        self._layout = layout
        self.name = name or new_batch_name(source)
        self.folder = layout.ready / self.name
        # words and not paths, which take as long to put together as the disk to rename
        self._folder, self._incoming = os.fspath(self.folder), os.fspath(layout.incoming)
        self._mode = layout.file_mode  # the tree's: the spool is 0700
        self._numbers = iter(range(1, 1_000_000_000))
        self._taken_up = name is not None
        self._nameless = -1
        self._lock = threading.Lock()
        self._held = self._make(source) if name is None else self._take_up(source)

    def _make(self, source: BatchSource) -> int:
        building = self._layout.incoming / f"{self.name}.batch"
        building.mkdir(mode=0o700)
        description = building / DESCRIPTION
        held = -1
        try:
            durable.write_new(description, (json.dumps(asdict(source)).encode(),))
            held = os.open(description, os.O_RDONLY | os.O_CLOEXEC)
            durable.try_lock(held)  # ours alone: nobody else knows the name yet
            durable.fsync_folder(building)
            os.rename(building, self.folder)
            durable.fsync_folder(self._layout.ready)
        except BaseException:
            if held >= 0:
                os.close(held)
            description.unlink(missing_ok=True)
            if building.exists():
                building.rmdir()
            raise
        return held

    def _take_up(self, source: BatchSource) -> int:
        for _ in range(100):
            try:
                held = os.open(self.folder / DESCRIPTION, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                building = self._layout.incoming / f"{self.name}.batch"
                if building.is_dir():  # its maker was killed before anybody saw it
                    (building / DESCRIPTION).unlink(missing_ok=True)
                    building.rmdir()
                return self._make(source)
            if not durable.try_lock(held):
                os.close(held)
                break
            if os.fstat(held).st_nlink:
                return held
            os.close(held)  # it was removed as empty between open and lock
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the batch", self.name)

    def begin(self) -> Unpublished:
        """Begin an entry that is written piece by piece, under the next running number."""
        if self._taken_up:
            raise ValueError(
                f"batch {self.name} was taken up again: its numbers may be used already"
            )
        with self._lock:
            number = next(self._numbers)
            nameless, self._nameless = self._nameless, -1
        name = EntryName(self.name, f"{number:08d}")
        return Unpublished(name, self._incoming, self._folder, self._mode, nameless)

    def prepare(self) -> None:
        """Make a file for the entry that `begin` begins next, nameless until then.

        To find an inode can take longer than all else that is not the disk's (decision 0030). What
        goes wrong here goes wrong there too, and is told there.
        """
        with self._lock, suppress(OSError):
            if self._held >= 0 and self._nameless < 0:
                self._nameless = durable.create_nameless(self._incoming, self._mode)

    def publish(self, chunks: Iterable[bytes | memoryview]) -> EntryName:
        """Store one instance under the next running number."""
        entry = self.begin()
        try:
            for chunk in chunks:
                entry.write(chunk)
            return entry.publish()
        except BaseException:
            entry.abandon()
            raise

    def adopt(self, file: Path, path: str, *, sync: bool = True) -> EntryName:
        """Move a durable file of the same file system in under a relative path.

        With `sync` off the caller fsyncs the entry's folder itself, once for many.

        Raises FileExistsError where the batch has that path, ValueError where the path leaves the
        batch.
        """
        target = self.folder / self._checked(path)
        durable.make_folders(target.parent)
        durable.rename_new(file, target)
        if sync:
            durable.fsync_folder(target.parent)
        return EntryName(self.name, path)

    def has(self, path: str) -> bool:
        return (self.folder / self._checked(path)).exists()

    @staticmethod
    def _checked(path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path or path == DESCRIPTION:
            raise ValueError(f"no path of an entry: {path!r}")
        return path

    def close(self) -> None:
        """Let the batch go: no more entries come; an empty one is removed."""
        with self._lock:
            if self._held < 0:
                return
            os.close(self._held)
            self._held = -1
            if self._nameless >= 0:
                os.close(self._nameless)
                self._nameless = -1
        remove_if_empty(self._layout, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_batch_name(source: BatchSource) -> str:
    """Name a batch: its kind, the time (names sort by it), and what makes it the only one, on
    whichever host: entries are known by it.
    """
    return f"{source.kind[0]}{int(time.time() * 1000):013d}-{secrets.token_hex(8)}"


def is_batch_name(name: object) -> bool:
    """Tell whether this can be the name of a batch (`new_batch_name`), and so of a folder."""
    return isinstance(name, str) and _BATCH_NAME.fullmatch(name) is not None


def read_source(layout: Layout, batch: str) -> BatchSource:
    """Read where a batch came from.

    Raises FileNotFoundError when the batch is gone, ValueError when its description is damaged.
    """
    with open(layout.ready / batch / DESCRIPTION, "rb") as file:
        try:
            raw = json.loads(file.read(_DESCRIPTION_BYTES))
        except RecursionError:
            raise ValueError("the description of a batch is no description") from None
    if not isinstance(raw, dict):
        raise ValueError("the description of a batch is no object")  # noqa: TRY004 - its data is
    found = {key: raw[key] for key in BatchSource.__dataclass_fields__ if key in raw}
    if found.get("kind") not in ("association", "folder", "archive"):
        raise ValueError("the description of a batch says no kind")
    for key, value in found.items():
        if not isinstance(value, str) or b"\0" in os.fsencode(value):
            raise ValueError(f"the description of a batch has no text for {key}")
    return BatchSource(**found)


def batch_names(layout: Layout) -> list[str]:
    """List the batches, oldest first (names begin with kind and time)."""
    try:
        names = [
            item.name for item in os.scandir(layout.ready) if item.is_dir(follow_symlinks=False)
        ]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda name: name[1:])


def entries_of(layout: Layout, batch: str) -> Iterator[EntryName]:
    """Yield the waiting entries of a batch; a batch that goes meanwhile just ends."""
    top = layout.ready / batch
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            items = sorted(os.scandir(top / folder), key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for item in items:
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_dir(follow_symlinks=False):
                folders.append(path)
            elif path != DESCRIPTION:
                yield EntryName(batch, path)


def waiting_entries(layout: Layout) -> Iterator[EntryName]:
    """Yield every entry that waits to be filed, oldest batch first."""
    for batch in batch_names(layout):
        yield from entries_of(layout, batch)


def oldest_waiting(layout: Layout) -> float | None:
    """Return when the oldest waiting entry was published (wall clock, st_ctime), or None."""
    oldest: float | None = None
    for entry in waiting_entries(layout):
        try:
            facts = os.lstat(entry.where(layout))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode) and (oldest is None or facts.st_ctime < oldest):
            oldest = facts.st_ctime
    return oldest


def remove_if_empty(layout: Layout, batch: str) -> bool:
    """Remove a batch that has no entry and no writer; True if it is gone."""
    top = layout.ready / batch
    description = top / DESCRIPTION
    try:
        descriptor = os.open(description, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = -1
    except NotADirectoryError:
        return False
    try:
        if descriptor >= 0 and not durable.try_lock(descriptor):
            return False
        for folder, _, files in os.walk(top, topdown=False):
            if any(os.path.join(folder, name) != os.fspath(description) for name in files):
                return False
            if folder != os.fspath(top):
                try:
                    os.rmdir(folder)
                except OSError:  # something came in or went away meanwhile: not now
                    return False
        if next(entries_of(layout, batch), None) is not None:
            return False
        description.unlink(missing_ok=True)
        os.rmdir(top)
    except FileNotFoundError:
        return True  # another process removed it first
    except OSError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True
