"""Hypothesis strategies: sound data sets and descriptions, spoiled in their structure.

What is spoiled keeps so much of its form that the readers get far into it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from functools import cache

from fuzzing import seeds
from hypothesis import strategies as st

from workers.header.elements import Encoding, Window, walk_elements
from workers.limits import KEPT

LONG_VRS = ("OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UC", "UR", "UT", "UN", "SV", "UV")
VRS = (*LONG_VRS, "AE", "CS", "DS", "IS", "LO", "SH", "UI", "US", "SS", "UL", "FD", "AT", "PN",
       "DA", "TM", "ZZ")  # fmt: skip
UNDEFINED = 0xFFFFFFFF
ODD_UIDS = ("", "..", "1..2", "1.2.3/../../etc", "1.2\0.3", "1." * 40, "2.25." + "9" * 60, "x",
            "1.2.840.10008.1.2.4.90", "1.2 ", " 1.2", "１.２", "1.2\n3", "*", "-1")  # fmt: skip
ODD_VALUES = (b"", b"\\" * 50, b"\0" * 7, b"1e999", b"nan", b"-0", b"99999999999999999999",
              b"2147483648", b"\x1b$B" * 9, b"\xff\xfe\xfd", b"../../x", b"\xd8\0",
              b"ISO 2022 IR 87\\ISO 2022 IR 999\\\\GB18030")  # fmt: skip


@dataclass(frozen=True)
class Element:
    """One element, as it will be written, true or not."""

    tag: int
    vr: str
    value: bytes
    length: int | None = None
    """What it says its length is; None: the truth."""

    def encoded(self) -> bytes:
        length = len(self.value) if self.length is None else self.length
        head = struct.pack("<HH", self.tag >> 16, self.tag & 0xFFFF) + self.vr.encode()
        if self.vr in LONG_VRS:
            return head + struct.pack("<HL", 0, length & UNDEFINED) + self.value
        return head + struct.pack("<H", length & 0xFFFF) + self.value


@cache
def sound() -> tuple[tuple[bytes, tuple[Element, ...]], ...]:
    """Sound instances in explicit little endian: what stands before the data set, its elements."""
    import io

    found = []
    for name in ("ExplicitVRLittleEndian", "RLELossless", "JPEG2000Lossless", "ct", "full"):
        content = seeds.instances()[name]
        start = content.index(b"\x08\x00", 140)
        while content[start + 4 : start + 6] not in (b"CS", b"UI"):
            start = content.index(b"\x08\x00", start + 1)
        explicit = Encoding(implicit_vr=False, little_endian=True)
        window = Window(io.BytesIO(content))
        walk = walk_elements(window, start, len(content), explicit, lambda _: KEPT)
        elements = tuple(
            Element(one.tag, one.vr or "UN", one.value, _said(one.encoded, one.vr or "UN"))
            for one in walk.elements.values()
        )
        assert b"".join(one.encoded() for one in elements) == content[start:]
        found.append((content[:start], elements))
    return tuple(found)


def _said(encoded: bytes, vr: str) -> int | None:
    long = vr in LONG_VRS and encoded[8:12] == b"\xff\xff\xff\xff"
    return UNDEFINED if long else None


@st.composite
def instances(draw: st.DrawFn) -> bytes:
    """A data set whose elements were changed, doubled, moved, nested; perhaps cut or flipped."""
    meta, elements = draw(st.sampled_from(sound()))
    changed = list(elements)
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, changed)
    content = meta + b"".join(one.encoded() for one in changed)
    if draw(st.integers(0, 3)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    if content and draw(st.integers(0, 3)) == 0:
        flipped = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            flipped[place : place + 1] = bytes([flipped[place] ^ draw(st.integers(1, 255))])
        content = bytes(flipped)
    return content


def _change(draw: st.DrawFn, elements: list[Element]) -> None:
    place = draw(st.integers(0, len(elements) - 1))
    one = elements[place]
    match draw(st.integers(0, 8)):
        case 0:
            elements[place] = replace(one, vr=draw(st.sampled_from(VRS)))
        case 1:
            said = st.sampled_from(
                [0, 1, 0xFFFE, 0xFFFF, 0x7FFFFFFF, UNDEFINED, len(one.value) + 1]
            )
            elements[place] = replace(one, length=draw(said))
        case 2:
            elements.insert(place, one)
        case 3:
            elements[place] = elements[draw(st.integers(0, len(elements) - 1))]
        case 4:
            value = draw(st.one_of(st.sampled_from(ODD_VALUES), st.binary(max_size=40)))
            elements[place] = replace(one, value=value, length=None)
        case 5:
            uids = [at for at, each in enumerate(elements) if each.vr == "UI"]
            if uids:
                at = draw(st.sampled_from(uids))
                value = draw(st.sampled_from(ODD_UIDS)).encode("utf-8")
                elements[at] = replace(elements[at], value=value + bytes(len(value) % 2))
        case 6:
            elements[place] = _nested(draw, one)
        case 7:
            number = draw(st.sampled_from([0, -1, 1, 2, 65535, 2**31 - 1, 2**31]))
            sizes = {0x00280010: "US", 0x00280011: "US", 0x00280100: "US", 0x00280002: "US",
                     0x00280008: "IS", 0x00280101: "US", 0x00280103: "US"}  # fmt: skip
            tag = draw(st.sampled_from(sorted(sizes)))
            value = str(number).encode() if sizes[tag] == "IS" else (number & 0xFFFF).to_bytes(2)
            elements[:] = [each for each in elements if each.tag != tag]
            elements.insert(min(place, len(elements)), Element(tag, sizes[tag], value))
        case _:
            del elements[place]
            if not elements:
                elements.append(one)


def _nested(draw: st.DrawFn, one: Element) -> Element:
    """Put an element into sequences in sequences, which say how long they are or do not."""
    delimited = draw(st.booleans())
    tag = draw(
        st.sampled_from([0x52009230, 0x52009229, 0x00081140, 0x0040A730, 0x00540016, one.tag])
    )
    inner = one
    for _ in range(draw(st.sampled_from([1, 2, 5, 39, 41, 200]))):
        content = inner.encoded()
        if delimited:
            item = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED) + content
            item += struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        else:
            item = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
        inner = Element(
            tag, draw(st.sampled_from(["SQ", "UN"])), item, UNDEFINED if delimited else None
        )
    return inner


def spoiled(pool: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes of which some pieces were put elsewhere, taken out or replaced."""

    @st.composite
    def made(draw: st.DrawFn) -> bytes:
        content = bytearray(draw(pool))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(content)))
            end = min(len(content), start + draw(st.integers(0, 40)))
            put = draw(st.one_of(st.binary(max_size=12), st.just(bytes(content[start:end]) * 2)))
            content[start:end] = put
        return bytes(content)

    return made()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ("kind", "calling_ae", "called_ae", "address", "folder", "archive", "at", "source",
          "count", "last_at", "details")  # fmt: skip
descriptions = st.dictionaries(
    st.sampled_from(FIELDS), st.one_of(JSON, st.sampled_from(["folder", "association", "\ud800"]))
).map(lambda raw: json.dumps(raw).encode())
"""What a batch says of itself, and what a note says."""

batches_of_jobs = st.dictionaries(
    st.one_of(st.just("f1"), st.text(max_size=12), st.sampled_from(["..", "../f1", "/", "f1/.."])),
    JSON,
    max_size=4,
).map(lambda raw: json.dumps(raw).encode())
