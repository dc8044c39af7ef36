"""What comes out of an archive: members to read, and findings about what cannot be read."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO, NoReturn, Protocol, cast

from workers import limits
from workers.errors import ArchiveDamaged, DataError, Exceeded, Truncated
from workers.limits import MIB, Limit

CHUNK_BYTES = 1 << 18
_FREE_BYTES = 64 * MIB
"""So much may be unpacked of anything, however small it is packed."""


class Source(Protocol):
    """Something that is read from its begin to its end, as a file or a decompressor is."""

    def read(self, size: int, /) -> bytes: ...


class FindingCode(StrEnum):
    """What is wrong with a member; those of DataError and of the limits come besides."""

    LINK = "link"
    DEVICE = "device"
    SPARSE = "sparse"
    ENCRYPTED = "encrypted"
    UNKNOWN_KIND = "unknown-kind"
    OVERLAPPING = "overlapping"
    RENAMED = "renamed"
    OTHER_KIND = "other-kind"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an archive or a member that somebody should know."""

    name: str
    """The member as the archive names it, behind those of the archives around it; "" for all."""
    code: str
    words: str

    @property
    def loses(self) -> bool:
        """Tell whether something in the archive could not be read."""
        return self.code not in (FindingCode.RENAMED, FindingCode.OTHER_KIND)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one archive."""

    members: Limit = limits.MEMBERS
    member: Limit = limits.MEMBER
    unpacked: Limit = limits.UNPACKED
    ratio: Limit = limits.RATIO
    nested: Limit = limits.NESTED
    member_header: Limit = limits.MEMBER_HEADER
    directory: Limit = limits.DIRECTORY
    inner_zip: Limit = limits.INNER_ZIP


@dataclass(slots=True)
class Budget:
    """What an archive, with all archives inside it, may still take."""

    bounds: Bounds
    size: int
    """Bytes of the file that holds it all."""
    unpacked: int = 0
    members: int = 0
    spent: Exceeded | None = None
    """What went beyond a limit of the whole: nothing more is read."""

    def take(self, count: int) -> None:
        """Count unpacked bytes. Raises Exceeded."""
        self.unpacked += count
        if self.unpacked > self.bounds.unpacked.maximum:
            self._end(self.bounds.unpacked)
        if packs_too_well(self.unpacked, self.size, self.bounds.ratio):
            self._end(self.bounds.ratio)

    def take_member(self) -> None:
        """Count a member, of whatever kind. Raises Exceeded, also for what was spent before."""
        if self.spent is not None:
            raise self.spent
        self.members += 1
        if self.members > self.bounds.members.maximum:
            self._end(self.bounds.members)

    def _end(self, limit: Limit) -> NoReturn:
        self.spent = self.spent or Exceeded(limit)
        raise self.spent


def packs_too_well(unpacked: int, packed: int, ratio: Limit) -> bool:
    """Tell whether so many bytes came out of so few that it must be a bomb."""
    return unpacked > _FREE_BYTES + packed * ratio.maximum


class Stream:
    """The bytes of one member; they can be read until the next member is asked for.

    Reading raises DataError (Truncated, ArchiveDamaged, Exceeded) where the member cannot be had
    whole: what was read of it is not to be used.
    """

    def __init__(self, read: Callable[[int], bytes], limit: Limit) -> None:
        self._read = read
        self._limit = limit
        self._count = 0
        self._open = True

    def read(self, size: int = CHUNK_BYTES, /) -> bytes:
        """Read at most `size` bytes; b"" at the end."""
        if not self._open:
            raise ValueError("this member is over: another one was asked for")
        with data_errors():
            data = self._read(min(size, CHUNK_BYTES))
        self._count += len(data)
        if self._count > self._limit.maximum:
            raise Exceeded(self._limit)
        return data

    def chunks(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def end(self) -> None:
        """Let nobody read it any more."""
        self._open = False


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str
    """As the archive has it; it may be anything."""
    path: str
    """Made from the name: relative, of safe parts, and no other member's."""
    stream: Stream = field(compare=False)


