"""Gather what is known of the instances that a peer asks about: index, tree, spool."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

import sqlalchemy as sa

from config.layout import Layout
from workers import rooted
from workers.commitment.verdicts import Arrival, FileState
from workers.errors import DataError
from workers.header.read import announced_uid, read_open_header
from workers.index.engine import MetadataIndex
from workers.index.tables import arrival, folder, instance
from workers.spool.batches import EntryName, batch_names, entries_of, read_source

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class FiledRow:
    """Where an instance lies and what its file must be."""

    sop_class: str
    path: PurePath
    """Relative to the archive."""
    size: int
    sha256: str
    dataset_sha256: str


def filed_rows(index: MetadataIndex, uids: Iterable[str]) -> dict[str, FiledRow]:
    """Look up filed instances by SOPInstanceUID."""
    found: dict[str, FiledRow] = {}
    for some in _chunks(uids):
        with index.read() as connection:
            rows = connection.execute(
                sa.select(instance, folder.c.home, folder.c.digits)
                .join(folder, folder.c.id == instance.c.folder_id)
                .where(instance.c.instance_uid.in_(some))
            ).all()
        for row in rows:
            path = PurePath(row.home, "studies", row.digits, row.file_name)
            found[row.instance_uid] = FiledRow(
                row.sop_class_uid, path, row.size, row.sha256, row.dataset_sha256
            )
    return found


def arrivals_of(index: MetadataIndex, uids: Iterable[str]) -> dict[str, tuple[Arrival, ...]]:
    """Tell what became of every version of these instances that ever left the spool."""
    found: dict[str, tuple[Arrival, ...]] = {}
    for some in _chunks(uids):
        with index.read() as connection:
            rows = connection.execute(
                sa.select(
                    arrival.c.instance_uid,
                    arrival.c.outcome,
                    arrival.c.dataset_sha256,
                    arrival.c.source,
                )
                .where(arrival.c.instance_uid.in_(some))
                .order_by(arrival.c.id)
            ).all()
        for row in rows:
            one = Arrival(row.outcome, row.dataset_sha256, "@" in (row.source or ""))
            found[row.instance_uid] = (*found.get(row.instance_uid, ()), one)
    return found


def read_back(archive: Path, row: FiledRow) -> FileState:
    """Read a filed instance whole, from the disk where the system lets us, and compare."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with rooted.folder_below(archive, row.path.parent) as folder:
            descriptor = os.open(row.path.name, flags, dir_fd=folder)
    except FileNotFoundError:
        return FileState.MISSING
    except OSError as error:  # a link, or what the disk no longer gives
        return _changed(error)
    with open(descriptor, "rb", buffering=0) as file:
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # not what a cache remembers
            if os.fstat(descriptor).st_size != row.size:
                return FileState.CHANGED
            found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return _changed(error)
    return FileState.INTACT if found == row.sha256 else FileState.CHANGED


def _changed(error: OSError) -> FileState:
    """Say what an error means for a file; one whose handle is stale is opened anew (NFS)."""
    if error.errno == errno.ESTALE:
        raise error
    return FileState.CHANGED


class SpooledUids:
    """Which instances the waiting entries carry; each entry's head is read once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._read: dict[str, frozenset[str] | None] = {}

    def look(self) -> None:
        """Look at everything that waits now."""
        before, self._read = self._read, {}
        for batch in batch_names(self._layout):
            announced = self._comes_from_association(batch)
            for entry in entries_of(self._layout, batch):
                try:
                    self._read[entry.identifier] = (
                        before[entry.identifier]
                        if entry.identifier in before
                        else self._carried(entry, announced)
                    )
                except FileNotFoundError:  # filed meanwhile: the index knows it
                    continue

    def carrying(self, uids: Collection[str]) -> dict[str, frozenset[str] | None]:
        """Return the entries that carried one of these UIDs, or, with None, may carry any."""
        wanted = frozenset(uids)
        return {
            entry: carried
            for entry, carried in self._read.items()
            if carried is None or carried & wanted
        }

    def forget(self) -> None:
        """Let go what was read."""
        self._read = {}

    def _comes_from_association(self, batch: str) -> bool:
        try:
            return read_source(self._layout, batch).kind == "association"
        except (OSError, ValueError, TypeError):  # gone, or damaged
            return False

    def _carried(self, entry: EntryName, announced: bool) -> frozenset[str] | None:
        """Read what an entry carries: of an association what its sender called it.

        A dropped file's meta may be left over from another instance; there both count.
        """
        try:
            with open(entry.where(self._layout), "rb", opener=_no_follow) as file:
                uid = announced_uid(file)
                if announced:
                    return frozenset({uid}) if uid else None
                header = read_open_header(file)
                return frozenset({header.facts.sop_instance_uid, uid or ""})
        except FileNotFoundError:
            raise
        except (OSError, DataError):
            return None


def _chunks(uids: Iterable[str]) -> Iterator[list[str]]:
    left = iter(uids)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
