"""Read what an N-ACTION asks: Transaction UID and references (PS3.4 table J.3-1).

The bytes come from anybody, and there may be many items: they are walked within fixed bounds, each
element checked to end where what holds it ends, and nothing but UIDs is decoded. What is cut short
is refused, never read as a shorter list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from workers.commitment.transactions import MOST_REFERENCES, Reference
from workers.header import uids

INVALID_ARGUMENT = 0x0115
MISSING_ATTRIBUTE = 0x0120
MISSING_VALUE = 0x0121
RESOURCE_LIMITATION = 0x0213

_TRANSACTION, _REFERENCES = 0x00081195, 0x00081199
_CLASS, _INSTANCE = 0x00081150, 0x00081155
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST = 8
_LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_NAMES = {
    _TRANSACTION: "TransactionUID",
    _REFERENCES: "ReferencedSOPSequence",
    _CLASS: "ReferencedSOPClassUID",
    _INSTANCE: "ReferencedSOPInstanceUID",
}


class Refused(Exception):
    """A request that is not processed, with the status to answer (PS3.7 10.1.4.1.10)."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment


@dataclass(frozen=True, slots=True)
class Span:
    """The value of one element or item: from where to where."""

    start: int
    end: int


def read_asked(data: bytes, *, explicit: bool) -> tuple[str, tuple[Reference, ...]]:
    """Read a little endian Action Information. Raises Refused."""
    walk = _Walk(data, explicit)
    found = walk.elements(Span(0, len(data)))
    uid = _uid(walk, found, _TRANSACTION)
    if _REFERENCES not in found:
        raise Refused(MISSING_ATTRIBUTE, f"{_NAMES[_REFERENCES]} is missing")
    references: list[Reference] = []
    for item in walk.items_in(found[_REFERENCES]):
        if len(references) == MOST_REFERENCES:
            raise Refused(RESOURCE_LIMITATION, f"at most {MOST_REFERENCES} references at once")
        inside = walk.elements(item)
        references.append(Reference(_uid(walk, inside, _CLASS), _uid(walk, inside, _INSTANCE)))
    if not references:
        raise Refused(MISSING_VALUE, f"{_NAMES[_REFERENCES]} is empty")
    return uid, tuple(references)


def _uid(walk: _Walk, found: dict[int, Span], tag: int) -> str:
    if tag not in found:
        raise Refused(MISSING_ATTRIBUTE, f"{_NAMES[tag]} is missing")
    value = uids.clean(walk.data[found[tag].start : found[tag].end])
    if not value:
        raise Refused(MISSING_VALUE, f"{_NAMES[tag]} is empty")
    if not uids.is_valid(value):
        raise Refused(INVALID_ARGUMENT, f"{_NAMES[tag]} is no UID")
    return value


def _unreadable() -> Refused:
    return Refused(INVALID_ARGUMENT, "the data set cannot be read")


class _Walk:
    """Walk elements and items (PS3.5 7.1, 7.5); lengths defined or not."""

    def __init__(self, data: bytes, explicit: bool) -> None:
        self.data = data
        self._explicit = explicit

    def elements(self, where: Span) -> dict[int, Span]:
        """Find the elements of a data set or item."""
        found: dict[int, Span] = {}
        at = where.start
        while at < where.end:
            tag, value = self._element(at, where.end, 0)
            found[tag] = value
            at = value.end
        return found

    def items_in(self, sequence: Span) -> Iterator[Span]:
        """Yield the items of a sequence, without their delimiters."""
        at = sequence.start
        while at < sequence.end:
            tag, at, length = self._bare_head(at, sequence.end)
            if tag == _SEQUENCE_END and at == sequence.end:
                return
            item, at = self._item(tag, at, sequence.end, length, 1)
            yield item

    def _element(self, at: int, end: int, depth: int) -> tuple[int, Span]:
        """Return tag and value of an element, the value up to where the next one begins."""
        tag, start, length = self._head(at, end)
        if tag >> 16 == _ITEM >> 16:
            raise _unreadable()
        if length != _UNDEFINED:
            return tag, Span(start, start + length)
        if depth == _DEEPEST:
            raise _unreadable()
        at = start
        while True:
            inner, at, length = self._bare_head(at, end)
            if inner == _SEQUENCE_END:
                return tag, Span(start, at)
            _, at = self._item(inner, at, end, length, depth + 1)

    def _item(self, tag: int, at: int, end: int, length: int, depth: int) -> tuple[Span, int]:
        """Return the inside of an item, and where the next one begins."""
        if tag != _ITEM:
            raise _unreadable()
        if length != _UNDEFINED:
            return Span(at, at + length), at + length
        start = at
        while self._bare_head(at, end)[0] != _ITEM_END:
            _, value = self._element(at, end, depth)
            at = value.end
        return Span(start, at), at + 8

    def _head(self, at: int, end: int) -> tuple[int, int, int]:
        """Read tag and length of an element; return where its value begins."""
        tag, value, length = self._bare_head(at, end)
        if not self._explicit or tag >> 16 == _ITEM >> 16:
            return tag, value, length
        vr = self.data[at + 4 : at + 6]
        if vr not in _LONG_VRS:
            return tag, value, self._within(value, end, length >> 16)
        if value + 4 > end:
            raise _unreadable()
        (length,) = struct.unpack_from("<L", self.data, value)
        if length == _UNDEFINED and vr != b"SQ":
            raise _unreadable()
        return tag, value + 4, self._within(value + 4, end, length)

    def _bare_head(self, at: int, end: int) -> tuple[int, int, int]:
        """Read eight bytes: a tag, and a length where there is no VR."""
        if at + 8 > end:
            raise _unreadable()
        group, element, length = struct.unpack_from("<HHL", self.data, at)
        tag = group << 16 | element
        if not self._explicit or group == _ITEM >> 16:
            self._within(at + 8, end, length)
        return tag, at + 8, length

    @staticmethod
    def _within(start: int, end: int, length: int) -> int:
        if length != _UNDEFINED and start + length > end:
            raise _unreadable()
        return length
