"""Walk the data elements of an encoded data set without decoding it (PS3.5 chapter 7).

The walk visits every top-level element, checks that each ends inside the file, keeps the raw bytes
of the few that are asked for, and skips all others unread, a window of the file in memory at a
time: a header is read within fixed bounds of memory, whatever the file claims. What the bytes mean
is decided elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from workers import limits
from workers.errors import Exceeded, Truncated
from workers.limits import Limit

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_ITEMS_GROUP = 0xFFFE
_PADDING_BYTES = 1 << 16
_WINDOW_BYTES = 1 << 14
_HEAD_BYTES = 12
_HEADS = {
    True: (struct.Struct("<HH2sH"), struct.Struct("<L")),
    False: (struct.Struct(">HH2sH"), struct.Struct(">L")),
}
"""By little endian: group, element, VR and a short length; a long length."""
_SHORT_VRS = ("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH",
              "SL", "SS", "ST", "TM", "UI", "UL", "US")  # fmt: skip
_LONG_VRS = ("OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UC", "UR", "UT", "UN", "SV", "UV")
_NAMES = {name.encode(): name for name in (*_SHORT_VRS, *_LONG_VRS)}
_HEAD_BYTES_OF = dict.fromkeys(map(str.encode, _SHORT_VRS), 8) | dict.fromkeys(
    map(str.encode, _LONG_VRS), _HEAD_BYTES
)


class RawElement(NamedTuple):
    """One kept element as it stands in the file; nested ones with all that is inside."""

    tag: int
    vr: str | None
    head_bytes: int
    encoded: bytes

    @property
    def value(self) -> bytes:
        return self.encoded[self.head_bytes :]

    @property
    def is_empty(self) -> bool:
        return len(self.encoded) <= self.head_bytes


@dataclass(slots=True)
class Walk:
    """What a walk found."""

    elements: dict[int, RawElement] = field(default_factory=dict)
    has_pixel_data: bool = False
    pixel_offset: int | None = None
    """Where the first pixel data element begins."""
    end: int = 0
    """Where it ended."""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a data set is encoded; what the file meta says may be corrected by its first element."""

    implicit_vr: bool
    little_endian: bool

    @property
    def order(self) -> str:
        return "<" if self.little_endian else ">"


class Window:
    """A stretch of a file in memory: most elements are smaller than a read is dear."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._start = 0

    def from_(self, at: int, count: int) -> tuple[bytes, int]:
        """Return bytes in which, from an offset, `count` of the file lie, fewer at its end."""
        offset = at - self._start
        if offset < 0 or offset + count > len(self._data):
            self._file.seek(at)
            self._data, self._start = self._file.read(max(count, _WINDOW_BYTES)), at
            offset = 0
        return self._data, offset

    def take(self, at: int, count: int) -> bytes:
        """Return `count` bytes of the file, fewer at its end."""
        data, offset = self.from_(at, count)
        return data[offset : offset + count]


def walk_elements(
    window: Window,
    at: int,
    size: int,
    encoding: Encoding,
    wanted: Callable[[int], Limit | None],
    *,
    only_group: int | None = None,
) -> Walk:
    """Walk from a position of a file to `size`, or to the end of `only_group`.

    `wanted` tells of a tag how long its value may be, or None where it is not kept.

    Raises
    ------
    Truncated
        An element says that it goes on beyond the end of the file.
    Exceeded
        Deeper, longer or larger than any real header.
    """
    walk = Walk()
    head_bytes_of = {} if encoding.implicit_vr else _HEAD_BYTES_OF
    read_short, read_long = (one.unpack_from for one in _HEADS[encoding.little_endian])
    data, start, kept_bytes = b"", at, 0
    while at < size:  # some seventy times a header: nothing is called that need not be
        offset = at - start
        if offset + _HEAD_BYTES > len(data):
            data, offset = window.from_(at, _HEAD_BYTES)
            start = at - offset
        if len(data) - offset < _HEAD_BYTES or not data[offset]:
            if not data[offset : offset + 8].strip(b"\0") and _only_padding(window, at, size):
                break
            tag, vr, length, head_bytes = _parse_head(data, offset, encoding, size)
        else:
            group, element, vr, length = read_short(data, offset)
            tag, head_bytes = group << 16 | element, head_bytes_of.get(vr, 0)
            if not head_bytes or group == _ITEMS_GROUP:
                tag, vr, length, head_bytes = _parse_head(data, offset, encoding, size)
            elif head_bytes == _HEAD_BYTES:
                length = read_long(data, offset + 8)[0]
        if only_group is not None and tag >> 16 != only_group:
            break
        _count(walk)
        if tag in PIXEL_TAGS:
            walk.has_pixel_data = True
            if walk.pixel_offset is None:
                walk.pixel_offset = at
        end = at + head_bytes + length
        if length == UNDEFINED:
            end = _skip_undefined(window, at + head_bytes, size, encoding, tag, vr, walk)
        elif end > size:
            raise _goes_on(at + head_bytes, length, size, tag)
        limit = wanted(tag)
        if limit is not None and _is_kept(tag, end - at - head_bytes, limit):
            kept_bytes += end - at
            if kept_bytes > limits.KEPT.maximum:
                subject = f"with element {shown(tag)} those that are read have"
                raise Exceeded(limits.KEPT, subject=subject)
            encoded = data[at - start : end - start]
            if len(encoded) < end - at:
                encoded = window.take(at, end - at)
            walk.elements[tag] = RawElement(tag, _name(vr), head_bytes, encoded)
        at = end
    walk.end = at
    return walk


def _count(walk: Walk) -> None:
    walk.count += 1
    if walk.count > limits.ELEMENTS.maximum:
        raise Exceeded(limits.ELEMENTS)


def _name(vr: bytes | None) -> str | None:
    return _NAMES.get(vr) or vr.decode("ascii", "replace") if vr else None


def _is_kept(tag: int, length: int, limit: Limit) -> bool:
    """Tell whether a value is kept. Raises Exceeded where it is too long for what it is."""
    if length <= limit.maximum:
        return True
    if tag >> 16 & 1:  # of another creator's block: none of the short ones that are known
        return False
    raise Exceeded(limit, length, f"element {shown(tag)} has")


def shown(tag: int) -> str:
    """Write a tag as "(gggg,eeee)"."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def read_head(file: BinaryIO, encoding: Encoding, size: int) -> tuple[int, bytes | None, int]:
    """Read tag, VR (None where implicit) and length."""
    start = file.tell()
    tag, vr, length, head_bytes = _parse_head(file.read(_HEAD_BYTES), 0, encoding, size)
    file.seek(start + head_bytes)
    return tag, vr, length


