"""Reading headers: what is read, and that only DataError escapes whatever the bytes are."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
import time
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filing_world import encoded, explicit_element, recoded, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from workers import limits
from workers.errors import DataError, Hostile, Truncated
from workers.header.facts import InstanceFacts
from workers.header.read import Header, read_header, read_open_header

SYNTAXES = {
    "explicit": "1.2.840.10008.1.2.1",
    "implicit": "1.2.840.10008.1.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
}


def rich() -> Dataset:
    """A PET slice with everything that the reader looks into."""
    dataset = tiny("PET AC", 2)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientID = "Müller"
    dataset.add_new(0x00090010, "LO", "GEMS_PETD_01")
    dataset.add_new(0x0009100D, "DT", "20250101100000")
    dataset.add_new(0x70530010, "LO", "Philips PET Private Group")
    dataset.add_new(0x70531000, "DS", "0.000551")
    frame = Dataset()
    plane, pixels, content = Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient = [1, 2, 3]
    pixels.PixelSpacing, pixels.SliceThickness = [2, 2], "3"
    content.DimensionIndexValues, content.TemporalPositionIndex = [1, 2], 1
    frame.PlanePositionSequence = Sequence([plane])
    frame.PixelMeasuresSequence = Sequence([pixels])
    frame.FrameContentSequence = Sequence([content])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([frame, frame])
    return dataset


@cache
def sample(kind: str) -> bytes:
    if kind == "RLE":
        return encoded(tiny("PET AC", 2, transfer_syntax_uid=SYNTAXES[kind]))
    return recoded(encoded(rich()), SYNTAXES[kind]) if kind != "explicit" else encoded(rich())


def read(content: bytes) -> Header:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return read_open_header(file)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SYNTAXES)
def test_every_encoding_gives_the_same_facts(kind: str) -> None:
    facts = read(sample(kind)).facts
    assert facts.transfer_syntax_uid == SYNTAXES[kind]
    assert facts.modality == "PT"
    assert facts.has_pixel_data
    assert facts.radionuclide_total_dose
    assert facts.image_orientation_patient is not None
    if kind != "RLE":
        assert facts.patient_id == "Müller"
        assert [frame.image_position_patient for frame in facts.frames] == [(1.0, 2.0, 3.0)] * 2
        assert facts.private_value("Philips PET Private Group", "7053,xx00") == "0.000551"
        assert facts.private_value("GEMS_PETD_01", "0009,xx0d") == "20250101100000"
    assert not facts.unreadable


@pytest.mark.parametrize("kind", SYNTAXES)
def test_facts_survive_the_index(kind: str) -> None:
    facts = read(sample(kind)).facts
    assert InstanceFacts.from_json(facts.to_json()) == facts


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_a_file_cut_anywhere_is_refused(kind: str) -> None:
    content = sample(kind)
    places = [*range(0, 400, 7), *range(400, len(content), 97), len(content) - 1]
    whole = read(content).facts
    accepted = []
    for place in places:
        with contextlib.suppress(DataError):
            facts = read(content[:place]).facts
            accepted.append(place)  # cut exactly between two elements
            assert facts.sop_instance_uid == whole.sop_instance_uid
            assert not facts.has_pixel_data
    assert len(accepted) <= 3, accepted


def only_data_errors(content: bytes) -> None:
    try:
        facts = read(content).facts
    except DataError:
        return
    text = facts.to_json()
    text.encode("utf-8")
    again = InstanceFacts.from_json(text)
    assert again == facts or "NaN" in text
    for value in (
        facts.patient_id,
        facts.accession_number,
        facts.series_description,
        facts.modality,
    ):
        assert "\0" not in value, "PostgreSQL takes no NUL in a text"
    for number in (facts.series_number, facts.instance_number, facts.acquisition_number):
        assert number is None or -(2**31) <= number < 2**31


quick = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(
    kind=st.sampled_from([*SYNTAXES]),
    edits=st.lists(
        st.tuples(st.integers(0, 2800), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6
    ),
)
def test_only_data_errors_escape_from_overwritten_bytes(
    kind: str, edits: list[tuple[int, bytes]]
) -> None:
    content = bytearray(sample(kind))
    for place, replacement in edits:
        content[place : place + len(replacement)] = replacement
    only_data_errors(bytes(content))


@quick
@given(
    kind=st.sampled_from([*SYNTAXES]),
    start=st.integers(132, 2800),
    length=st.integers(0, 300),
    put=st.binary(max_size=300),
)
def test_only_data_errors_escape_from_pieces_taken_out_and_put_in(
    kind: str, start: int, length: int, put: bytes
) -> None:
    content = sample(kind)
    only_data_errors(content[:start] + put + content[start + length :])


ELEMENTS = st.tuples(
    st.sampled_from(
        [
            0x00080005, 0x00080008, 0x00080016, 0x00080060, 0x00100020, 0x00101030, 0x00180050,
            0x00200011, 0x00200013, 0x00200032, 0x00200037, 0x00280010, 0x00280030, 0x00280120,
            0x00541000, 0x00540016, 0x00541300, 0x52009229, 0x52009230, 0x30060010, 0x00081140,
            0x00080201, 0x00209128, 0x70531000,
        ]
    ),
    st.sampled_from([b"CS", b"DS", b"IS", b"US", b"SS", b"FD", b"FL", b"SQ", b"UN", b"LO", b"OB",
                     b"UL", b"AT", b"PN", b"DT", b"ZZ", b"UI", b"UT", b"SL"]),
    st.one_of(
        st.binary(max_size=40),
        st.text(alphabet="0123456789.eE+-\\ nNaAiIfF", max_size=30).map(str.encode),
        st.sampled_from([
            b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\x00\x00\x00\x00",
            b"\\ISO 2022 IR 87", b"ISO_IR 192", b"GB18030", b"ISO 2022 IR 149\\x", b"no such set",
            b"1e400", b"-1e400", b"nan", b"99999999999", b"2147483648 ", b"1\0002",
            b"\xfe\xff\x00\xe0\x10\x00\x00\x00\x08\x00\x55\x11UI\x08\x001.2.3.4\0",
        ]),
    ),
)  # fmt: skip


@quick
@given(elements=st.lists(ELEMENTS, min_size=1, max_size=6), implicit=st.booleans())
def test_only_data_errors_escape_from_any_value_of_any_representation(
    elements: list[tuple[int, bytes, bytes]], implicit: bool
) -> None:
    content = sample("implicit" if implicit else "explicit")
    pixels = content.rindex(b"\xe0\x7f\x10\x00")
    made = b""
    for tag, vr, value in elements:
        if implicit:
            made += struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value
        else:
            made += explicit_element(tag >> 16, tag & 0xFFFF, vr, value)
    only_data_errors(content[:pixels] + made + content[pixels:])


# bounds -------------------------------------------------------------------------------------------


def test_a_large_private_element_is_skipped_without_reading_it() -> None:
    content = sample("explicit")
    big = b"\xf1\x7f\x01\x10OB\0\0" + struct.pack("<L", 50_000_000)
    with tempfile.TemporaryFile() as file:
        file.write(content + explicit_element(0x7FF1, 0x0010, b"LO", b"OURS") + big)
        file.truncate(file.tell() + 50_000_000)
        tracemalloc.start()
        read_open_header(file)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INFLATED", replace(limits.INFLATED, maximum=1 << 20))
    dataset = tiny("PET AC", 2, transfer_syntax_uid=SYNTAXES["deflated"])
    dataset.add_new(0x7FF10010, "LO", "OURS")
    dataset.add_new(0x7FF11001, "OB", bytes(2 << 20))
    with pytest.raises(Hostile, match="deflated"):
        read(encoded(dataset))


def test_a_wanted_sequence_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEPT", replace(limits.KEPT, maximum=2000))
    item = Dataset()
    item.ReferencedSOPInstanceUID = "2.25.1"
    dataset = rich()
    dataset.ReferencedImageSequence = Sequence([item] * 200)
    with pytest.raises(Hostile, match="0008,1140"):
        read(encoded(dataset))


@pytest.mark.parametrize("levels", [30, 45, 100, 3000])
def test_nesting_in_a_wanted_sequence_ends_somewhere(levels: int) -> None:
    undefined = b"\xff\xff\xff\xff"
    head = b"\x08\x00\x40\x11SQ\0\0" + undefined
    nest = head + (b"\xfe\xff\x00\xe0" + undefined + head) * levels
    nest += (b"\xfe\xff\xdd\xe0\0\0\0\0" + b"\xfe\xff\x0d\xe0\0\0\0\0") * levels
    nest += b"\xfe\xff\xdd\xe0\0\0\0\0"
    content = sample("explicit")
    pixels = content.rindex(b"\xe0\x7f\x10\x00")
    hostile = content[:pixels] + nest + content[pixels:]
    if levels > 40:
        with pytest.raises(Hostile, match="nested"):
            read(hostile)
    else:
        read(hostile)


@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
def test_deep_nesting_of_defined_length_in_a_wanted_sequence_is_no_crash(vr: bytes) -> None:
    inner = b""
    for _ in range(1500):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
        inner = b"\x54\x00\x16\x00" + vr + b"\0\0" + struct.pack("<L", len(item)) + item
    content = sample("explicit")
    pixels = content.rindex(b"\xe0\x7f\x10\x00")
    began = time.monotonic()
    only_data_errors(content[:pixels] + inner + content[pixels:])
    assert time.monotonic() - began < 5


def test_zero_padding_behind_the_data_set_is_no_damage() -> None:
    assert read(sample("explicit") + bytes(512)).facts.modality == "PT"
    with pytest.raises(Truncated):
        read(sample("explicit") + b"\1" * 6)


@pytest.mark.parametrize(
    ("character_set", "raw", "expected"),
    [
        ("ISO_IR 100", "Müller".encode("latin1"), "Müller"),
        ("ISO_IR 192", "Müller".encode(), "Müller"),
        ("", b"plain", "plain"),
        ("no such set", b"plain", "plain"),
        ("ISO_IR 192", b"\xff\xfe broken", None),
        ("ISO_IR 100", b"A\0B", "A\ufffdB"),
    ],
)
def test_patient_ids_are_decoded_by_their_character_set(
    character_set: str, raw: bytes, expected: str | None
) -> None:
    content = sample("explicit")
    dataset = dcmread(io.BytesIO(content), stop_before_pixels=True)
    start = content.index(b"\x10\x00\x20\x00LO")
    old = explicit_element(0x10, 0x20, b"LO", str(dataset.PatientID).encode() + b" ")
    assert content[start : start + len(old)] == old
    new = explicit_element(0x10, 0x20, b"LO", raw + b" " * (len(raw) % 2))
    content = content.replace(old, new)
    content = content.replace(
        explicit_element(0x08, 0x05, b"CS", b"ISO_IR 192"),
        explicit_element(
            0x08, 0x05, b"CS", character_set.encode() + b" " * (len(character_set) % 2)
        ),
    )
    found = read(content).facts.patient_id
    assert found
    assert expected is None or found == expected


def test_facts_are_compact_json(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(sample("explicit"))
    raw: dict[str, Any] = json.loads(read_header(path).facts.to_json())
    assert "kvp" not in raw
    assert raw["modality"] == "PT"
