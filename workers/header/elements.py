"""Walk the data elements of an encoded data set without decoding it (PS3.5 chapter 7).

The walk visits every top-level element, checks that each ends inside the file, keeps the raw bytes
of the few that are asked for, and skips all others by seeking: a header is read within fixed bounds
of memory, whatever the file claims. What the bytes mean is decided elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from workers import limits
from workers.errors import Exceeded, Truncated
from workers.limits import Limit

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PADDING_BYTES = 1 << 16
_LONG_VRS = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV"}
)


@dataclass(frozen=True, slots=True)
class RawElement:
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
    while True:
        start = file.tell()
        if start >= size:
            return walk
        if _only_padding(file, start, size):
            return walk
        tag, vr, length = read_head(file, encoding, size)
        if only_group is not None and tag >> 16 != only_group:
            file.seek(start)
            return walk
        _count(walk)
        if tag in PIXEL_TAGS:
            walk.has_pixel_data = True
            if walk.pixel_offset is None:
                walk.pixel_offset = start
        value_start = file.tell()
        if length == UNDEFINED:
            _skip_undefined(file, size, encoding, tag, vr, walk)
        else:
            _need(value_start, length, size, tag)
            file.seek(value_start + length)
        limit = wanted(tag)
        if limit is not None:
            _keep(file, walk, tag, _name(vr), start, value_start, limit)


def _count(walk: Walk) -> None:
    walk.count += 1
    if walk.count > limits.ELEMENTS.maximum:
        raise Exceeded(limits.ELEMENTS)


def _name(vr: bytes | None) -> str | None:
    return vr.decode("ascii", "replace") if vr else None


def _keep(
    file: BinaryIO, walk: Walk, tag: int, vr: str | None, start: int, value_start: int, limit: Limit
) -> None:
    end = file.tell()
    if end - value_start > limit.maximum:
        if tag >> 16 & 1:  # of another creator's block: none of the short ones that are known
            return
        raise Exceeded(limit, end - value_start, f"element {shown(tag)} has")
    walk.kept_bytes += end - start
    if walk.kept_bytes > limits.KEPT.maximum:
        raise Exceeded(limits.KEPT, subject=f"with element {shown(tag)} those that are read have")
    file.seek(start)
    encoded = file.read(end - start)
    walk.elements[tag] = RawElement(tag, vr, encoded[value_start - start :], encoded)


def shown(tag: int) -> str:
    """Write a tag as "(gggg,eeee)"."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def read_head(file: BinaryIO, encoding: Encoding, size: int) -> tuple[int, bytes | None, int]:
    """Read tag, VR (None where implicit) and length."""
    head = file.read(8)
    if len(head) < 8:
        raise Truncated(f"the file ends inside an element, at byte {size}")
    order = encoding.order
    group, element = struct.unpack_from(order + "HH", head)
    tag = group << 16 | element
    if encoding.implicit_vr or group == 0xFFFE:
        return tag, None, struct.unpack_from(order + "L", head, 4)[0]
    vr = head[4:6]
    if vr in _LONG_VRS:
        tail = file.read(4)
        if len(tail) < 4:
            raise Truncated(f"the file ends inside element {shown(tag)}")
        return tag, vr, struct.unpack(order + "L", tail)[0]
    if not (vr.isalpha() and vr.isupper()):  # one implicit element in an explicit data set: seen
        return tag, None, struct.unpack_from(order + "L", head, 4)[0]
    return tag, vr, struct.unpack_from(order + "H", head, 6)[0]


def _skip_undefined(
    file: BinaryIO, size: int, encoding: Encoding, tag: int, vr: bytes | None, walk: Walk
) -> None:
    """Skip to behind the delimiter of a value of undefined length, without recursion."""
    if vr == b"UN":  # PS3.5 6.2.2 note 4: always implicit little endian inside
        encoding = Encoding(implicit_vr=True, little_endian=True)
    levels: list[str] = ["sequence"]
    while levels:
        _count(walk)
        if len(levels) > limits.DEPTH.maximum * 2:
            raise Exceeded(limits.DEPTH)
        inner, _, length = read_head(file, encoding, size)
        if inner in (SEQUENCE_END, ITEM_END):
            wants = "sequence" if inner == SEQUENCE_END else "item"
            if levels[-1] != wants:
                raise Truncated(f"element {shown(tag)} has a delimiter out of place")
            levels.pop()
        elif length == UNDEFINED:
            levels.append("item" if levels[-1] == "sequence" else "sequence")
        else:
            _need(file.tell(), length, size, inner)
            file.seek(length, 1)


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
    head = file.read(8)
    if head.strip(b"\0"):
        file.seek(start)
        return False
    rest = file.read(left)
    file.seek(start)
    return not rest.strip(b"\0")
