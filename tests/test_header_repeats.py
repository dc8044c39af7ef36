"""What the slices of a series repeat is decoded once, and never told of another header."""

from __future__ import annotations

from pathlib import Path

import pytest
from filing_world import changed, encoded, tiny

from workers.completeness.evidence import FactsMemory
from workers.header import extract
from workers.header.facts import InstanceFacts
from workers.header.read import read_header


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    extract._repeated_plain.cache_clear()


def facts_of(folder: Path, content: bytes) -> InstanceFacts:
    path = folder / "one.dcm"
    path.write_bytes(content)
    return read_header(path).facts


def test_the_slices_of_a_series_are_decoded_once_and_differ_in_what_is_their_own(
    tmp_path: Path,
) -> None:
    read = [facts_of(tmp_path, encoded(tiny("PET AC", number))) for number in range(4)]
    assert extract._repeated_plain.cache_info().misses == 1
    for name in ("sop_instance_uid", "instance_number", "image_position_patient"):
        assert len({getattr(facts, name) for facts in read}) == 4
    for number, facts in enumerate(read):
        extract._repeated_plain.cache_clear()
        assert facts_of(tmp_path, encoded(tiny("PET AC", number))) == facts


@pytest.mark.parametrize(
    "values",
    [
        {"PatientWeight": "61.5"},
        {"SeriesDescription": "another"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientID": "M\u00fcller"},
        {"PixelRepresentation": 0},
        {"AcquisitionTime": "010203"},
        {"ImagePositionPatient": None},
    ],
)
def test_a_header_that_differs_is_read_as_if_it_were_the_first(
    tmp_path: Path, values: dict[str, object]
) -> None:
    first = encoded(tiny("PET AC", 0))
    other = changed(first, **values)
    facts_of(tmp_path, first)
    after = facts_of(tmp_path, other)
    extract._repeated_plain.cache_clear()
    assert after == facts_of(tmp_path, other)
    assert after != facts_of(tmp_path, first)


def test_what_cannot_be_read_is_told_in_one_order(tmp_path: Path) -> None:
    first = encoded(tiny("PET AC", 0))
    slope = first.index(b"\x28\x00\x53\x10DS") + 8
    duration = first.index(b"\x18\x00\x42\x12IS") + 8
    facts_of(tmp_path, first)
    odd = bytearray(first)
    odd[slope : slope + 2] = odd[duration : duration + 2] = b"x "
    told = facts_of(tmp_path, bytes(odd)).unreadable
    assert told == (
        "RescaleSlope",
        "ActualFrameDuration",
    )  # as the fields are read, whatever is remembered


def test_facts_that_were_filed_are_judged_without_being_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(tmp_path, encoded(tiny("PET AC", 0)))
    memory = FactsMemory()
    text = facts.to_json()
    memory.remember(text, facts)
    monkeypatch.setattr(InstanceFacts, "from_json", classmethod(lambda *_: pytest.fail("read")))
    assert memory(text) is facts