def _parse_head(
    data: bytes, offset: int, encoding: Encoding, size: int
) -> tuple[int, bytes | None, int, int]:
    """Return tag, VR (None where implicit), length, and how many bytes told them."""
    left = len(data) - offset
    short, long = _HEADS[encoding.little_endian]
    if left < 8:
        raise Truncated(f"the file ends inside an element, at byte {size}")
    group, element, vr, length = short.unpack_from(data, offset)
    tag = group << 16 | element
    if encoding.implicit_vr or group == _ITEMS_GROUP:
        return tag, None, long.unpack_from(data, offset + 4)[0], 8
    head_bytes = _HEAD_BYTES_OF.get(vr)
    if head_bytes == 8:
        return tag, vr, length, 8
    if head_bytes == _HEAD_BYTES:
        if left < _HEAD_BYTES:
            raise Truncated(f"the file ends inside element {shown(tag)}")
        return tag, vr, long.unpack_from(data, offset + 8)[0], _HEAD_BYTES
    if not (vr.isalpha() and vr.isupper()):  # one implicit element in an explicit data set: seen
        return tag, None, long.unpack_from(data, offset + 4)[0], 8
    return tag, vr, length, 8


def _skip_undefined(
    window: Window,
    at: int,
    size: int,
    encoding: Encoding,
    tag: int,
    vr: bytes | None,
    walk: Walk,
) -> int:
    """Return where a value of undefined length ends, behind its delimiter, without recursion."""
    if vr == b"UN":  # PS3.5 6.2.2 note 4: always implicit little endian inside
        encoding = Encoding(implicit_vr=True, little_endian=True)
    levels: list[str] = ["sequence"]
    while levels:
        _count(walk)
        if len(levels) > limits.DEPTH.maximum * 2:
            raise Exceeded(limits.DEPTH)
        data, offset = window.from_(at, _HEAD_BYTES)
        inner, _, length, head_bytes = _parse_head(data, offset, encoding, size)
        at += head_bytes
        if inner in (SEQUENCE_END, ITEM_END):
            wants = "sequence" if inner == SEQUENCE_END else "item"
            if levels[-1] != wants:
                raise Truncated(f"element {shown(tag)} has a delimiter out of place")
            levels.pop()
        elif length == UNDEFINED:
            levels.append("item" if levels[-1] == "sequence" else "sequence")
        else:
            if at + length > size:
                raise _goes_on(at, length, size, inner)
            at += length
    return at


def _goes_on(start: int, length: int, size: int, tag: int) -> Truncated:
    return Truncated(f"element {shown(tag)} needs {length} bytes, the file has {size - start} left")


def _only_padding(window: Window, start: int, size: int) -> bool:
    """Tell whether nothing but a little zero padding is left, as some writers leave it."""
    left = size - start
    return left <= _PADDING_BYTES and not window.take(start, left).strip(b"\0")
