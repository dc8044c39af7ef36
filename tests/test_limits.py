"""Headers and pixels beyond every limit are refused before memory is taken or time is spent."""

from __future__ import annotations

import io
import struct
import tempfile
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROJECT
from filing_world import encoded, explicit_element, tiny
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from workers import limits
from workers.errors import DataError, Exceeded, PixelError, Truncated
from workers.filing.comparing import Likeness, compare_files
from workers.header.pixel_claims import check_pixels
from workers.header.read import Header, check_whole, read_open_header
from workers.limits import GIB, HEADERS, KIB, MIB, PIXEL_DATA, Limit
from workers.pairing.pixels import stored_pixels

UNDEFINED = b"\xff\xff\xff\xff"
ITEM, ITEM_END, SEQUENCE_END = (
    struct.pack("<HH", 0xFFFE, element) for element in (0xE000, 0xE00D, 0xE0DD)
)
FRAMES = b"\x00\x52\x30\x92"
"""PerFrameFunctionalGroupsSequence, which is read."""
UNREAD = b"\x40\x00\x30\xa7"
"""ContentSequence, which is not."""
J2K, JPEG_LS, JPEG, RLE = (UID(f"1.2.840.10008.1.2.{end}") for end in ("4.90", "4.80", "4.70", "5"))


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of what is counted, for tests that take no time."""
    for name in ("ELEMENTS", "ITEMS"):
        limit: Limit = getattr(limits, name)
        monkeypatch.setattr(limits, name, replace(limit, maximum=limit.maximum // 20))


@pytest.fixture(scope="module")
def good() -> bytes:
    """An instance up to its pixels."""
    content = encoded(tiny("PET AC", 2))
    return content[: content.rindex(b"\xe0\x7f\x10\x00")]


def read(content: bytes, sparse_bytes: int = 0) -> Header:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.truncate(file.tell() + sparse_bytes)
        return read_open_header(file)  # type: ignore[arg-type]


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * MIB


def sequence(tag: bytes, items: bytes, length: bytes | None = None) -> bytes:
    return tag + b"SQ\0\0" + (length or struct.pack("<L", len(items))) + items


def item(content: bytes) -> bytes:
    return ITEM + struct.pack("<L", len(content)) + content


def in_each_other(levels: int, *, delimited: bool) -> bytes:
    inner = b""
    for _ in range(levels):
        if delimited:
            inner = ITEM + UNDEFINED + inner + ITEM_END + bytes(4)
            inner = sequence(UNREAD, inner + SEQUENCE_END + bytes(4), UNDEFINED)
        else:
            inner = sequence(UNREAD, item(inner))
    return inner


MANY = 50_000
IMAGE_TYPE = b"ORIGINAL\\PRIMARY\\" * 4200
PATHOLOGICAL: dict[str, tuple[Callable[[], bytes], Limit]] = {
    "too many tags": (
        lambda: explicit_element(0x0009, 0x1001, b"UN", b"") * MANY, limits.ELEMENTS
    ),
    "too many fragments": (
        lambda: b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + item(b"") * MANY, limits.ELEMENTS
    ),
    "too many items that are read": (
        lambda: sequence(FRAMES, item(b"") * MANY), limits.ITEMS
    ),
    "too many tags in one item that is read": (
        lambda: sequence(FRAMES, item(explicit_element(0x20, 0x9157, b"UL", b"") * MANY)),
        limits.ELEMENTS,
    ),
    "sequences never closed": (
        lambda: (UNREAD + b"SQ\0\0" + UNDEFINED + ITEM + UNDEFINED) * 5000, limits.DEPTH
    ),
    "deep sequences that say how long they are": (
        lambda: sequence(FRAMES, item(in_each_other(60, delimited=False))), limits.DEPTH
    ),
    "deep sequences with delimiters": (
        lambda: in_each_other(60, delimited=True), limits.DEPTH
    ),
    "a list of ten thousand words": (
        lambda: b"\x08\x00\x60\x00UN\0\0" + struct.pack("<L", len(IMAGE_TYPE)) + IMAGE_TYPE,
        limits.VALUE,
    ),
    "a list of ten thousand character sets": (
        lambda: b"\x08\x00\x05\x00UT\0\0" + struct.pack("<L", len(IMAGE_TYPE)) + IMAGE_TYPE,
        limits.VALUE,
    ),
    "millions of numbers in a nested value": (
        lambda: sequence(
            FRAMES,
            item(
                sequence(
                    b"\x20\x00\x11\x91",  # FrameContentSequence, DimensionIndexValues
                    item(b"\x20\x00\x57\x91UT\0\0" + struct.pack("<L", 8 * MIB) + b"1\\" * 4 * MIB),
                )
            ),
        ),
        limits.VALUE,
    ),
    "70 MB of functional groups": (
        lambda: sequence(FRAMES, item(explicit_element(0x09, 0x10, b"UN", bytes(70_000_000)))),
        limits.KEPT,
    ),
}  # fmt: skip


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_a_pathological_header_is_refused_in_bounded_memory(good: bytes, name: str) -> None:
    make, limit = PATHOLOGICAL[name]
    content = good + make()
    with at_most(40), pytest.raises(Exceeded) as caught:
        read(content)
    assert caught.value.code == limit.code
    assert str(caught.value.limit.maximum) in str(caught.value)


@pytest.mark.parametrize("tag", [0x00100020, 0x00080050, 0x00200052])
def test_an_identifier_that_no_database_would_index_is_refused(good: bytes, tag: int) -> None:
    group, element = tag >> 16, tag & 0xFFFF
    with pytest.raises(Exceeded, match="has 1026 bytes; at most 1024 are taken"):
        read(good + explicit_element(group, element, b"LO", b"1" * 1026))
    assert read(good + explicit_element(group, element, b"LO", b"1" * 1024)).facts


def test_a_million_tags_are_refused(good: bytes) -> None:
    with pytest.raises(Exceeded, match="more than 400000 elements"):
        read(good + explicit_element(0x0009, 0x1001, b"UN", b"") * 1_000_000)


def test_a_deflated_bomb_is_refused_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INFLATED", replace(limits.INFLATED, maximum=8 * MIB))
    content = encoded(tiny("PET AC", 2, transfer_syntax_uid="1.2.840.10008.1.2.1.99"))
    start = content.index(b"1.2.840.10008.1.2.1.99") + 22
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = b"".join(engine.compress(bytes(MIB)) for _ in range(200)) + engine.flush()
    assert len(bomb) * 1000 < 210 * MIB
    with at_most(20), pytest.raises(Exceeded, match="inflates"):
        read(content[:start] + bomb)


def test_two_gigabytes_of_an_unread_element_cost_no_memory(good: bytes) -> None:
    head = b"\xf1\x7f\x01\x10OB\0\0" + struct.pack("<L", 2**31)
    with at_most(5):
        assert read(good + head, sparse_bytes=2**31).facts.modality == "PT"


def test_a_long_value_in_somebody_elses_private_block_is_no_harm(good: bytes) -> None:
    long = b"\x53\x70\x00\x11OB\0\0" + struct.pack("<L", 100_000) + bytes(100_000)
    found = read(good + explicit_element(0x7053, 0x11, b"LO", b"OTHER ") + long)
    assert found.facts.private == ()


def test_thousands_of_escapes_in_a_text_are_read_in_one_pass(good: bytes) -> None:
    changed = good.replace(b"CS\x0a\x00ISO_IR 192", b"CS\x0f\x00\\ISO 2022 IR 87")
    words = b"\x08\x00\x30\x10UT\0\0" + struct.pack("<L", 60_000) + b"\x1b$BA" * 15_000
    assert read(changed + words).facts.study_description


# the same through the whole file, as the comparison of duplicates reads it ------------------------


@pytest.mark.parametrize("name", [name for name in PATHOLOGICAL if PATHOLOGICAL[name][1] in
                                  (limits.ELEMENTS, limits.DEPTH, limits.ITEMS)])  # fmt: skip
@pytest.mark.usefixtures("low_limits")
def test_what_is_compared_is_counted_first(good: bytes, tmp_path: Path, name: str) -> None:
    make, limit = PATHOLOGICAL[name]
    # in a sequence that nothing but the comparison looks into
    (tmp_path / "kept").write_bytes(good + make().replace(FRAMES, UNREAD))
    (tmp_path / "other").write_bytes(good)
    with open(tmp_path / "kept", "rb") as file, pytest.raises(Exceeded) as caught:
        check_whole(file)
    assert caught.value.code == limit.code
    with at_most(10):
        found = compare_files(tmp_path / "other", tmp_path / "kept")
    assert found.likeness is Likeness.CONFLICT
    assert str(caught.value.limit.maximum) in found.reason


def test_a_file_too_large_to_be_held_is_not_compared(tmp_path: Path, good: bytes) -> None:
    for name in ("kept", "other"):
        (tmp_path / name).write_bytes(good)
        with open(tmp_path / name, "ab") as file:
            file.truncate(limits.WHOLE_FILE.maximum + 1)
    found = compare_files(tmp_path / "kept", tmp_path / "other")
    assert found.likeness is Likeness.CONFLICT
    assert str(limits.WHOLE_FILE.maximum) in found.reason


def test_damage_inside_a_sequence_that_is_read_is_refused(good: bytes) -> None:
    inner = b"\x20\x00\x57\x91UL" + struct.pack("<H", 400)
    with pytest.raises(DataError):
        read(good + sequence(FRAMES, item(inner)) + bytes(500))


# pixels -------------------------------------------------------------------------------------------


def pixels(syntax: str = "1.2.840.10008.1.2.1", **elements: object) -> Dataset:
    """A slice as a decoder gets it, with other claims."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(io.BytesIO(encoded(tiny("PET AC", 2, transfer_syntax_uid=syntax))))
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
    return dataset


