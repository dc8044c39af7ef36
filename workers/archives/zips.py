"""Read the members of a zip (PKWARE APPNOTE 6.3).

The directory is the standard library's to read, within a bound. The members' data is unpacked here:
zipfile unpacks bzip2 and LZMA without any bound (4 KB become gigabytes), and only later versions
notice members that overlap. A zip whose directory is lost is read from its begin.
"""

from __future__ import annotations

import bz2
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from workers.archives.members import (
    CHUNK_BYTES,
    Budget,
    Finding,
    FindingCode,
    Stream,
    data_errors,
    packs_too_well,
    read_exactly,
)
from workers.errors import ArchiveDamaged, DataError, Exceeded, Truncated

SIGNATURES = (b"PK\3\4", b"PK\5\6")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_SIZES_FOLLOW = 0x8
_UTF_8 = 0x800
_DESCRIPTOR_BYTES = 24
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def zip_members(
    file: BinaryIO, size: int, budget: Budget
) -> Iterator[tuple[str, Stream] | Finding]:
    """Yield the files of a zip, and findings about all else but folders.

    Raises Truncated or ArchiveDamaged at the end where the directory could not be read, Exceeded
    beyond a limit.
    """
    try:
        with data_errors():
            archive = zipfile.ZipFile(_Bounded(file, size, budget))
    except (ArchiveDamaged, Truncated) as error:
        yield from _without_directory(file, size, budget)
        raise Truncated(f"the directory of the zip cannot be read: {error}") from None
    with archive:
        infos = archive.infolist()
        overlapping = _overlapping(infos, archive.start_dir)
        for info in infos:
            budget.take_member()
            if info.filename.endswith("/"):  # is_dir fails where there is no name
                continue
            found = _finding(info, budget)
            if not 0 <= info.header_offset < size and found is None:
                found = ArchiveDamaged.code, "the directory gives it no place in the archive"
            if info.header_offset in overlapping and found is None:
                found = FindingCode.OVERLAPPING, "its data is another member's too"
            if found is not None:
                yield Finding(info.orig_filename, *found)
                continue
            unpacked = _Unpacked(
                file, info.header_offset, info.compress_type, info.compress_size, info.CRC, budget
            )
            stream = Stream(unpacked.read, budget.bounds.member)
            yield _name(info), stream
            stream.end()


class _Bounded(io.RawIOBase):
    """A file of which nothing larger than a directory may be is read at once."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        super().__init__()
        self._file = file
        self._size = size
        self._limit = budget.bounds.directory

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._size - self._file.tell() if size is None or size < 0 else size
        if wanted > self._limit.maximum:
            raise Exceeded(self._limit, wanted)
        return self._file.read(wanted)

    def seek(self, place: int, whence: int = 0, /) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class _Unpacked:
    """The unpacked data of one member; its length and checksum are checked at the end."""

    def __init__(
        self,
        file: BinaryIO,
        header_offset: int,
        method: int,
        packed_size: int | None,
        crc: int | None,
        budget: Budget,
    ) -> None:
        """Read the local header later; `packed_size` and `crc` are None where nobody knows them."""
        self._file = file
        self._offset = header_offset
        self._place = -1
        self._packed_left = packed_size
        self._crc_wanted = crc
        self._crc = 0
        self._budget = budget
        self._waiting = b""
        self._method = method
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._bunzip = bz2.BZ2Decompressor()

    def read(self, size: int) -> bytes:
        if self._place < 0:
            self._place = self._offset + _data_offset(self._file, self._offset)
        data = b""
        while not data and size > 0 and not self._ended():
            data = self._more(size)
        self._crc = zlib.crc32(data, self._crc)
        self._budget.take(len(data))
        if not data and size > 0 and self._crc_wanted not in (None, self._crc):
            raise ArchiveDamaged("a member's checksum (CRC-32) does not fit")
        return data

    @property
    def end(self) -> int:
        """Where its packed data ended, once all was read."""
        return (
            self._place
            - len(self._waiting)
            - len(self._inflate.unused_data)
            - len(self._bunzip.unused_data)
        )

    def _ended(self) -> bool:
        if self._method == zipfile.ZIP_DEFLATED:
            return self._inflate.eof
        if self._method == zipfile.ZIP_BZIP2:
            return self._bunzip.eof
        return self._packed_left == 0

    def _more(self, size: int) -> bytes:
        if self._method == zipfile.ZIP_DEFLATED:
            data = self._inflate.decompress(self._waiting or self._packed(), size)
            self._waiting = self._inflate.unconsumed_tail
            return data
        if self._method == zipfile.ZIP_BZIP2:
            packed = self._packed() if self._bunzip.needs_input else b""
            return self._bunzip.decompress(packed, size)
        return self._packed(size)

    def _packed(self, size: int = CHUNK_BYTES) -> bytes:
        if self._packed_left is not None:
            size = min(size, self._packed_left)
        self._file.seek(self._place)
        data = self._file.read(size)
        if not data:
            raise Truncated("a member's packed data is cut")
        self._place += len(data)
        if self._packed_left is not None:
            self._packed_left -= len(data)
        return data


def _data_offset(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        raise Truncated("the archive ends inside a member's header")
    signature, *_, name_length, extra_length = _LOCAL.unpack(head)
    if signature != SIGNATURES[0]:
        raise ArchiveDamaged("there is no member where the directory says")
    return _LOCAL.size + int(name_length) + int(extra_length)


def _name(info: zipfile.ZipInfo) -> str:
    """Return the member's name; a zip of Windows that has only backslashes means slashes."""
    name = info.orig_filename
    return name if "/" in name else name.replace("\\", "/")


