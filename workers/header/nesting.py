"""Count the elements of every level of a data set before anything decodes it (PS3.5 7.5).

pydicom makes an object of each element and item, level by level as they are asked for. What is
counted here bounds that: also where sequences say how long they are, which the walk of the top
level skips without looking inside.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import Enum, auto
from typing import BinaryIO

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from workers import limits
from workers.errors import Exceeded, Truncated
from workers.header.elements import (
    ITEM_END,
    PIXEL_TAGS,
    SEQUENCE_END,
    UNDEFINED,
    Encoding,
    read_head,
    shown,
)

_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_UNKNOWN = Encoding(implicit_vr=True, little_endian=True)
"""How the inside of a sequence of VR UN is encoded (PS3.5 6.2.2)."""


class _Inside(Enum):
    DATASET = auto()
    SEQUENCE = auto()
    FRAGMENTS = auto()


@dataclass(frozen=True, slots=True)
class _Level:
    inside: _Inside
    encoding: Encoding
    bound: int
    """Where it has to end at the latest."""
    delimited: bool
    """It ends with a delimiter, not at its bound."""


def check_nesting(data: bytes, encoding: Encoding) -> None:
    """Check an encoded data set, or some of its elements in a row, at every level.

    Raises
    ------
    Exceeded
        Deeper, or of more elements or items, than any real data set.
    Truncated
        Something goes on beyond what it is in.
    """
    check_open_nesting(io.BytesIO(data), len(data), encoding)


def check_open_nesting(file: BinaryIO, size: int, encoding: Encoding) -> None:
    """Check from the file's position to `size`, as `check_nesting` does."""
    levels = [_Level(_Inside.DATASET, encoding, size, delimited=False)]
    elements = items = 0
    while levels:
        level = levels[-1]
        if not level.delimited and file.tell() >= level.bound:
            levels.pop()
            continue
        tag, vr, length = read_head(file, level.encoding, level.bound)
        elements += 1
        if elements > limits.ELEMENTS.maximum:
            raise Exceeded(limits.ELEMENTS)
        if tag in (SEQUENCE_END, ITEM_END):
            if level.delimited:
                levels.pop()
            continue
        inside = _inside(file, level, tag, vr, length)
        end = file.tell() + (0 if length == UNDEFINED else length)
        if end > level.bound:
            raise Truncated(f"element {shown(tag)} goes on beyond what it is in")
        if inside is None:
            file.seek(end)
            continue
        if level.inside is _Inside.SEQUENCE:
            items += 1
            if items > limits.ITEMS.maximum:
                raise Exceeded(limits.ITEMS)
        if len(levels) > limits.DEPTH.maximum * 2:
            raise Exceeded(limits.DEPTH)
        inner = _UNKNOWN if vr == b"UN" else level.encoding
        bound, delimited = (level.bound, True) if length == UNDEFINED else (end, False)
        levels.append(_Level(inside, inner, bound, delimited))


def _inside(
    file: BinaryIO, level: _Level, tag: int, vr: bytes | None, length: int
) -> _Inside | None:
    """Tell what is inside the element whose head was read, None for a plain value."""
    if level.inside is _Inside.SEQUENCE:
        return _Inside.DATASET
    if level.inside is _Inside.FRAGMENTS:
        return None if length != UNDEFINED else _Inside.FRAGMENTS
    if length == UNDEFINED:
        return _Inside.FRAGMENTS if tag in PIXEL_TAGS else _Inside.SEQUENCE
    if vr == b"SQ":
        return _Inside.SEQUENCE
    if vr not in (None, b"UN"):
        return None
    if dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ":
        return _Inside.SEQUENCE
    start = file.tell()
    head = file.read(4)
    file.seek(start)
    return _Inside.SEQUENCE if length >= 8 and head in _ITEM_TAGS else None
