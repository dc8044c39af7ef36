"""A pair from two series: the numbers, the place, the picture and every word of pair.json."""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import jsonschema
import matplotlib.image
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.figure import Figure
from volumes import PRONE, Scan, series_of, suv, turned, write

from workers.errors import PairingRefused, PixelError, Truncated
from workers.pairing.build import PairContext, PairOptions, PairSummary, build_pair
from workers.pairing.histograms import draw_histograms
from workers.pairing.load import Pair, load_pair
from workers.pairing.pair_json import json_schema
from workers.pairing.qc import BodyValues
from workers.pairing.suv import SuvStatus, SuvVerdict, judge_suv
from workers.pairing.volume import SeriesInput
from workers.phantom.study import PhantomSpec, PhantomStudy, write_study

PROJECT = Path(__file__).resolve().parent.parent
CONTEXT = PairContext(
    "1.2.3", 4, {"reasons": ["the only PET", "the only CT"]}, (), "2026-01-02T03:04:05Z"
)
PET = Scan(
    "PT", (12, 11, 9), (5.0, 4.0), 4.0, (-22.0, -24.0, 104.0), slope=0.001, signed=False,
    uid="1.2.3.2",
)  # fmt: skip
CT = Scan("CT", (40, 44, 14), (1.5, 1.5), 3.0, (-28.0, -30.0, 100.0))


