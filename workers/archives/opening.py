"""Open an archive of any of the five kinds: tar, tgz, tar.gz, tar.bz2, zip; and those inside it.

    for one in open_archive(path):
        match one:
            case Member(): one.stream.chunks()   # now, before the next one
            case Finding(): report(one)

Nothing is unpacked to a name that the archive gives. What is readable comes, also of an archive
that is cut or damaged; what is not is a finding. Of the suffix and the bytes it is the bytes that
tell the kind.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from workers.archives import tars, zips
from workers.archives.members import (
    CHUNK_BYTES,
    Bounds,
    Budget,
    Bunzipped,
    Counted,
    Finding,
    FindingCode,
    Member,
    Source,
    Stream,
    gunzipped,
    read_exactly,
)
from workers.archives.paths import Paths, safe_path
from workers.errors import ArchiveDamaged, DataError, Exceeded

_HEAD_BYTES = 512
_ENTRY = "/"


class Kind(StrEnum):
    TAR = "tar"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    ZIP = "zip"


_SUFFIXES = {
    ".tar": Kind.TAR,
    ".tgz": Kind.GZIP,
    ".tar.gz": Kind.GZIP,
    ".tar.bz2": Kind.BZIP2,
    ".zip": Kind.ZIP,
}


def kind_by_name(name: str) -> Kind | None:
    """Tell which kind a name claims, None where it is no archive's."""
    lower = name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if lower.endswith(suffix)), None)


def kind_by_bytes(head: bytes) -> Kind | None:
    """Tell the kind by the first 512 bytes; None for DICOM, whose preamble may hold anything."""
    if head[128:132] == b"DICM":
        return None
    if head.startswith(b"\x1f\x8b\x08"):
        return Kind.GZIP
    if head.startswith(b"BZh"):
        return Kind.BZIP2
    if head.startswith(zips.SIGNATURES):
        return Kind.ZIP
    return Kind.TAR if tars.is_header(head) else None


def open_archive(
    path: Path | str, bounds: Bounds | None = None, scratch: Path | None = None
) -> Iterator[Member | Finding]:
    """Yield the members of an archive, and findings about what cannot be read.

    A zip inside another archive, and a block of bzip2, is laid into a nameless file in `scratch`
    while it is read. Raises OSError where the file itself, or that folder, cannot be used. Close
    the iterator when it is not read to its end.
    """
    with open(path, "rb", opener=_no_follow) as file:
        size = os.fstat(file.fileno()).st_size
        budget = Budget(bounds or Bounds(), size)
        reading = _Reading(budget, scratch)
        try:
            yield from reading.contents(file, os.path.basename(path), "", 1)
        except Exceeded as error:  # of the whole: nothing more is read
            yield Finding("", error.code, str(error))


class _Reading:
    """The way through one archive and those inside it."""

    def __init__(self, budget: Budget, scratch: Path | None) -> None:
        self._budget = budget
        self._scratch = scratch
        self._paths = Paths()

    def contents(
        self, source: Source, name: str, prefix: str, depth: int
    ) -> Iterator[Member | Finding]:
        """Yield what is in one archive; `prefix` is put before its members' names."""
        try:
            head = read_exactly(source, _HEAD_BYTES)
            kind, said = kind_by_bytes(head), kind_by_name(name)
            if kind is None:
                raise ArchiveDamaged("no archive: neither tar, gzip, bzip2 nor zip")
            if said is not None and kind is not said:
                words = f"named as {said}, it is {kind}"
                yield Finding(prefix, FindingCode.OTHER_KIND, words)
            for found in self._entries(_Begun(head, source), kind):
                if isinstance(found, Finding):
                    yield Finding(prefix + found.name, found.code, found.words)
                else:
                    yield from self._entry(prefix, *found, depth)
        except DataError as error:
            if self._budget.spent is not None:
                raise
            yield Finding(prefix, error.code, str(error))

    def _entry(
        self, prefix: str, name: str, stream: Stream, depth: int
    ) -> Iterator[Member | Finding]:
        begun = stream
        # by its path too, which may claim more ("x.zip/."): it would be an archive in the spool
        path, _ = safe_path(prefix + name)
        if kind_by_name(name) is not None or kind_by_name(path) is not None:
            try:
                head = read_exactly(stream, _HEAD_BYTES)
            except DataError as error:
                if self._budget.spent is not None:
                    raise
                yield Finding(prefix + name, error.code, str(error))
                return
            begun = Stream(_Begun(head, stream).read, self._budget.bounds.member)
            if kind_by_bytes(head) is not None:
                yield from self._inner(prefix + name, begun, depth)
                return
        path, wrong = self._paths.give(prefix + name)
        if wrong:
            yield Finding(prefix + name, FindingCode.RENAMED, wrong)
        yield Member(prefix + name, path, begun)
        begun.end()

    def _inner(self, name: str, stream: Stream, depth: int) -> Iterator[Member | Finding]:
        """Go into an archive that is a member of one."""
        nested = self._budget.bounds.nested
        if depth >= nested.maximum:
            error = Exceeded(nested)
            yield Finding(name, error.code, str(error))
        else:
            yield from self.contents(stream, name, name + _ENTRY, depth + 1)

    def _entries(self, begun: _Begun, kind: Kind) -> Iterator[tuple[str, Stream] | Finding]:
        match kind:
            case Kind.TAR:
                yield from tars.tar_members(Counted(begun, self._budget), self._budget)
            case Kind.ZIP:
                yield from self._zip_entries(begun)
            case Kind.GZIP:
                inside = Counted(gunzipped(begun), self._budget)
                yield from tars.tar_members(inside, self._budget)
            case Kind.BZIP2:
                with tempfile.TemporaryFile(dir=self._scratch) as held:
                    inside = Counted(Bunzipped(begun, held), self._budget)
                    yield from tars.tar_members(inside, self._budget)

    def _zip_entries(self, begun: _Begun) -> Iterator[tuple[str, Stream] | Finding]:
        file = begun.file()
        if file is not None:
            size = os.fstat(file.fileno()).st_size
            yield from zips.zip_members(file, size, self._budget)
            return
        with tempfile.TemporaryFile(dir=self._scratch) as copy:
            while data := begun.read(CHUNK_BYTES):
                copy.write(data)
                if copy.tell() > self._budget.bounds.inner_zip.maximum:
                    raise Exceeded(self._budget.bounds.inner_zip)
            copy.flush()
            yield from zips.zip_members(copy, copy.tell(), self._budget)


class _Begun:
    """A source whose first bytes were read already."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)

    def file(self) -> BinaryIO | None:
        """Return the file behind it where it is one, at its begin."""
        if not isinstance(self._source, io.BufferedReader):
            return None
        self._source.seek(0)
        return self._source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
