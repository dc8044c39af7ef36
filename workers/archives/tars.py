"""Read a tar front to back, one member at a time (POSIX.1-2008 pax, ustar; GNU long names).

Header blocks are decoded by the standard library; the way through them is ours, because
tarfile.TarFile reads extended headers and sparse maps of any size into memory, keeps every member,
and looks for fields with an expression that takes quadratic time (CVE-2024-6232).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from workers.archives.members import (
    CHUNK_BYTES,
    Budget,
    Finding,
    FindingCode,
    Source,
    Stream,
    read_exactly,
)
from workers.errors import ArchiveDamaged, Exceeded, Truncated

BLOCK = 512
_REGULAR = (*tarfile.REGULAR_TYPES,)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_NO_DATA = (*_LINKS, *_DEVICES, tarfile.DIRTYPE)


@dataclass(slots=True)
class _Extended:
    """What extended headers said of the next member."""

    taken: int = 0
    name: str | None = None
    size: int | None = None
    sparse: bool = False


def is_header(block: bytes) -> bool:
    """Tell whether a block is the header of a member: its checksum fits."""
    try:
        _decode(block)
    except ArchiveDamaged:
        return False
    return True


def tar_members(source: Source, budget: Budget) -> Iterator[tuple[str, Stream] | Finding]:
    """Yield the regular files of a tar, and findings about all else but folders.

    Raises Truncated or ArchiveDamaged where it goes on no further, Exceeded beyond a limit.
    """
    extended = _Extended()
    while True:
        block = read_exactly(source, BLOCK)
        if not block.strip(b"\0"):
            if len(block) < BLOCK:
                raise Truncated("the archive ends without its end mark")
            _read_to_the_end(source)
            return
        if len(block) < BLOCK:
            raise Truncated("the archive ends inside a member's header")
        info = _decode(block)
        if info.type in (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
                         tarfile.GNUTYPE_LONGLINK):  # fmt: skip
            _extend(source, info, extended, budget)
            continue
        budget.take_member()
        name = info.name if extended.name is None else extended.name
        if info.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(source, block, extended, budget)
        size = info.size if extended.size is None else extended.size
        left = _Left(source, 0 if info.type in _NO_DATA else size)
        found = _finding(info.type, extended.sparse)
        if found is not None:
            yield Finding(name, *found)
        elif info.type in _REGULAR and size > budget.bounds.member.maximum:
            error = Exceeded(budget.bounds.member, size)
            yield Finding(name, error.code, str(error))
        elif info.type in _REGULAR:
            stream = Stream(left.read, budget.bounds.member)
            yield name, stream
            stream.end()
        left.skip()
        extended = _Extended()


def _read_to_the_end(source: Source) -> None:
    """Read what follows the end mark: zeros, and the checksum of what it is compressed with."""
    while data := source.read(CHUNK_BYTES):
        if data.strip(b"\0"):
            raise ArchiveDamaged("something follows the end mark: it is not read")


class _Left:
    """What is left of a member's data and its padding."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self._padding = -size % BLOCK

    def read(self, size: int) -> bytes:
        data = self._source.read(min(size, self._size))
        if not data and self._size and size:
            raise Truncated(f"the archive ends {self._size} bytes before the member does")
        self._size -= len(data)
        return data

    def skip(self) -> None:
        while self._size:
            self.read(CHUNK_BYTES)
        read_exactly(self._source, self._padding)


def _decode(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError):
        raise ArchiveDamaged("the header of a member is damaged: the rest is not read") from None
    if info.size < 0:
        raise ArchiveDamaged("a member of negative size: the rest is not read")
    return info


def _finding(kind: bytes, sparse: bool) -> tuple[str, str] | None:
    if kind in _LINKS:
        return FindingCode.LINK, "a link: it is not followed"
    if kind in _DEVICES:
        return FindingCode.DEVICE, "a device or pipe: it is not made"
    if sparse or kind == tarfile.GNUTYPE_SPARSE:
        return FindingCode.SPARSE, "a file with holes: it is not read"
    if kind not in (*_REGULAR, tarfile.DIRTYPE):
        return FindingCode.UNKNOWN_KIND, f"a member of unknown kind {ascii(kind)[2:-1]}"
    return None


def _extend(source: Source, info: tarfile.TarInfo, extended: _Extended, budget: Budget) -> None:
    _take(extended, BLOCK + info.size, budget)
    data = read_exactly(source, info.size)
    padding = -info.size % BLOCK
    if len(data) < info.size or len(read_exactly(source, padding)) < padding:
        raise Truncated("the archive ends inside a member's header")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        extended.name = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    elif info.type in _PAX:
        _read_pax(data, extended)


def _read_pax(data: bytes, extended: _Extended) -> None:
    """Read records of length, keyword and value; only those that say name, size and holes."""
    place = 0
    while place < len(data) and data[place]:
        digits, blank, _ = data[place : place + 20].partition(b" ")
        if not blank or not digits.isdigit() or int(digits) < len(digits) + 3:
            raise ArchiveDamaged("an extended header is damaged: the rest is not read")
        record = data[place + len(digits) + 1 : place + int(digits)]
        keyword, _, value = record.rstrip(b"\n").partition(b"=")
        if keyword == b"path":
            extended.name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise ArchiveDamaged("a member of no known size: the rest is not read")
            extended.size = int(value)
        elif keyword.startswith(b"GNU.sparse."):
            extended.sparse = True
        place += int(digits)


def _skip_sparse_map(source: Source, block: bytes, extended: _Extended, budget: Budget) -> None:
    """Skip the blocks that follow an old GNU sparse header; each says whether another follows."""
    more = block[482]
    while more:
        _take(extended, BLOCK, budget)
        block = read_exactly(source, BLOCK)
        if len(block) < BLOCK:
            raise Truncated("the archive ends inside a member's header")
        more = block[504]


def _take(extended: _Extended, count: int, budget: Budget) -> None:
    extended.taken += count
    if extended.taken > budget.bounds.member_header.maximum:
        raise Exceeded(budget.bounds.member_header, extended.taken)