def activity(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return 10 + 0.05 * x - 0.03 * y + 0.02 * z


def density(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.rint(4 * x + 6 * y - 2 * z)


def built(
    out: Path,
    pet: SeriesInput,
    ct: SeriesInput,
    verdict: SuvVerdict | None = None,
    **options: object,
) -> tuple[PairSummary, Pair]:
    out.mkdir(parents=True)
    how = PairOptions(**options)  # type: ignore[arg-type]
    summary = build_pair(pet, ct, verdict or suv(), CONTEXT, how, out)
    return summary, load_pair(out)


@pytest.fixture
def series(tmp_path: Path) -> tuple[SeriesInput, SeriesInput]:
    return write(PET, tmp_path / "pet", activity), write(CT, tmp_path / "ct", density)


def places(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    c, h, w = np.indices(pair.ct.shape)
    at = np.stack([w, h, c, np.ones_like(c)], axis=-1) @ pair.affine.T
    return at[..., 0], at[..., 1], at[..., 2]


@pytest.mark.parametrize("grid", ["pet", "ct", "isotropic:3"])
def test_both_arrays_hold_their_field_at_the_place_that_the_affine_says(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput], grid: str
) -> None:
    summary, pair = built(tmp_path / "out", *series, grid=grid, ct_dtype="float32")
    assert pair.ct.shape == pair.pet.shape == summary.shape
    # away from the edges: there the outermost sample holds, and smoothing repeats it
    x, y, z = places(pair)
    deep = (abs(x) < 14) & (y > -16) & (y < 18) & (z > 108) & (z < 132)
    assert deep.sum() > 100
    np.testing.assert_allclose(pair.ct[deep], density(x, y, z)[deep], atol=0.6)
    np.testing.assert_allclose(pair.pet[deep], activity(x, y, z)[deep], atol=6e-4)
    assert pair.meta.grid == grid
    assert pair.meta.pet.resampled is (grid != "pet")
    assert pair.meta.ct.resampled is (grid != "ct")


def test_arrays_are_plain_c_ordered_and_typed(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    _, pair = built(tmp_path / "out", *series)
    ct = np.load(tmp_path / "out" / "ct.npy")
    pet = np.load(tmp_path / "out" / "pet.npy", mmap_mode="r")
    assert (ct.dtype, pet.dtype) == (np.int16, np.float32)
    assert ct.flags.c_contiguous
    assert pet.flags.c_contiguous
    np.testing.assert_array_equal(ct, pair.ct)
    assert sorted(os.listdir(tmp_path / "out")) == ["ct.npy", "pair.json", "pet.npy", "qc.png"]


def test_the_pet_on_its_own_grid_is_the_stored_values_times_the_factor(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    _, pair = built(tmp_path / "out", *series, suv(0.25))
    for k, path in enumerate(series[0].files):
        ds = pydicom.dcmread(path)
        exact = (ds.pixel_array * float(ds.RescaleSlope) * 0.25).astype(np.float32)
        np.testing.assert_array_equal(pair.pet[k], exact)


def test_a_factor_a_slice_follows_its_slice_and_is_told_from_feet_to_head(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    pet, ct = series
    order = [3, 0, 8, 1, 7, 2, 6, 4, 5]
    shuffled = pet.keep(order)
    factors = tuple(1.0 + k for k in order)  # given in the order of the series as it came
    _, pair = built(tmp_path / "out", shuffled, ct, suv(factors))
    _, plain = built(tmp_path / "plain", pet, ct, suv(1.0))
    np.testing.assert_allclose(
        pair.pet, plain.pet * np.arange(1.0, 10.0, dtype=np.float32)[:, None, None], rtol=1e-6
    )
    assert pair.meta.suv.factor == tuple(float(k) for k in range(1, 10))


def test_refused_suv_leaves_the_pet_in_its_units_and_says_so(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    refused = SuvVerdict(SuvStatus.REFUSED, None, "none", None, ("no PatientWeight",), "BQML")
    summary, pair = built(tmp_path / "out", *series, refused)
    assert pair.units == summary.pet_units == "BQML"
    assert "no SUV (no PatientWeight): the PET is in BQML" in summary.warnings
    assert pair.pet.max() == pytest.approx(activity(*places(pair)).max(), abs=1e-3)
    assert pair.meta.suv.reasons == ("no PatientWeight",)


def test_every_file_is_hashed_and_every_input_named(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    summary, pair = built(tmp_path / "out", *series, nifti=True)
    for name, digest in summary.outputs.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert set(summary.outputs) == {*pair.meta.outputs, "pair.json"}
    assert pair.meta.outputs["ct.npy"] == pair.meta.ct.sha256
    for one, meta in zip(series, (pair.meta.pet, pair.meta.ct), strict=True):
        assert meta.inputs == {
            facts.sop_instance_uid: hashlib.sha256(path.read_bytes()).hexdigest()
            for path, facts in zip(one.files, one.facts, strict=True)
        }
        assert meta.series == one.series_uid


def test_pair_json_says_where_how_and_why(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    built(tmp_path / "out", *series)
    raw = json.loads((tmp_path / "out" / "pair.json").read_text())
    assert raw["schema"] == "petct-ingest/pair/1"
    assert raw["schema_version"] == "1"
    assert raw["revision"] == 4
    assert raw["axis_order"] == "CHW"
    assert raw["shape"] == [9, 11, 12]
    assert raw["spacing"] == [4.0, 5.0, 4.0]
    assert raw["origin"] == [-22.0, -24.0, 104.0]
    assert raw["affine"][0] == [4.0, 0.0, 0.0, -22.0]
    assert raw["decision"] == {"reasons": ["the only PET", "the only CT"]}
    assert raw["ct"]["interpolator"] == "linear"
    assert raw["ct"]["sigma"] == pytest.approx(
        [(4 / 1.5 - 1) / 2, (5 / 1.5 - 1) / 2, (4 / 3 - 1) / 2]
    )
    assert raw["ct"]["fill"] == raw["ct"]["floor"] == -1024
    assert raw["ct"]["original"]["size"] == [40, 44, 14]
    assert raw["pet"]["interpolator"] == "none"
    assert raw["pet"]["units"] == "suvbw"
    assert raw["same_frame_of_reference"] is True
    assert raw["covered_fraction"] == 1.0
    assert set(raw["software"]) == {"petct-ingest", "pydicom", "SimpleITK", "numpy"}


def test_pair_json_follows_the_published_schema(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    schema = json.loads((PROJECT / "docs" / "pair.schema.json").read_text())
    assert schema == json_schema(), (
        "docs/pair.schema.json is older than pair_json.py; write json_schema() into it"
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for number, verdict in enumerate((suv(), suv(tuple([1.0] * 9)))):
        built(tmp_path / f"out{number}", *series, verdict)
        raw = json.loads((tmp_path / f"out{number}" / "pair.json").read_text())
        assert not list(validator.iter_errors(raw))
    del raw["affine"]
    assert list(validator.iter_errors(raw))


def test_nothing_that_is_written_names_the_patient(tmp_path: Path) -> None:
    named = (
        ("PatientName", "Doe^Jane"),
        ("PatientID", "MRN-4711"),
        ("AccessionNumber", "ACC-0815"),
        ("StudyDate", "19991231"),
    )
    pet = write(PET.with_(changes=named), tmp_path / "pet", activity)
    ct = write(CT.with_(changes=named), tmp_path / "ct", density)
    built(tmp_path / "out", pet, ct, nifti=True)
    for path in (tmp_path / "out").iterdir():
        raw = path.read_bytes()
        for _, word in named:
            assert word.encode() not in raw


@pytest.mark.parametrize("orientation", [Scan.orientation, PRONE, turned(12)])
def test_nifti_lies_where_the_pair_lies(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    pet = write(PET.with_(orientation=orientation), tmp_path / "pet", activity)
    ct = write(CT.with_(orientation=orientation), tmp_path / "ct", density)
    _, pair = built(tmp_path / "out", pet, ct, nifti=True)
    for name, image in (("ct.nii.gz", pair.ct_image), ("pet.nii.gz", pair.pet_image)):
        read = sitk.ReadImage(str(tmp_path / "out" / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
        assert read.GetPixelID() == image.GetPixelID()
        np.testing.assert_allclose(read.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(read.GetSpacing(), image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(read.GetDirection(), image.GetDirection(), atol=1e-6)


def test_the_same_input_gives_the_same_bytes(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    one, _ = built(tmp_path / "one", *series, nifti=True, threads=1)
    two, _ = built(tmp_path / "two", *series, nifti=True, threads=3)
    assert one.outputs == two.outputs


def test_a_ct_that_is_too_short_is_air_beyond_and_told(tmp_path: Path) -> None:
    pet = write(PET, tmp_path / "pet", activity)
    ct = write(CT.with_(size=(40, 44, 7)), tmp_path / "ct", density)
    summary, pair = built(tmp_path / "out", pet, ct)
    assert summary.covered_fraction == pytest.approx(4 / 9)
    assert (pair.ct[4:] == -1024).all()
    assert (pair.ct[:3, 1:-1, 1:-1] > -1024).all()
    assert any(words.startswith("the CT covers 44.4%") for words in summary.warnings)


def test_another_frame_of_reference_is_told(tmp_path: Path) -> None:
    pet = write(PET, tmp_path / "pet", activity)
    ct = write(CT.with_(frame_of_reference="1.2.3.10"), tmp_path / "ct", density)
    summary, pair = built(tmp_path / "out", pet, ct)
    assert "different frames of reference: alignment is not vouched for" in summary.warnings
    assert not pair.meta.same_frame_of_reference


def test_a_ct_turned_against_the_pet_is_resampled_all_the_same(tmp_path: Path) -> None:
    pet = write(PET, tmp_path / "pet", activity)
    wide = CT.with_(size=(60, 60, 18), origin=(-40.0, -48.0, 92.0), orientation=turned(6))
    ct = write(wide, tmp_path / "ct", density)
    _, pair = built(tmp_path / "out", pet, ct, ct_dtype="float32")
    deep = (slice(1, -1), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(pair.ct[deep], density(*places(pair))[deep], atol=0.6)


@pytest.mark.parametrize(
    ("which", "skip", "words"),
    [("pet", [4], "PET: gap at z = 120.0 mm"), ("ct", [5, 6], "CT: gap at z = 116.5 mm")],
)
def test_a_gap_is_refused_with_the_series_and_its_place(
    tmp_path: Path, which: str, skip: list[int], words: str
) -> None:
    pet = write(PET, tmp_path / "pet", activity, skip=skip if which == "pet" else ())
    ct = write(CT, tmp_path / "ct", density, skip=skip if which == "ct" else ())
    with pytest.raises(PairingRefused, match=re.escape(words)):
        built(tmp_path / "out", pet, ct)


def test_cut_pixels_name_the_series_and_the_slice(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    ds = pydicom.dcmread(series[1].files[2])
    ds.PixelData = ds.PixelData[:64]
    ds.save_as(series[1].files[2])
    with pytest.raises(Truncated, match="CT: slice 3 of 14"):
        built(tmp_path / "out", *series)
    ds["PixelData"].VR = "OW"
    del ds.PixelData
    ds.save_as(series[1].files[2])
    with pytest.raises(PixelError, match=r"CT: slice 3 of 14 .*: no pixel data"):
        built(tmp_path / "again", *series)


def test_a_repeated_slice_is_left_out_and_told(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    twin = pydicom.dcmread(series[1].files[2])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    twin.save_as(tmp_path / "ct" / "twin.dcm")
    summary, pair = built(tmp_path / "out", series[0], series_of(tmp_path / "ct"))
    assert pair.meta.ct.original.size == (40, 44, 14)
    assert "CT: 1 slices repeat another one pixel by pixel and were left out" in summary.warnings


# the phantom: a body whose HU and SUV are known


def phantom(folder: Path, **spec: object) -> tuple[PhantomStudy, SeriesInput, SeriesInput]:
    folder.mkdir(parents=True)
    wanted = PhantomSpec(**spec)  # type: ignore[arg-type]
    study = write_study(wanted, folder, only=("CT IMAGES", "PET AC"))
    return study, series_of(folder / "PET AC"), series_of(folder / "CT IMAGES")


def sphere(pair: Pair, study: PhantomStudy, margin_mm: float) -> np.ndarray:
    at = np.stack(places(pair), axis=-1) - np.array(study.truth.sphere_centre_mm)
    return np.linalg.norm(at, axis=-1) < study.truth.sphere_radius_mm - margin_mm


def test_the_hot_sphere_has_its_known_hu_and_suv(tmp_path: Path) -> None:
    study, pet, ct = phantom(tmp_path / "study")
    summary, pair = built(tmp_path / "out", pet, ct, judge_suv(pet.facts))
    core = sphere(pair, study, margin_mm=9)
    assert core.sum() >= 10
    assert np.abs(pair.ct[core] - study.truth.sphere_hu).max() <= 1
    assert pair.pet[core] == pytest.approx(study.truth.sphere_suv, rel=1e-3)
    assert summary.qc_flags == ()
    assert summary.warnings == ()


@pytest.mark.parametrize("orientation", ["HFP", "FFS", "FFP"])
def test_a_patient_who_lies_otherwise_comes_out_the_same(tmp_path: Path, orientation: str) -> None:
    _, pet, ct = phantom(tmp_path / "supine", size="tiny")
    _, plain = built(tmp_path / "one", pet, ct, judge_suv(pet.facts))
    _, pet, ct = phantom(tmp_path / "other", size="tiny", orientation=orientation)
    _, pair = built(tmp_path / "two", pet, ct, judge_suv(pet.facts))
    assert pair.meta.pet.original.patient_position == orientation
    assert np.allclose(pair.meta.direction, np.eye(3))
    # the same body in the same space; grids may differ by parts of a voxel
    np.testing.assert_allclose(pair.affine, plain.affine, atol=1e-6)
    np.testing.assert_allclose(pair.pet, plain.pet, rtol=2e-3, atol=2e-3)
    assert np.abs(pair.ct.astype(int) - plain.ct.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
     "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"],
)  # fmt: skip
def test_the_transfer_syntax_changes_nothing(tmp_path: Path, syntax: str) -> None:
    _, pet, ct = phantom(tmp_path / "plain", size="tiny")
    one, _ = built(tmp_path / "one", pet, ct, judge_suv(pet.facts))
    _, pet, ct = phantom(tmp_path / "coded", size="tiny", transfer_syntax_uid=syntax)
    two, _ = built(tmp_path / "two", pet, ct, judge_suv(pet.facts))
    assert one.outputs["ct.npy"] == two.outputs["ct.npy"]
    assert one.outputs["pet.npy"] == two.outputs["pet.npy"]


def test_a_ct_that_cuts_the_body_off_is_flagged(tmp_path: Path) -> None:
    _, pet, ct = phantom(tmp_path / "study")
    for path in ct.files:
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array[:, 40:88]
        ds.ImagePositionPatient[0] += 40 * float(ds.PixelSpacing[1])
        ds.Columns = 48
        ds.PixelData = np.ascontiguousarray(pixels).tobytes()
        ds.save_as(path)
    summary, pair = built(tmp_path / "out", pet, series_of(ct.files[0].parent), suv(0.000438603493))
    flagged = {check.name for check in pair.meta.qc.checks if check.flagged}
    assert {"ct_truncated", "pet_outside_ct"} <= flagged
    assert any("runs into the side of the CT" in words for words in summary.qc_flags)


def test_a_pair_of_different_places_is_flagged(tmp_path: Path) -> None:
    _, pet, ct = phantom(tmp_path / "study")
    for path in ct.files:
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient[0] += 90
        ds.save_as(path)
    _, pair = built(tmp_path / "out", pet, series_of(ct.files[0].parent))
    overlap = next(check for check in pair.meta.qc.checks if check.name == "body_overlap")
    assert overlap.flagged
    assert overlap.value is not None
    assert overlap.value < 0.75


def test_the_picture_shows_the_head_up_and_the_right_side_left(tmp_path: Path) -> None:
    # a bright block high up on the patient's right, in the CT alone
    def block(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where((x < -5) & (z > 130), 1000.0, 0.0) - 200

    pet = write(PET, tmp_path / "pet", lambda x, y, z: 5 + 0 * x)
    ct = write(CT.with_(size=(40, 44, 20), origin=(-28.0, -30.0, 90.0)), tmp_path / "ct", block)
    built(tmp_path / "out", pet, ct)
    pixels = matplotlib.image.imread(tmp_path / "out" / "qc.png")[..., :3]
    white = np.argwhere((pixels > 0.97).all(axis=-1))
    # the first panel is the coronal CT: find its frame by the grey of the rest of the body
    height, width = pixels.shape[:2]
    first = white[(white[:, 1] < 0.12 * width) & (white[:, 0] > 0.08 * height)]
    assert len(first) > 200
    frame = np.argwhere(np.abs(pixels - np.array([0x3A, 0x3F, 0x46]) / 255).max(axis=-1) < 0.01)
    left, top = frame[:, 1].min(), frame[:, 0].min()
    assert first[:, 1].min() - left < 6  # on the left of the panel…
    assert first[:, 0].min() - top < 30  # …and at its upper end


@pytest.mark.parametrize(
    ("beside", "below", "drawn"),
    [((3.0, 3.0), (3.0, 2.0), 2), ((3.0, 4.0), (3.0, 1.0), 2), ((0.4, 4.0), (3.0, 4.0), 2),
     ((3.0, 2.0), (3.0, 1.0), 0), ((0.4, 3.0), (3.0, 0.2), 0)],
)  # fmt: skip
def test_the_values_of_the_body_are_drawn_where_there_is_room(
    beside: tuple[float, float], below: tuple[float, float], drawn: int
) -> None:
    figure = Figure(figsize=(10, 8))
    body = BodyValues(np.full(9, 50, np.float32), np.zeros(0, np.float32))
    draw_histograms(figure, (1, 1, *beside), (5, 1, *below), body, 10.0, "SUVbw [g/ml]")
    assert len(figure.axes) == drawn
    for axes in figure.axes:
        box = axes.get_position()
        assert box.x0 >= 0.1
        assert box.y0 >= 0.125
        assert box.x1 <= 0.8
        assert box.y1 <= 0.7


@pytest.mark.parametrize("study", ["STS_002", "STS_003"])
def test_real_studies_are_paired(test_data: Path, tmp_path: Path, study: str) -> None:
    both = []
    for modality in ("PET", "CT"):
        folder = tmp_path / modality
        folder.mkdir()
        for path in (test_data / "studies" / study / modality / "dicom" / "image").iterdir():
            (folder / f"{path.name}.dcm").symlink_to(path)
        both.append(series_of_links(folder))
    pet, ct = both
    summary, pair = built(tmp_path / "out", pet, ct, judge_suv(pet.facts))
    assert pair.ct.shape == pair.pet.shape == (len(pet.files), *pair.ct.shape[1:])
    assert pair.units == "suvbw"
    assert summary.covered_fraction == 1.0
    assert summary.body_mean == pytest.approx(0.9, abs=0.2)
    # the lesion was cropped out: the picture must say that the body runs into the sides
    assert any("runs into the side" in words for words in summary.qc_flags)


def series_of_links(folder: Path) -> SeriesInput:
    resolved = folder.with_name(f"{folder.name}-files")
    resolved.mkdir()
    for link in folder.iterdir():
        (resolved / link.name).write_bytes(link.read_bytes())
    return series_of(resolved)


def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, series: tuple[SeriesInput, SeriesInput]
) -> None:
    with pytest.raises(ValueError, match="unknown grid 'mri'"):
        built(tmp_path / "out", *series, grid="mri")
    assert dataclasses.asdict(PairOptions())["grid"] == "pet"


def test_an_empty_pet_over_an_empty_ct_is_paired_and_flagged(tmp_path: Path) -> None:
    pet = write(PET.with_(size=(4, 3, 2)), tmp_path / "pet", lambda x, y, z: 0 * x)
    ct = write(CT, tmp_path / "ct", lambda x, y, z: 0 * x - 1024)
    summary, pair = built(tmp_path / "out", pet, ct)
    assert (pair.pet == 0).all()
    assert (pair.ct == -1024).all()
    assert summary.body_mean is None
    assert "no body found in the CT" in summary.qc_flags
    assert "PET: only 2 slices: a gap could not be seen" in summary.warnings
