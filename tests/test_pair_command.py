"""`petct-ingest pair`: any folder in, a pair out, and an exit code that a script can trust."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from running import petct

from daemon.cli.app import main
from workers.pairing import build
from workers.pairing.load import Pair, load_pair
from workers.phantom.study import TRANSFER_SYNTAXES, PhantomSpec, write_study

READY, ERROR, HELD = 0, 2, 3
PAIR = ["ct.npy", "pair.json", "pet.npy", "qc.png"]
NEEDED = ("CT IMAGES", "PET AC")


@dataclass(frozen=True)
class Told:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(*words: object) -> Told:
    """Run the command as a process of its own."""
    done = subprocess.run(petct("pair", *words), capture_output=True, text=True, timeout=60)
    return Told(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Told]:
    """Run the command in this process, without the picture: a process each would take minutes."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")

    def called(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["petct-ingest", "pair", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Told(int(ended.value.code or 0), out, err)

    return called


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every series of one study."""
    folder = tmp_path_factory.mktemp("phantom")
    write_study(PhantomSpec(size="tiny"), folder)
    return folder


@pytest.fixture
def study(phantom: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(phantom, tmp_path / "study")


@pytest.fixture(scope="module")
def plain_folder(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the study in HFS and explicit little endian gives."""
    out = tmp_path_factory.mktemp("plain") / "pair"
    done = run(phantom, out, "--json")
    assert done.code == READY, done.err
    return out


@pytest.fixture
def plain(plain_folder: Path) -> Pair:
    return load_pair(plain_folder)


def edit(folder: Path, change: Callable[[Dataset], object]) -> None:
    for path in folder.iterdir():
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(path)


# real studies and phantoms ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slices"), [("STS_002", 48), ("STS_003", 51)])
def test_a_real_study_pairs(test_data: Path, tmp_path: Path, name: str, slices: int) -> None:
    out = tmp_path / "deep" / "pair"
    done = run(test_data / "studies" / name, out, "--json")
    assert done.code == READY, done.err
    assert sorted(os.listdir(out)) == PAIR
    assert os.listdir(out.parent) == ["pair"]
    pair = load_pair(out)
    assert (pair.ct.shape[0], pair.pet.shape[0]) == (slices, slices)
    assert (pair.units, pair.meta.covered_fraction) == ("suvbw", 1.0)
    assert pair.meta.suv.factor == 1.0  # GML: SUVbw as it is
    assert not pair.meta.pet.resampled
    assert pair.meta.same_frame_of_reference
    said = done.json
    assert (said["state"], said["pet"], said["ct"]) == (
        "ready", pair.meta.pet.series, pair.meta.ct.series,
    )  # fmt: skip
    for array, meta in ((pair.ct, pair.meta.ct), (pair.pet, pair.meta.pet)):
        files = [path for path in (test_data / "studies" / name).rglob("*") if path.is_file()]
        there = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
        assert set(meta.inputs) <= there
        assert len(meta.inputs) == slices
        assert float(array.max()) == pytest.approx(meta.maximum)


def test_the_phantom_pairs_with_its_picture(plain_folder: Path) -> None:
    assert (plain_folder / "qc.png").read_bytes().startswith(b"\x89PNG")
    assert load_pair(plain_folder).units == "suvbw"


@pytest.mark.parametrize("orientation", ["HFP", "FFS", "FFP"])
def test_in_every_orientation_the_arrays_are_the_same(
    call: Callable[..., Told], plain: Pair, tmp_path: Path, orientation: Any
) -> None:
    spec = PhantomSpec(size="tiny", orientation=orientation)
    write_study(spec, tmp_path / "study", only=NEEDED)
    assert call(tmp_path / "study", tmp_path / "pair").code == READY
    found = load_pair(tmp_path / "pair")
    assert found.meta.pet.original.patient_position == orientation
    np.testing.assert_allclose(found.affine, plain.affine, atol=1e-9)
    assert np.array_equal(found.ct, plain.ct)
    assert np.array_equal(found.pet, plain.pet)


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES[1:], ids=lambda syntax: syntax.name)
def test_in_every_transfer_syntax_the_files_are_the_same(
    call: Callable[..., Told], plain: Pair, tmp_path: Path, syntax: str
) -> None:
    spec = PhantomSpec(size="tiny", transfer_syntax_uid=syntax)
    write_study(spec, tmp_path / "study", only=NEEDED)
    assert call(tmp_path / "study", tmp_path / "pair").code == READY
    found = load_pair(tmp_path / "pair").meta
    assert (found.ct.sha256, found.pet.sha256) == (plain.meta.ct.sha256, plain.meta.pet.sha256)
    assert found.affine == plain.meta.affine


def test_options_choose_the_grid_and_nifti(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pair"
    assert call(study, out, "--grid", "isotropic:8", "--nifti").code == READY
    assert load_pair(out).meta.spacing == (8.0, 8.0, 8.0)
    assert sorted(os.listdir(out)) == sorted([*PAIR, "ct.nii.gz", "pet.nii.gz"])
    assert call(study, out).code == READY  # a pair is replaced whole, with what it had more
    assert sorted(os.listdir(out)) == PAIR


# exit codes ---------------------------------------------------------------------------------------


def test_a_study_that_is_held_ends_with_3_and_leaves_no_folder(study: Path, tmp_path: Path) -> None:
    sorted((study / "PET AC").iterdir())[3].unlink()
    done = run(study, tmp_path / "pair")
    assert done.code == HELD
    assert "PET 7 of 8, gap at z = " in done.out
    assert done.out.splitlines()[-1] == "held"
    assert sorted(os.listdir(tmp_path)) == ["study"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: edit(s / "CT IMAGES", lambda d: setattr(d, "FrameOfReferenceUID", "1.2.3")),
         "FrameOfReferenceUID of the CT (series 2) is another"),
        (lambda s: shutil.rmtree(s / "CT IMAGES"), "no CT volume for the PET"),
        (lambda s: shutil.rmtree(s / "PET AC"), "no attenuation-corrected PET volume"),
        (lambda s: [p.unlink() for p in sorted((s / "CT IMAGES").iterdir())[:6]], "covers"),
    ],
    ids=["other frame", "no CT", "NAC only", "short CT"],
)  # fmt: skip
def test_what_speaks_against_a_pair_is_said(
    call: Callable[..., Told],
    study: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    words: str,
) -> None:
    spoil(study)
    done = call(study, tmp_path / "pair", "--json")
    assert done.code == HELD
    assert words in "; ".join(done.json["reasons"])
    assert done.json["state"] == "held"
    assert done.json["summary"] is None
    assert not (tmp_path / "pair").exists()


