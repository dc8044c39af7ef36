"""The same SOPInstanceUID again: duplicates, variants and conflicts, with DCMTK's real encoders."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import missing
from filing_world import (
    World,
    a_world,
    changed,
    dataset_digest,
    encoded,
    explicit_element,
    other_pixels,
    recoded,
    small_instances,
    tiny,
    uid_of,
)
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless

from workers.filing.comparing import Likeness, compare_files
from workers.phantom.spec import TRANSFER_SYNTAXES

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def pet(**elements: object) -> bytes:
    """A PET slice with sequences, a private block and odd lengths."""
    dataset = tiny("PET AC", 3)
    dataset.StudyDescription = "odd"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, "2.25.123"
    dataset.ReferencedImageSequence = Sequence([item, Dataset()])
    block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.000551")
    block.add_new(0x10, "FD", 1.25)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return encoded(dataset)


def dcmtk(content: bytes, folder: Path, tool: str, *options: str) -> bytes:
    if shutil.which(tool) is None:
        missing(f"no {tool} (DCMTK)")
    source, target = folder / "in.dcm", folder / "out.dcm"
    source.write_bytes(content)
    subprocess.run([tool, *options, source, target], check=True, capture_output=True)
    return target.read_bytes()


def compare(folder: Path, one: bytes, other: bytes) -> tuple[Likeness, tuple[str, ...]]:
    (folder / "kept").write_bytes(one)
    (folder / "other").write_bytes(other)
    found = compare_files(folder / "kept", folder / "other")
    assert found.reason
    return found.likeness, found.changed


DCMTK = {
    "implicit little endian": ("dcmconv", "+ti"),
    "explicit little endian, group lengths": ("dcmconv", "+te", "+g"),
    "explicit little endian, lengths of sequences": ("dcmconv", "+te", "+e"),
    "explicit little endian, delimiters": ("dcmconv", "+te", "-e"),
    "explicit big endian": ("dcmconv", "+tb"),
    "deflated": ("dcmconv", "+td"),
    "padded": ("dcmconv", "+te", "+p", "256", "64"),
    "RLE": ("dcmcrle",),
}


@pytest.mark.parametrize("way", DCMTK)
def test_what_dcmtk_encoded_anew_is_a_duplicate(world: World, tmp_path: Path, way: str) -> None:
    first = pet()
    if way.endswith("lengths of sequences"):  # as our own writer has them
        first = dcmtk(first, tmp_path, "dcmconv", "+te", "-e")
    world.put({"first": first})
    world.file_all()
    again = dcmtk(first, tmp_path, *DCMTK[way])
    assert dataset_digest(again) != dataset_digest(first), "it was not encoded anew"
    world.put({"again": again})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "duplicate": 1}
    assert list(world.tree().values()) == [first]


@pytest.mark.parametrize("kept", DCMTK)
@pytest.mark.parametrize("other", ["implicit little endian", "RLE", "explicit big endian"])
def test_any_two_encodings_of_one_instance_are_alike(tmp_path: Path, kept: str, other: str) -> None:
    first = pet()
    one, two = dcmtk(first, tmp_path, *DCMTK[kept]), dcmtk(first, tmp_path, *DCMTK[other])
    assert compare(tmp_path, one, two) == (Likeness.DUPLICATE, ())


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_every_lossless_syntax_has_equal_pixels(tmp_path: Path, syntax: str) -> None:
    kept = encoded(tiny("PET AC", 3))
    other = encoded(tiny("PET AC", 3, transfer_syntax_uid=syntax))
    assert compare(tmp_path, kept, other) == (Likeness.DUPLICATE, ())


@pytest.mark.parametrize(
    ("elements", "tags"),
    [
        ({"PatientName": "Other^Name"}, ("(0010,0010)",)),
        ({"PatientWeight": "71"}, ("(0010,1030)",)),
        ({"ImagePositionPatient": [0, 0, 1]}, ("(0020,0032)",)),
        ({"InstitutionName": "New"}, ("(0008,0080)",)),
        ({"StudyDescription": None}, ("(0008,1030)",)),
        ({"RescaleSlope": "2"}, ("(0028,1053)",)),
    ],
)
def test_equal_pixels_under_another_header_are_a_variant(
    world: World, tmp_path: Path, elements: dict[str, object], tags: tuple[str, ...]
) -> None:
    first = pet()
    world.put({"first": first})
    world.file_all()
    (entry,) = world.put({"variant": recoded(changed(first, **elements))})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "variant": 1}
    assert tuple(world.reason_of(entry)["changed"]) == tags


def test_a_change_deep_inside_is_named_with_its_path(tmp_path: Path) -> None:
    first = pet()
    dataset = dcmread(io.BytesIO(first))
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "2.25.124"
    found = compare(tmp_path, first, encoded(dataset))
    assert found == (Likeness.VARIANT, ("(0008,1140)[0].(0008,1155)",))


def test_other_pixels_are_a_conflict_with_both_digests(world: World) -> None:
    first = pet()
    other = other_pixels(first)
    world.put({"first": first})
    world.file_all()
    (entry,) = world.put({"other": other})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "conflict": 1}
    reason = world.reason_of(entry)
    assert reason["dataset_sha256"] == dataset_digest(other)
    assert reason["kept"]["dataset"] == dataset_digest(first)
    assert world.kept_bytes(entry) == other
    assert list(world.tree().values()) == [first]


def test_the_same_uid_in_another_series_or_study_is_a_conflict(world: World) -> None:
    first = pet()
    world.put({"first": first})
    world.file_all()
    world.put(
        {
            "series": changed(first, SeriesInstanceUID="2.25.5"),
            "study": changed(first, StudyInstanceUID="2.25.6"),
        }
    )
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "conflict": 2}


def structure(**elements: object) -> bytes:
    """An object without pixels."""
    dataset = tiny("PET AC", 0)
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.99"
    dataset.Modality, dataset.StructureSetLabel = "RTSTRUCT", "LABEL"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return encoded(dataset)


def test_objects_without_pixels_are_compared_by_their_elements(world: World) -> None:
    first = structure()
    world.put({"first": first})
    world.file_all()
    world.put({"again": recoded(first), "other": structure(StructureSetLabel="OTHER")})
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "duplicate": 1, "conflict": 1}


def test_pixels_on_one_side_only_are_a_conflict(tmp_path: Path) -> None:
    first = pet()
    assert compare(tmp_path, first, changed(first, PixelData=None))[0] is Likeness.CONFLICT


def test_lossy_pixels_are_never_called_equal(tmp_path: Path) -> None:
    first = pet()
    lossless = encoded(tiny("PET AC", 3, transfer_syntax_uid=JPEG2000Lossless))
    dataset = dcmread(io.BytesIO(lossless))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.91"  # says that it may be lossy
    assert compare(tmp_path, first, encoded(dataset))[0] is Likeness.CONFLICT


@pytest.mark.parametrize(
    ("vr", "one", "other", "alike"),
    [
        (b"DS", b"  1.5\\2 ", b"1.5\\2 ", True),
        (b"CS", b"A \\ B ", b"A\\B ", True),
        (b"LO", b" left ", b"left", True),
        (b"UI", b"1.2\0", b"1.2 ", True),
        (b"PN", b" A^B", b"A^B ", False),
        (b"DS", b"1.50", b"1.5 ", False),
        (b"CS", b"A\\B ", b"A\\B\\", False),
        (b"ST", b"a \\ b ", b"a\\b ", False),
        (b"ST", b"a\\b ", b"a\\b", True),
        (b"UT", b" a", b"a ", False),
        (b"US", b"\1\0", b"\2\0", False),
        (b"OB", b"\1\2\3\0", b"\1\2\3", True),
        (b"OB", b"\1\2\3\4", b"\1\2\3\0", False),
    ],
)
def test_padding_is_no_difference_and_everything_else_is(
    tmp_path: Path, vr: bytes, one: bytes, other: bytes, alike: bool
) -> None:
    first = encoded(tiny("PET AC", 3))
    behind = [
        first + explicit_element(0x7FF1, 0x0010, b"LO", b"OURS")
        + explicit_element(0x7FF1, 0x1001, vr, value) for value in (one, other)
    ]  # fmt: skip
    expected = Likeness.DUPLICATE if alike else Likeness.VARIANT
    assert compare(tmp_path, *behind)[0] is expected


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"text " * 100, pet()[:1500]])
def test_what_cannot_be_read_is_a_conflict_and_no_exception(tmp_path: Path, content: bytes) -> None:
    assert compare(tmp_path, content, pet())[0] is Likeness.CONFLICT
    assert compare(tmp_path, pet(), content)[0] is Likeness.CONFLICT


def test_a_damaged_deflated_file_is_a_conflict(tmp_path: Path) -> None:
    deflated = encoded(tiny("PET AC", 3, transfer_syntax_uid="1.2.840.10008.1.2.1.99"))
    cut = deflated[:-200]
    broken = bytearray(deflated)
    broken[-300:-200] = bytes(100)
    for damaged in (cut, bytes(broken)):
        assert compare(tmp_path, damaged, pet())[0] is Likeness.CONFLICT


# what the setting says ----------------------------------------------------------------------------


def four(world: World, folder: Path) -> dict[str, bytes]:
    old = small_instances(folder / "made", 3)
    world.put({str(number): content for number, content in enumerate(old)})
    world.file_all()
    return {
        "same": old[0],
        "recoded": recoded(old[0]),
        "variant": changed(old[1], PatientName="Other^Name"),
        "conflict": other_pixels(old[2]),
    }


def test_keep_first_drops_duplicates_and_sets_the_others_aside(
    world: World, tmp_path: Path
) -> None:
    again = four(world, tmp_path)
    before = world.tree()
    world.put(again)
    world.file_all()
    world.check()
    assert world.tree() == before
    assert world.outcomes() == {"filed": 3, "duplicate": 2, "variant": 1, "conflict": 1}


def test_quarantine_sets_duplicates_aside_too(world: World, tmp_path: Path) -> None:
    again = four(world, tmp_path)
    before = world.tree()
    entries = world.put(again)
    world.file_all(duplicates="quarantine")
    world.check()
    assert world.tree() == before
    assert world.outcomes() == {"filed": 3, "quarantined": 2, "variant": 1, "conflict": 1}
    assert world.outcome_of(entries[0]).code == "duplicate"


def test_replace_keeps_the_newer_instance_and_sets_the_first_aside(
    world: World, tmp_path: Path
) -> None:
    again = four(world, tmp_path)
    before = world.tree()
    entries = world.put(again)
    world.file_all(duplicates="replace")
    world.check()
    assert world.outcomes() == {"filed": 3, "duplicate": 2, "replaced": 2}
    assert world.path_of(uid_of(again["variant"])).read_bytes() == again["variant"]
    assert world.path_of(uid_of(again["conflict"])).read_bytes() == again["conflict"]
    aside = {world.kept_bytes(entry) for entry in entries[2:]}
    assert aside == set(before.values()) - {again["same"]}


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber"])
def test_replace_never_puts_another_patient_or_accession_in_the_place_of_one(
    world: World, tmp_path: Path, keyword: str
) -> None:
    (first,) = small_instances(tmp_path / "made", 1)
    world.put({"first": first})
    world.file_all()
    world.put({"other": changed(first, **{keyword: "OTHER"})})
    world.file_all(duplicates="replace")
    world.check()
    assert world.outcomes() == {"filed": 1, "variant": 1}
    assert list(world.tree().values()) == [first]
