"""Bad input: each file has a clear reason, is kept and counted, and the rest goes on."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filing_world import (
    SENDER,
    World,
    a_world,
    changed,
    explicit_element,
    other_pixels,
    small_instances,
    uid_of,
)
from pydicom import dcmread

from workers.filing import quarantine
from workers.filing.releasing import NotInQuarantine, drop_entry, retry_entry
from workers.index.tables import component, event, study

pytestmark = pytest.mark.both_databases

UNDEFINED = b"\xff\xff\xff\xff"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_instances(tmp_path_factory.mktemp("good"), 1)[0]


def raw_value(content: bytes, keyword: str, value: bytes) -> bytes:
    """Overwrite a value's bytes, whatever they are; the length stays."""
    old = str(dcmread(io.BytesIO(content))[keyword].value).encode()
    assert content.count(old) >= 1
    position = content.rindex(old)
    assert len(value) <= len(old)
    return content[:position] + value.ljust(len(old), b"\0") + content[position + len(old) :]


def private(value: bytes) -> bytes:
    return explicit_element(0x7FF1, 0x0010, b"LO", b"OURS") + value


def undefined_nest(levels: int) -> bytes:
    head = b"\xf1\x7f\x01\x10SQ\0\0" + UNDEFINED
    opening = (b"\xfe\xff\x00\xe0" + UNDEFINED + b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED) * levels
    closing = (b"\xfe\xff\xdd\xe0\0\0\0\0" + b"\xfe\xff\x0d\xe0\0\0\0\0") * levels
    return head + opening + closing + b"\xfe\xff\xdd\xe0\0\0\0\0"


def defined_nest(levels: int, tag: bytes) -> bytes:
    lengths = [0]
    for _ in range(levels):
        lengths.append(lengths[-1] + 8 + 12)
    out = []
    for level in range(levels, 0, -1):
        inner = lengths[level - 1]
        out.append(tag + b"SQ\0\0" + struct.pack("<L", inner + 8))
        out.append(b"\xfe\xff\x00\xe0" + struct.pack("<L", inner))
    return b"".join(out)


def many_tags(count: int) -> bytes:
    return b"".join(
        struct.pack("<HH2sHH", 0x7FF1, 0x1000 + number % 0xE000, b"US", 2, 1)
        for number in range(count)
    )


def claims(size: int) -> bytes:
    return private(b"") + b"\xf1\x7f\x01\x10OB\0\0" + struct.pack("<L", size) + b"short"