def test_a_pair_can_be_forced_and_says_so(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    edit(study / "CT IMAGES", lambda one: setattr(one, "FrameOfReferenceUID", "1.2.3"))
    assert call(study, tmp_path / "pair", "--force").code == READY
    meta = load_pair(tmp_path / "pair").meta
    assert not meta.same_frame_of_reference
    assert meta.decision["override"]["forced"] is True
    assert any("overruled: the FrameOfReferenceUID" in one for one in meta.decision["reasons"])


def test_a_held_study_leaves_the_pair_that_was_there(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pair"
    assert call(study, out).code == READY
    before = (out / "pair.json").read_bytes()
    shutil.rmtree(study / "CT IMAGES")
    assert call(study, out).code == HELD
    assert (out / "pair.json").read_bytes() == before


def test_pixels_that_are_cut_hold_the_pair_and_leave_nothing_half_written(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    victim = sorted((study / "PET AC").iterdir())[2]
    dataset = dcmread(victim)
    dataset.PixelData = dataset.PixelData[:-100]
    dataset.save_as(victim)
    done = call(study, tmp_path / "pair")
    assert done.code == HELD
    assert "PET" in done.out
    assert sorted(os.listdir(tmp_path)) == ["study"]


def test_several_studies_are_refused_until_one_is_named(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    other = write_study(PhantomSpec(2, size="tiny"), study / "second", only=NEEDED)
    done = call(study, tmp_path / "pair")
    assert done.code == ERROR
    assert other.study_uid in done.err
    assert call(study, tmp_path / "pair", "--study", other.study_uid).code == READY
    assert load_pair(tmp_path / "pair").meta.study == other.study_uid


def test_a_pet_and_a_ct_can_be_named(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    uid = generate_uid()
    shutil.copytree(study / "CT IMAGES", study / "another")

    def renamed(dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uid, generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID

    edit(study / "another", renamed)
    assert call(study, tmp_path / "pair", "--ct", uid).code == READY
    assert load_pair(tmp_path / "pair").meta.ct.series == uid
    done = call(study, tmp_path / "pair", "--ct", "1.2.3")
    assert done.code == HELD
    assert "choose another" in done.out


@pytest.mark.parametrize(
    "place", ["gantrytilting", "notavolume", "slicecount", "sliceincrement", "sliceorientation"]
)
def test_a_folder_without_a_pet_ends_with_2(
    call: Callable[..., Told], test_data: Path, tmp_path: Path, place: str
) -> None:
    done = call(test_data / "odd" / "dicom2nifti" / "failing" / place, tmp_path / "pair")
    assert (done.code, done.out) == (ERROR, "")
    assert "no study with a PET under that path" in done.err
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_done_ends_with_2_and_one_line(study: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").write_text("Dear colleague")
    done = run(study, tmp_path / "notes")
    assert done.code == ERROR
    assert done.err.count("\n") == 1
    assert "letter.txt" in done.err
    assert os.listdir(tmp_path / "notes") == ["letter.txt"]


def test_a_wrong_option_or_path_ends_with_2(
    call: Callable[..., Told], study: Path, tmp_path: Path
) -> None:
    assert call(study, tmp_path / "pair", "--grid", "mr").code == ERROR
    assert call(tmp_path / "nowhere", tmp_path / "pair").code == ERROR
    assert os.listdir(tmp_path) == ["study"]
