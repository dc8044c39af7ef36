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
_PADDING_BYTES = 1 << 16
_WINDOW_BYTES = 1 << 14
_HEAD_BYTES = 12
_HEADS = {
    True: (struct.Struct("<HH2sH"), struct.Struct("<L")),
    False: (struct.Struct(">HH2sH"), struct.Struct(">L")),
}
"""By little endian: group, element, VR and a short length; a long length."""
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
     b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
_LONG_VRS = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"}
)


class RawElement(NamedTuple):
    """One kept element: its value's bytes, and its whole encoding for nested ones."""

    tag: int
    vr: str | None
    value: bytes
    encoded: bytes = b""


@dataclass(slots=True)
class Walk:
    """What a walk found."""

    elements: dict[int, RawElement] = field(default_factory=dict)
    has_pixel_data: bool = False
    pixel_offset: int | None = None
    """Where the first pixel data element begins."""
    count: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a data set is encoded; what the file meta says may be corrected by its first element."""

    implicit_vr: bool
    little_endian: bool

    @property
    def order(self) -> str:
        return "<" if self.little_endian else ">"


def walk_elements(
    file: BinaryIO,
    size: int,
    encoding: Encoding,
    wanted: Callable[[int], Limit | None],
    *,
    only_group: int | None = None,
) -> Walk:
    """Walk from the file's position to `size`, or to the end of `only_group`.

    `wanted` tells of a tag how long its value may be, or None where it is not kept.

    Raises
    ------
    Truncated
        An element says that it goes on beyond the end of the file.
    Exceeded
        Deeper, longer or larger than any real header.
    """
    walk = Walk()
    window = _Window(file)
    at = file.tell()
    while at < size:
        data, offset = window.from_(at, _HEAD_BYTES)
        if not data[offset : offset + 8].strip(b"\0") and _only_padding(file, at, size):
            break
        tag, vr, length, head_bytes = _parse_head(data, offset, encoding, size)
        if only_group is not None and tag >> 16 != only_group:
            break
        _count(walk)
        if tag in PIXEL_TAGS:
            walk.has_pixel_data = True
            if walk.pixel_offset is None:
                walk.pixel_offset = at
        value_at = at + head_bytes
        if length == UNDEFINED:
            end = _skip_undefined(window, value_at, size, encoding, tag, vr, walk)
        else:
            _need(value_at, length, size, tag)
            end = value_at + length
        limit = wanted(tag)
        if limit is not None:
            _keep(window, walk, tag, vr, (at, value_at, end), limit)
        at = end
    file.seek(at)
    return walk


class _Window:
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


def _count(walk: Walk) -> None:
    walk.count += 1
    if walk.count > limits.ELEMENTS.maximum:
        raise Exceeded(limits.ELEMENTS)


def _name(vr: bytes | None) -> str | None:
    return vr.decode("ascii", "replace") if vr else None


def _keep(
    window: _Window,
    walk: Walk,
    tag: int,
    vr: bytes | None,
    bounds: tuple[int, int, int],
    limit: Limit,
) -> None:
    start, value_at, end = bounds
    if end - value_at > limit.maximum:
        if tag >> 16 & 1:  # of another creator's block: none of the short ones that are known
            return
        raise Exceeded(limit, end - value_at, f"element {shown(tag)} has")
    walk.kept_bytes += end - start
    if walk.kept_bytes > limits.KEPT.maximum:
        raise Exceeded(limits.KEPT, subject=f"with element {shown(tag)} those that are read have")
    data, offset = window.from_(start, end - start)
    encoded = data[offset : offset + end - start]
    walk.elements[tag] = RawElement(tag, _name(vr), encoded[value_at - start :], encoded)


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
    if encoding.implicit_vr or group == 0xFFFE:
        return tag, None, long.unpack_from(data, offset + 4)[0], 8
    if vr in _SHORT_VRS:
        return tag, vr, length, 8
    if vr in _LONG_VRS:
        if left < _HEAD_BYTES:
            raise Truncated(f"the file ends inside element {shown(tag)}")
        return tag, vr, long.unpack_from(data, offset + 8)[0], _HEAD_BYTES
    if not (vr.isalpha() and vr.isupper()):  # one implicit element in an explicit data set: seen
        return tag, None, long.unpack_from(data, offset + 4)[0], 8
    return tag, vr, length, 8


def _skip_undefined(
    window: _Window,
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
            _need(at, length, size, inner)
            at += length
    return at


def _need(start: int, length: int, size: int, tag: int) -> None:
    if start + length > size:
        raise Truncated(
            f"element {shown(tag)} needs {length} bytes, the file has {size - start} left"
        )


def _only_padding(file: BinaryIO, start: int, size: int) -> bool:
    """Tell whether nothing but a little zero padding is left, as some writers leave it."""
    left = size - start
    if left > _PADDING_BYTES:
        return False
    file.seek(start)
    return not file.read(left).strip(b"\0")