def _finding(info: zipfile.ZipInfo, budget: Budget) -> tuple[str, str] | None:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        return FindingCode.LINK, "a link: it is not followed"
    if mode not in (0, stat.S_IFREG):
        return FindingCode.DEVICE, "a device or pipe: it is not made"
    if info.flag_bits & _ENCRYPTED:
        return FindingCode.ENCRYPTED, "it is encrypted: its password is not known"
    if info.compress_type not in _METHODS:
        return FindingCode.UNKNOWN_KIND, f"compression {info.compress_type} is not known"
    if info.file_size > budget.bounds.member.maximum:
        error = Exceeded(budget.bounds.member, info.file_size)
        return error.code, str(error)
    if packs_too_well(info.file_size, info.compress_size, budget.bounds.ratio):
        error = Exceeded(budget.bounds.ratio, subject="the member unpacks to")
        return error.code, str(error)
    return None


def _overlapping(infos: list[zipfile.ZipInfo], directory: int) -> frozenset[int]:
    """Return the places of members whose packed data reaches into another one's."""
    order = sorted(infos, key=lambda info: info.header_offset)
    nexts = [info.header_offset for info in order[1:]]
    return frozenset(
        info.header_offset
        for info, following in zip(order, (*nexts, directory), strict=False)
        if info.header_offset + _LOCAL.size + info.compress_size > following
    )


# without the directory ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Local:
    """A local header."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    length: int


def _without_directory(
    file: BinaryIO, size: int, budget: Budget
) -> Iterator[tuple[str, Stream] | Finding]:
    """Yield what the members' own headers say, from the begin as far as it goes."""
    place = 0
    while place < size and (local := _read_local(file, place)) is not None:
        budget.take_member()
        sized = not local.flags & _SIZES_FOLLOW
        if local.flags & _ENCRYPTED or local.method not in _METHODS:
            code = FindingCode.ENCRYPTED if local.flags & _ENCRYPTED else FindingCode.UNKNOWN_KIND
            yield Finding(local.name, code, "it cannot be unpacked")
            if not sized:
                return
            place += local.length + local.packed
            continue
        if not sized and local.method == zipfile.ZIP_STORED:
            yield Finding(local.name, Truncated.code, "its length is lost with the directory")
            return
        packed, crc = (local.packed, local.crc) if sized else (None, None)
        unpacked = _Unpacked(file, place, local.method, packed, crc, budget)
        if not local.name.endswith("/"):
            stream = Stream(unpacked.read, budget.bounds.member)
            yield local.name, stream
            stream.end()
        if sized:
            place += local.length + local.packed
            continue
        try:
            with data_errors():
                while unpacked.read(CHUNK_BYTES):
                    pass
        except DataError:
            if budget.spent is not None:
                raise
            return
        place = _behind_descriptor(file, unpacked.end)


def _read_local(file: BinaryIO, place: int) -> _Local | None:
    file.seek(place)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(SIGNATURES[0]):
        return None
    _, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL.unpack(
        head
    )
    if not name_length:
        return None  # zeros, or anything else that only begins like a header
    name = read_exactly(file, name_length)
    extra = read_exactly(file, extra_length)
    if packed == 0xFFFFFFFF:  # zip64: 8 bytes of each, the unpacked size first
        kind, length = struct.unpack_from("<HH", extra.ljust(4, b"\0"))
        at = 12 if unpacked == 0xFFFFFFFF else 4
        if kind != 1 or length < at + 4 or len(extra) < at + 8:
            return None
        packed = struct.unpack_from("<Q", extra, at)[0]
    encoding = "utf-8" if flags & _UTF_8 else "cp437"
    return _Local(
        name.decode(encoding, "replace"), flags, method, crc, packed,
        _LOCAL.size + name_length + extra_length,
    )  # fmt: skip


def _behind_descriptor(file: BinaryIO, place: int) -> int:
    """Return where the next member begins behind a data descriptor, whose form is not said."""
    file.seek(place)
    tail = file.read(_DESCRIPTOR_BYTES + 4)
    for length in (16, 12, 24, 20):
        if tail[length : length + 4] in (SIGNATURES[0], b"PK\1\2"):
            return place + length
    return place + _DESCRIPTOR_BYTES