@contextmanager
def data_errors() -> Iterator[None]:
    """Raise what decompressors raise on damaged data as DataError.

    An OSError of the system (it has a number) is nobody's data.
    """
    try:
        yield
    except EOFError:
        raise Truncated("the compressed data is cut") from None
    except gzip.BadGzipFile as error:
        raise ArchiveDamaged(f"the gzip data is damaged: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveDamaged(f"the compressed data is damaged: {error}") from None
    except (zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ArchiveDamaged(f"it cannot be unpacked: {error}") from None
    except (struct.error, ValueError, LookupError, NotImplementedError, OverflowError) as error:
        raise ArchiveDamaged(f"it cannot be unpacked: {type(error).__name__}") from None


class Counted:
    """A source whose bytes are counted against a budget."""

    def __init__(self, source: Source, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._failed: DataError | None = None

    def read(self, size: int, /) -> bytes:
        if self._failed is not None:  # a decompressor that failed may well go on with anything
            raise self._failed
        try:
            with data_errors():
                data = self._source.read(size)
        except DataError as error:
            self._failed = error
            raise
        self._budget.take(len(data))
        return data


def gunzipped(source: Source) -> Source:
    """Return the inside of gzip data, which never takes more memory than is asked for."""
    return gzip.GzipFile(fileobj=cast(BinaryIO, source), mode="rb")  # it only reads


_STREAM = b"BZh"
"""What each stream of bzip2 data begins with; some programs write many, one behind the other."""


class Bunzipped:
    """The inside of bzip2 data, given only when the checksum of its block was compared.

    That is done behind a block's last byte; the decoder gives all others before. So as much is
    held back as one block can give. What is held when the data is merely cut is sound: a block is
    decoded when all of it is there, and then to its end.
    """

    _BLOCK_BYTES = 900_000 // 5 * 259
    """Five bytes of a block give at most 259: four alike, and a count of up to 255 more."""
    _RING_BYTES = _BLOCK_BYTES + 2 * CHUNK_BYTES

    def __init__(self, source: Source, held: BinaryIO) -> None:
        """Hold back in an empty file, which takes some 47 MB at most."""
        self._pieces = _bunzipped(source)
        self._held = held.fileno()
        self._decoded = 0
        self._given = 0
        self._ended = False
        self._cut: EOFError | DataError | None = None

    def read(self, size: int, /) -> bytes:
        while not self._ended and self._decoded - self._given <= self._BLOCK_BYTES:
            self._hold()
        held_back = 0 if self._ended else self._BLOCK_BYTES
        place = self._given % self._RING_BYTES
        ready = self._decoded - held_back - self._given
        if size and not ready and self._cut is not None:
            raise self._cut
        data = os.pread(self._held, min(size, ready, self._RING_BYTES - place), place)
        self._given += len(data)
        return data

    def _hold(self) -> None:
        try:  # once: what came before a fault is kept
            data = next(self._pieces, b"")
        except (EOFError, DataError) as error:
            self._cut = error
            data = b""
        self._ended = not data
        while data:
            place = self._decoded % self._RING_BYTES
            written = os.pwrite(self._held, data[: self._RING_BYTES - place], place)
            data = data[written:]
            self._decoded += written


def _bunzipped(source: Source) -> Iterator[bytes]:
    """Yield the inside of bzip2 data; what follows its last stream is passed over.

    `bz2.BZ2File` takes data for cut as soon as no more comes; here a block that is there is decoded
    to its end before, where its checksum is compared. Raises EOFError where the data is cut.
    """
    packed = b""
    while True:
        while len(packed) < len(_STREAM) and (more := source.read(CHUNK_BYTES)):
            packed += more
        if not packed.startswith(_STREAM):
            return
        decoder = bz2.BZ2Decompressor()
        while not decoder.eof:
            data = decoder.decompress(packed, CHUNK_BYTES)
            packed = b""
            if data:
                yield data
            elif decoder.needs_input and not (packed := source.read(CHUNK_BYTES)):
                raise EOFError
        packed = decoder.unused_data


def read_exactly(source: Source, count: int) -> bytes:
    """Read so many bytes; fewer only at the end."""
    parts = []
    while count > 0 and (data := source.read(min(count, CHUNK_BYTES))):
        parts.append(data)
        count -= len(data)
    return b"".join(parts)