LIES: dict[str, tuple[dict[str, object], type[DataError]]] = {
    "no rows": ({"Rows": 0}, PixelError),
    "negative columns": ({"Columns": -16}, PixelError),
    "65535 x 65535 pixels": ({"Rows": 65535, "Columns": 65535}, Exceeded),
    "rows of two values": ({"Rows": [16, 16]}, PixelError),
    "two thousand million frames": ({"NumberOfFrames": "2147483648"}, Exceeded),
    "a thousand frames": ({"NumberOfFrames": "1000"}, Truncated),
    "a negative number of frames": ({"NumberOfFrames": "-1"}, PixelError),
    "seven samples": ({"SamplesPerPixel": 7}, PixelError),
    "65535 bits": ({"BitsAllocated": 65535}, PixelError),
}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLE, J2K])
@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_the_size_is_refused_before_memory_is_taken(name: str, syntax: str) -> None:
    elements, error = LIES[name]
    dataset = pixels(syntax, **elements)
    with at_most(5), pytest.raises(error):
        check_pixels(dataset)
    with at_most(5), pytest.raises(DataError):
        stored_pixels(dataset, None)


def j2k_begin(columns: int, rows: int, tile: int = 1 << 16, components: int = 1) -> bytes:
    """The begin of a JPEG 2000 codestream (ISO/IEC 15444-1 A.5.1)."""
    sizes = struct.pack(">8LH", columns, rows, 0, 0, tile, tile, 0, 0, components)
    return b"\xff\x4f\xff\x51" + struct.pack(">HH", 41, 0) + sizes + b"\x0f\x01\x01" * components