BAD: dict[str, tuple[Callable[[bytes], bytes], str, str]] = {
    "an empty file": (lambda _: b"", "not-dicom", "empty"),
    "a letter": (lambda _: b"Dear colleague, " * 40, "not-dicom", "no DICM"),
    "a text that force=True reads": (
        lambda _: b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"x" * 300,
        "not-dicom",
        "without file meta",
    ),
    "no preamble": (lambda good: good[128:], "not-dicom", "no DICM"),
    "no preamble, no prefix": (lambda good: good[132:], "not-dicom", "preamble"),
    "no file meta": (
        lambda good: good[:132] + good[344:], "not-dicom", "no file meta",
    ),
    "only a preamble": (lambda good: good[:132], "truncated", "after its preamble"),
    "cut in the preamble": (lambda good: good[:100], "not-dicom", "no DICM"),
    "cut in the file meta": (lambda good: good[:250], "truncated", "at byte 250"),
    "cut in the header": (lambda good: good[:700], "truncated", ""),
    "cut in the pixels": (lambda good: good[:-1], "truncated", "7FE0,0010"),
    "no SOPInstanceUID": (
        lambda good: raw_value(good, "SOPInstanceUID", b""), "bad-identity", "no SOPInstanceUID",
    ),
    "a SOPInstanceUID with a slash": (
        lambda good: raw_value(good, "SOPInstanceUID", b"1.2/3"), "bad-identity", "SOPInst",
    ),
    "a SOPInstanceUID with dots": (
        lambda good: raw_value(good, "SOPInstanceUID", b"../../etc"), "bad-identity", "UID",
    ),
    "a StudyInstanceUID with dots": (
        lambda good: raw_value(good, "StudyInstanceUID", b"1..2"), "bad-identity", "StudyInst",
    ),
    "a SeriesInstanceUID of letters": (
        lambda good: raw_value(good, "SeriesInstanceUID", b"series"), "bad-identity", "Series",
    ),
    "a SOPInstanceUID with a NUL": (
        lambda good: raw_value(good, "SOPInstanceUID", b"1.2\x00.3"), "bad-identity", "SOPInst",
    ),
    "10,000 sequences of undefined length": (
        lambda good: good + private(undefined_nest(10_000)), "nested-too-deep", "nested",
    ),
    "an element of 2 GB": (lambda good: good + claims(0x7FFFFFFF), "truncated", "2147483647"),
    "an element of 4 GB": (lambda good: good + claims(0xFFFFFFFE), "truncated", "needs"),
    "a million tags": (lambda good: good + many_tags(1_000_000), "too-many-elements", "elements"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_kept_with_a_reason_and_the_rest_goes_on(
    world: World, good: bytes, name: str
) -> None:
    spoil, code, words = BAD[name]
    bad = spoil(good)
    entries = world.put({"before": good, "patient/bad": bad, "twice": good})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "quarantined": 1, "duplicate": 1}
    reason = world.reason_of(entries[1])
    assert reason["code"] == code
    assert words in reason["reason"]
    assert len(reason["reason"]) < 300
    assert reason["original_path"] == "patient/bad"
    assert reason["size"] == len(bad)
    assert world.kept_bytes(entries[1]) == bad
    counts = world.counts()
    assert counts.filed + counts.duplicates + counts.quarantined + counts.skipped == 3


@pytest.mark.parametrize("tag", [b"\xf1\x7f\x01\x10", b"\x08\x00\x40\x11"])
def test_10000_sequences_of_defined_length_are_filed_or_refused_but_never_a_crash(
    world: World, good: bytes, tag: bytes
) -> None:
    nested = good + defined_nest(10_000, tag)
    (entry,) = world.put({"nested": nested})
    world.put({"good": changed(good, SOPInstanceUID="2.25.3")})
    world.file_all()
    world.check()
    outcomes = world.outcomes()
    assert outcomes in ({"filed": 2}, {"filed": 1, "quarantined": 1})
    world.put({"again": other_pixels(good) + defined_nest(10_000, tag)})
    world.file_all()
    world.check()
    assert sum(world.outcomes().values()) == 3
    assert entry.identifier


LITTER = [".DS_Store", "._slice.dcm", "Thumbs.db", "desktop.ini", "DICOMDIR", "dicomdir"]


@pytest.mark.parametrize("name", LITTER)
def test_litter_of_systems_is_skipped_and_counted(world: World, good: bytes, name: str) -> None:
    world.put({f"a/{name}": b"anything", "good": good})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "skipped": 1}


@pytest.mark.parametrize("name", LITTER)
def test_an_instance_with_the_name_of_litter_is_filed(world: World, good: bytes, name: str) -> None:
    world.put({f"a/{name}": good})
    world.file_all()
    assert world.outcomes() == {"filed": 1}


def test_a_media_directory_by_another_name_is_skipped(world: World, good: bytes) -> None:
    directory = good.replace(
        b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.3.10".ljust(26, b"\0")
    )
    world.put({"INDEX": directory})
    world.file_all()
    assert world.outcomes() == {"skipped": 1}


@pytest.mark.parametrize(
    ("elements", "top", "below"),
    [
        ({"PatientID": "../../etc"}, "%2E.%2F..%2Fetc", None),
        ({"PatientID": "CON"}, "%43ON", None),
        ({"PatientID": "nul.txt"}, "%6Eul.txt", None),
        ({"AccessionNumber": "..", "PatientID": "P"}, "P", "%2E%2E"),
        ({"AccessionNumber": "a/b\\c"[:3], "PatientID": "P"}, "P", "a%2Fb"),
        ({"PatientID": ".petct"}, "%2Epetct", None),
        ({"PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 192"}, "M%C3%BCller", None),
    ],
)
def test_hostile_names_stay_single_components(
    world: World, good: bytes, elements: dict[str, str], top: str, below: str | None
) -> None:
    world.put({"one": changed(good, **elements)})
    world.file_all()
    world.check()
    (path,) = world.tree()
    parts = path.split("/")
    assert parts[0] == top
    assert below in (None, parts[1])
    assert len(parts) == 8
    assert world.outcomes() == {"filed": 1}


def test_names_of_300_characters_are_cut_and_stay_apart(world: World, good: bytes) -> None:
    names = ["x" * 300, "x" * 299 + "y"]
    world.put(
        {
            str(number): changed(
                good,
                PatientID=name,
                SOPInstanceUID=f"2.25.{number + 1}",
                StudyInstanceUID=f"2.25.1{number}",
                SeriesInstanceUID=f"2.25.2{number}",
            )
            for number, name in enumerate(names)
        }
    )
    world.file_all()
    world.check()
    tops = {path.split("/")[0] for path in world.tree()}
    assert len(tops) == 2
    assert all(len(top) == 64 for top in tops)
    assert {row.patient_ID for row in world.rows(study)} == set(names)