def sof(marker: int, columns: int, rows: int) -> bytes:
    """The begin of a JPEG or JPEG-LS frame (ISO/IEC 10918-1 B.2.2)."""
    frame = struct.pack(">HBHHB", 11, 16, rows, columns, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0\x00\x04ab\xff" + bytes([marker]) + frame + b"\xff\xda\x00\x02"


def boxed(codestream: bytes) -> bytes:
    """A JP2 file whose first box holds a harmless codestream, to be found by a search."""
    free = struct.pack(">L4s", 8 + 64, b"free") + j2k_begin(16, 16).ljust(64, b"\0")
    return struct.pack(">L4sL", 12, b"jP  ", 0x0D0A870A) + free + b"\0\0\0\0jp2c" + codestream


BOMBS: dict[str, tuple[UID, bytes]] = {
    "JPEG 2000": (J2K, j2k_begin(65535, 65535)),
    "JPEG 2000 in boxes": (J2K, boxed(j2k_begin(65535, 65535))),
    "JPEG 2000 of 2^32 pixels a line": (J2K, j2k_begin(2**32 - 1, 1)),
    "JPEG 2000 of many tiles": (J2K, j2k_begin(16, 16, tile=0)),
    "JPEG 2000 of many components": (J2K, j2k_begin(16, 16, components=16384)),
    "lossless JPEG": (JPEG, sof(0xC3, 65535, 65535)),
    "JPEG-LS": (JPEG_LS, sof(0xF7, 65535, 65535)),
    "JPEG-LS in place of JPEG 2000": (J2K, sof(0xF7, 65535, 65535)),
    "JPEG without a frame": (JPEG, b"\xff\xd8" + b"\xff\xe0\x00\x04ab" * 1000),
    "nothing known": (J2K, b"PK\3\4" + bytes(100)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_codestream_larger_than_its_header_says_is_not_decoded(name: str, tmp_path: Path) -> None:
    syntax, codestream = BOMBS[name]
    dataset = pixels(J2K)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([codestream])
    with at_most(5), pytest.raises(DataError):
        stored_pixels(dataset, None)
    dataset.save_as(tmp_path / "bomb")
    pixels().save_as(tmp_path / "plain")
    found = compare_files(tmp_path / "plain", tmp_path / "bomb")
    assert found.likeness is Likeness.CONFLICT


def test_a_number_of_one_byte_is_refused_where_it_is_read(good: bytes) -> None:
    """pydicom has an error of its own for it, which is none of Python's."""
    odd = explicit_element(0x0020, 0x9157, b"US", b"\1\2\3")  # DimensionIndexValues
    with pytest.raises(DataError):
        read(good + sequence(FRAMES, item(sequence(b"\x20\x00\x11\x91", item(odd)))))
    whole = encoded(tiny("PET AC", 2))
    spoiled = whole.replace(b"\x28\0\x11\0US\2\0 \0", b"\x28\0\x11\0US\1\0 ")
    assert len(spoiled) < len(whole)
    with pytest.raises(PixelError):
        check_pixels(dcmread(io.BytesIO(spoiled)))
    spoiled = whole.replace(b"\x28\0\2\0US\2\0", b"\x28\0\2\0FD\2\0")  # SamplesPerPixel
    assert spoiled != whole
    with pytest.raises(PixelError):
        stored_pixels(dcmread(io.BytesIO(spoiled)), None)


def test_a_number_that_says_it_is_a_sequence_is_no_error_of_the_system() -> None:
    whole = encoded(tiny("PET AC", 2))
    number = b"\x28\0\2\0US\2\0\1\0"  # SamplesPerPixel
    spoiled = whole.replace(number, sequence(b"\x28\0\2\0", b"four"))
    assert spoiled != whole
    with pytest.raises(PixelError):
        stored_pixels(dcmread(io.BytesIO(spoiled)), None)


def test_a_panic_of_the_decoder_of_rle_ends_no_worker(tmp_path: Path) -> None:
    """The segments of this frame unpack to more than a frame: pylibjpeg-rle 2.2 panics."""
    dataset = pixels(RLE)
    run = b"\x81\0" * (dataset.Rows * dataset.Columns // 128)
    head = struct.pack("<16L", 2, 64, 64 + len(run) + 2, *[0] * 13)
    dataset.PixelData = encapsulate([head + run + b"\x81\0" + run])
    with pytest.raises(DataError):
        stored_pixels(dataset, None)
    dataset.save_as(tmp_path / "panics")
    pixels().save_as(tmp_path / "plain")
    assert compare_files(tmp_path / "plain", tmp_path / "panics").likeness is Likeness.CONFLICT


def test_a_large_image_of_tiny_tiles_is_refused() -> None:
    dataset = pixels(J2K, Rows=4096, Columns=4096)
    dataset.PixelData = encapsulate([j2k_begin(4096, 4096, tile=16)])
    with pytest.raises(Exceeded, match="65536 tiles"):
        check_pixels(dataset)


# what is written about them -----------------------------------------------------------------------


def test_every_limit_has_a_code_of_its_own() -> None:
    codes = [limit.code for limit in (*HEADERS, *PIXEL_DATA)]
    assert len(set(codes)) == len(codes)


def test_the_table_of_limits_says_what_the_code_does() -> None:
    table = (PROJECT / "docs" / "limits.md").read_text(encoding="utf-8")
    for limit in (*HEADERS, *PIXEL_DATA):
        row = next(row for row in table.splitlines() if f"`{limit.code}`" in row)
        assert f"| {in_words(limit)} |" in row
        assert limit.what in row
        assert limit.why in row


def in_words(limit: Limit) -> str:
    units = (
        ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "bytes")) if limit.unit == "bytes" else ()
    )
    for size, unit in units:
        if limit.maximum >= size:
            return f"{limit.maximum // size} {unit}"
    return f"{limit.maximum:,}"