@pytest.mark.parametrize("empty", [None, "", "   "])
def test_unrelated_studies_without_names_are_never_merged(
    world: World, good: bytes, empty: str | None
) -> None:
    for number in (1, 2):
        world.put(
            {
                "one": changed(
                    good,
                    PatientID=empty,
                    AccessionNumber=empty,
                    SOPInstanceUID=f"2.25.{number}",
                    StudyInstanceUID=f"2.25.1{number}",
                    SeriesInstanceUID=f"2.25.2{number}",
                )
            }
        )
    world.file_all()
    world.check()
    homes = {tuple(path.split("/")[:2]) for path in world.tree()}
    assert len(homes) == 2
    for patient, accession in homes:
        assert patient.startswith("UNKNOWN-")
        assert accession.startswith("NOACC-")


def test_patients_whose_ids_differ_only_in_case_get_different_folders(
    world: World, good: bytes
) -> None:
    for number, patient in enumerate(("abc", "ABC", "Abc", "abc")):
        uids = {
            "SOPInstanceUID": f"2.25.1{number}",
            "StudyInstanceUID": f"2.25.2{number}",
            "SeriesInstanceUID": f"2.25.3{number}",
        }
        world.put({"one": changed(good, PatientID=patient, **uids)})
        world.file_all()
    world.check()
    tops = {path.split("/")[0] for path in world.tree()}
    assert len({top.lower() for top in tops}) == 3
    assert "abc" in tops
    assert len([row for row in world.rows(component) if not row.parent]) == 3


def test_two_studies_with_one_accession_number_stay_two(world: World, good: bytes) -> None:
    other = changed(
        good,
        SOPInstanceUID="2.25.1",
        StudyInstanceUID="2.25.2",
        SeriesInstanceUID="2.25.3",
    )
    world.put({"1": good, "2": other})
    world.file_all()
    world.check()
    assert world.counts().studies == 2
    assert len({path.split("/studies/")[0] for path in world.tree()}) == 1
    assert len({path.split("/studies/")[1][:11] for path in world.tree()}) == 2


def test_a_command_set_that_says_another_uid_than_the_data_set_is_refused(
    world: World, good: bytes
) -> None:
    meta = good.replace(uid_of(good).encode(), b"2.25.".ljust(len(uid_of(good)), b"1"), 1)
    assert uid_of(meta) == uid_of(good)
    (entry,) = world.put({"": meta}, SENDER)
    world.put({"dropped": meta})  # in a file left over from before de-identification
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "quarantined": 1}
    assert "announced" in world.reason_of(entry)["reason"]


# the folder itself, and what a person does with it ------------------------------------------------


def test_a_reason_never_stands_without_being_durable_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "entry"
    source.write_bytes(b"bytes")
    place = tmp_path / "quarantine"
    place.mkdir()
    reason = quarantine.Reason("e" * 32, "quarantined", "x", "why", "now", {}, "entry", 5)

    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "two file systems")

    monkeypatch.setattr("os.link", no_link)
    quarantine.set_aside(place, source, reason)
    quarantine.set_aside(place, source, reason)
    assert sorted(path.name for path in place.iterdir()) == [f"{'e' * 32}.dcm", f"{'e' * 32}.json"]
    assert quarantine.file_of(place, "e" * 32).read_bytes() == b"bytes"
    assert quarantine.read_reason(place, "e" * 32)["reason"] == "why"


def test_an_entry_that_is_given_back_is_filed_and_counted_anew(world: World, good: bytes) -> None:
    _, second = world.put({"a/1": good, "a/2": other_pixels(good)})
    world.file_all()
    assert world.outcomes() == {"filed": 1, "conflict": 1}
    again = retry_entry(world.index, world.layout, second.identifier)
    assert again.path == "a/2"
    assert world.waiting() == [again]
    assert world.outcomes() == {"filed": 1, "retried": 1}
    assert world.counts().quarantined == 0
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "retried": 1, "conflict": 1}


def test_an_entry_that_is_dropped_is_gone_and_audited(world: World) -> None:
    (entry,) = world.put({"letter": b"Dear colleague"})
    world.file_all()
    drop_entry(world.index, world.layout, entry.identifier)
    world.check()
    assert list(world.layout.quarantine.iterdir()) == []
    assert "dropped" in {row.kind for row in world.rows(event)}
    with pytest.raises(NotInQuarantine):
        drop_entry(world.index, world.layout, entry.identifier)


@pytest.mark.parametrize("entry", ["", "../../x", "e" * 32])
def test_what_is_not_in_quarantine_cannot_be_acted_on(world: World, entry: str) -> None:
    with pytest.raises(NotInQuarantine):
        retry_entry(world.index, world.layout, entry)
