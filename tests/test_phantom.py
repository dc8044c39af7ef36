from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from workers.header.read import read_header
from workers.pairing.suv import judge_suv
from workers.phantom.anatomy import Organ
from workers.phantom.study import (
    SERIES_NAMES,
    TRANSFER_SYNTAXES,
    PhantomSpec,
    PhantomStudy,
    instance,
    make_study,
    write_many,
    write_study,
)

TINY = PhantomSpec(size="tiny")
ORIENTATIONS = ("HFS", "HFP", "FFS", "FFP")
AXIAL = ("CT IMAGES", "PET NAC", "PET AC")


def datasets(study: PhantomStudy, name: str) -> list[Dataset]:
    series = study.named(name)
    return [series.dataset(index) for index in range(series.count)]


def values(ds: Dataset) -> NDArray[np.float64]:
    stored = ds.pixel_array.astype(np.float64)
    return np.asarray(stored * float(ds.RescaleSlope) + float(ds.RescaleIntercept))


def centres(ds: Dataset) -> NDArray[np.float64]:
    """Patient coordinates of every pixel from the header alone (PS3.3 C.7.6.2.1.1)."""
    along_row = np.array(ds.ImageOrientationPatient[:3], dtype=float)
    down_column = np.array(ds.ImageOrientationPatient[3:], dtype=float)
    between_rows, between_columns = map(float, ds.PixelSpacing)
    row, column = np.mgrid[0 : ds.Rows, 0 : ds.Columns]
    places: NDArray[np.float64] = (
        np.array(ds.ImagePositionPatient, dtype=float)
        + column[..., None] * between_columns * along_row
        + row[..., None] * between_rows * down_column
    )
    return places


def distance_to_sphere(ds: Dataset, study: PhantomStudy) -> NDArray[np.float64]:
    return np.linalg.norm(centres(ds) - np.array(study.truth.sphere_centre_mm), axis=-1)


def test_a_study_has_the_series_of_a_delivery_in_one_study_and_frame_of_reference() -> None:
    study = make_study(TINY)
    assert tuple(series.name for series in study.series) == SERIES_NAMES
    first = {series.name: series.dataset(0) for series in study.series}
    assert {ds.StudyInstanceUID for ds in first.values()} == {study.study_uid}
    assert len({ds.FrameOfReferenceUID for ds in first.values()}) == 1
    assert [first[name].Modality for name in SERIES_NAMES] == ["CT"] * 4 + ["PT"] * 3
    assert len({series.series_uid for series in study.series}) == len(SERIES_NAMES)
    for series in study.series:
        assert first[series.name].SeriesInstanceUID == series.series_uid
        assert first[series.name].SOPInstanceUID == series.sop_instance_uid(0)


def test_every_instance_has_its_own_uid_and_number() -> None:
    study = make_study(TINY)
    uids = {s.sop_instance_uid(index) for s in study.series for index in range(s.count)}
    assert len(uids) == study.count
    assert [ds.InstanceNumber for ds in datasets(study, "PET AC")] == list(range(1, 9))
    with pytest.raises(IndexError, match="PET AC has instances 0 to 7, not 8"):
        study.named("PET AC").dataset(8)


def test_equal_numbers_give_equal_bytes_and_other_numbers_other_uids() -> None:
    again = instance(PhantomSpec(size="tiny"), "CT IMAGES", 3)
    assert again == instance(TINY, "CT IMAGES", 3)
    others = [
        PhantomSpec(patient_number=2, size="tiny"),
        PhantomSpec(study_number=2, size="tiny"),
        PhantomSpec(size="small"),
        PhantomSpec(size="tiny", orientation="FFS"),
    ]
    assert len({make_study(spec).study_uid for spec in [TINY, *others]}) == 5


def test_overrides_and_transfer_syntax_leave_the_uids_alone() -> None:
    spec = PhantomSpec(
        size="tiny",
        transfer_syntax_uid=ImplicitVRLittleEndian,
        patient_id="../../etc",
        accession_number="",
    )
    ds = instance(spec, "PET AC", 0)
    assert (ds.PatientID, ds.AccessionNumber) == ("../../etc", "")
    assert ds.SOPInstanceUID == instance(TINY, "PET AC", 0).SOPInstanceUID


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("name", ["CT IMAGES", "REFORMATTED COR", "REFORMATTED SAG"])
def test_hounsfield_units_are_what_the_body_says_at_each_pixels_place(size: str, name: str) -> None:
    study = make_study(PhantomSpec(size=size))  # type: ignore[arg-type]
    for index in range(0, study.named(name).count, 7):
        ds = study.named(name).dataset(index)
        hu, expected = values(ds), study.truth.hu_at(centres(ds)).reshape(ds.Rows, ds.Columns)
        seen = ds.pixel_array != ds.get("PixelPaddingValue", None)
        assert np.abs(hu - expected)[seen].max() <= 0.51


@pytest.mark.parametrize(
    ("size", "orientation"), [*(("tiny", each) for each in ORIENTATIONS), ("small", "HFS")]
)
def test_the_sphere_has_its_suv_and_hounsfield_units(size: str, orientation: str) -> None:
    study = make_study(PhantomSpec(size=size, orientation=orientation))  # type: ignore[arg-type]
    truth = study.truth
    for name, factor, known, tolerance, edge in (
        ("PET AC", truth.suv_factor, truth.sphere_suv, 1e-3, truth.pet_edge_mm),
        ("CT IMAGES", 1.0, truth.sphere_hu, 1e-6, truth.ct_edge_mm),
    ):
        voxels = 0
        for ds in datasets(study, name):
            inside = distance_to_sphere(ds, study) < truth.sphere_radius_mm - edge / 2
            voxels += int(inside.sum())
            assert np.allclose(values(ds)[inside] * factor, known, rtol=tolerance, atol=0)
        assert voxels >= 50


def test_pet_values_are_the_bodys_suv_within_quantisation() -> None:
    study = make_study(PhantomSpec(size="small", patient_number=4))
    for index in (5, 31, 40, 62, 70):
        ds = study.named("PET AC").dataset(index)
        suv = values(ds) * study.truth.suv_factor
        expected = study.truth.suv_at(centres(ds)).reshape(suv.shape)
        step = float(ds.RescaleSlope) * study.truth.suv_factor
        assert np.abs(suv - expected).max() <= 0.5 * step + 1e-4


def test_the_suv_factor_is_what_the_header_says() -> None:
    for patient, study_number in ((1, 1), (2, 1), (17, 3), (400, 2)):
        spec = PhantomSpec(patient, study_number, "tiny")
        ds = instance(spec, "PET AC", 0)
        injection = ds.RadiopharmaceuticalInformationSequence[0]
        elapsed = seconds(ds.SeriesTime) - seconds(injection.RadiopharmaceuticalStartTime)
        assert 50 * 60 < elapsed < 75 * 60
        left = float(injection.RadionuclideTotalDose) * 2.0 ** (
            -elapsed / float(injection.RadionuclideHalfLife)
        )
        factor = 1000.0 * float(ds.PatientWeight) / left
        assert factor == pytest.approx(make_study(spec).truth.suv_factor, rel=1e-12)
        started = injection.RadiopharmaceuticalStartDateTime
        assert started == ds.SeriesDate + injection.RadiopharmaceuticalStartTime


def test_the_suv_rules_find_the_factor_from_the_files(tmp_path: Path) -> None:
    study = write_study(TINY, tmp_path, only=["PET AC", "PET NAC"])
    read = {
        name: [read_header(path).facts for path in sorted((tmp_path / name).iterdir())]
        for name in ("PET AC", "PET NAC")
    }
    verdict = judge_suv(read["PET AC"])
    assert (verdict.status, verdict.label) == ("ok", "suvbw")
    assert verdict.factor == pytest.approx(study.truth.suv_factor, rel=1e-9)
    assert judge_suv(read["PET NAC"]).status == "refused"


def test_the_first_bed_starts_at_the_series_time_and_decay_leads_back_to_it() -> None:
    slices = datasets(make_study(PhantomSpec(size="small")), "PET AC")
    start = seconds(slices[0].SeriesTime)
    times = [seconds(ds.AcquisitionTime) for ds in slices]
    assert min(times) == times[-1] == start, "the thighs come last in the stack and first in time"
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 5
    for ds in slices:
        half_life = float(ds.RadiopharmaceuticalInformationSequence[0].RadionuclideHalfLife)
        decay, frame = math.log(2) / half_life, ds.ActualFrameDuration / 1000
        average = math.log(decay * frame / (1 - math.exp(-decay * frame))) / decay
        reference = seconds(ds.AcquisitionTime) + average
        reference -= half_life * math.log2(float(ds.DecayFactor))
        assert reference == pytest.approx(start, abs=1e-3)
        since_start = float(ds.FrameReferenceTime) / 1000
        assert seconds(ds.AcquisitionTime) + average - since_start == pytest.approx(start, abs=1e-3)


def test_pet_series_count_themselves_and_scale_slice_by_slice() -> None:
    study = make_study(TINY)
    for name in ("PET AC", "PET NAC"):
        slices = datasets(study, name)
        assert {ds.NumberOfSlices for ds in slices} == {len(slices)}
        assert [ds.ImageIndex for ds in slices] == list(range(1, len(slices) + 1))
        assert len({str(ds.RescaleSlope) for ds in slices}) > 1
        assert all(len(str(ds.RescaleSlope)) <= 16 for ds in slices)
        assert all(ds.pixel_array.min() >= 0 for ds in slices)


def test_only_attenuation_correction_separates_the_two_pets() -> None:
    corrected, plain = instance(TINY, "PET AC", 3), instance(TINY, "PET NAC", 3)
    assert "ATTN" in corrected.CorrectedImage
    assert "ATTN" not in plain.CorrectedImage
    assert (corrected.Units, plain.Units) == ("BQML", "PROPCPS")
    assert corrected.ImagePositionPatient == plain.ImagePositionPatient
    assert corrected.SeriesType == plain.SeriesType == ["WHOLE BODY", "IMAGE"]


def test_the_pet_names_its_ct_unless_it_is_told_not_to() -> None:
    study = make_study(TINY)
    named = study.named("PET AC").dataset(0)
    related = named.RelatedSeriesSequence[0]
    assert related.SeriesInstanceUID == study.named("CT IMAGES").series_uid
    assert related.PurposeOfReferenceCodeSequence[0].CodeValue == "122403"
    silent = instance(PhantomSpec(size="tiny", references_ct=False), "PET AC", 0)
    assert "RelatedSeriesSequence" not in silent
    assert "CT IMAGES" not in silent.AttenuationCorrectionMethod


@pytest.mark.parametrize("size", ["tiny", "small", "whole-body", "total-body"])
def test_the_ct_is_another_finer_grid_that_covers_the_pet(size: str) -> None:
    layout = PhantomSpec(size=size).layout  # type: ignore[arg-type]
    reach = {
        name: [grid.centre_mm[2] + side * grid.step_mm * (grid.slices - 1) / 2 for side in (-1, 1)]
        for name, grid in (("ct", layout.ct), ("pet", layout.pet))
    }
    assert reach["ct"][0] < reach["pet"][0] < reach["pet"][1] < reach["ct"][1]
    assert layout.ct.pixel_mm < layout.pet.pixel_mm
    assert layout.ct.matrix > layout.pet.matrix


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", AXIAL)
def test_turning_the_patient_turns_the_images_and_not_the_anatomy(
    orientation: str, name: str
) -> None:
    supine = stack(make_study(TINY), name)
    turned = stack(make_study(PhantomSpec(size="tiny", orientation=orientation)), name)  # type: ignore[arg-type]
    assert turned.keys() == supine.keys()
    assert all(turned[place] == pytest.approx(supine[place], rel=1e-6) for place in supine)


def test_each_position_has_its_own_image_orientation_and_order() -> None:
    seen = {}
    for orientation in ORIENTATIONS:
        study = make_study(PhantomSpec(size="tiny", orientation=orientation))  # type: ignore[arg-type]
        first, last = (study.named("CT IMAGES").dataset(index) for index in (0, 11))
        assert first.PatientPosition == orientation
        heights = [float(ds.ImagePositionPatient[2]) for ds in (first, last)]
        assert (heights[0] > heights[1]) == orientation.startswith("HF")
        seen[orientation] = tuple(int(cosine) for cosine in first.ImageOrientationPatient)
    assert seen == {
        "HFS": (1, 0, 0, 0, 1, 0),
        "HFP": (-1, 0, 0, 0, -1, 0),
        "FFS": (-1, 0, 0, 0, 1, 0),
        "FFP": (1, 0, 0, 0, -1, 0),
    }


def test_scout_and_reformats_are_not_axial_and_the_mip_turns() -> None:
    study = make_study(TINY)
    for name in ("SCOUT", "REFORMATTED COR", "REFORMATTED SAG", "MIP"):
        for ds in datasets(study, name):
            normal = np.cross(ds.ImageOrientationPatient[:3], ds.ImageOrientationPatient[3:])
            assert abs(normal[2]) < 1e-6, name
    views = datasets(study, "MIP")
    assert {tuple(ds.SeriesType) for ds in views} == {("WHOLE BODY", "REPROJECTION")}
    assert len({tuple(ds.ImageOrientationPatient) for ds in views}) == len(views)
    assert "LOCALIZER" in study.named("SCOUT").dataset(0).ImageType


def test_the_mip_shows_the_sphere_where_it_lies_from_every_side() -> None:
    study = make_study(PhantomSpec(size="small"))
    middle = np.array(study.truth.sphere_centre_mm)
    for ds in datasets(study, "MIP"):
        away = centres(ds) - middle
        row, column = (np.array(ds.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        in_plane = np.hypot(away @ row, away @ column)
        suv = values(ds)[in_plane < study.truth.sphere_radius_mm - 4] * study.truth.suv_factor
        assert suv.size > 50
        assert suv.min() == pytest.approx(study.truth.sphere_suv, rel=1e-3)


def test_pixels_outside_the_circle_are_padding_and_inside_they_are_not() -> None:
    ds = instance(TINY, "CT IMAGES", 0)
    offset = np.linalg.norm(centres(ds)[..., :2], axis=-1)
    radius = ds.Columns * float(ds.PixelSpacing[0]) / 2
    padded = ds.pixel_array == ds.PixelPaddingValue
    assert padded[offset > radius].all()
    assert not padded[offset < radius - 1].any()


def test_the_same_pixels_come_back_from_every_transfer_syntax(tmp_path: Path) -> None:
    reference = make_study(TINY)
    picks = [("CT IMAGES", 5), ("PET AC", 0), ("PET AC", 4), ("PET NAC", 7), ("MIP", 2)]
    for syntax, (name, index) in itertools.product(TRANSFER_SYNTAXES, picks):
        ds = instance(PhantomSpec(size="tiny", transfer_syntax_uid=syntax), name, index)
        path = tmp_path / "one.dcm"
        ds.save_as(path, enforce_file_format=True)
        back = pydicom.dcmread(path)
        assert back.file_meta.TransferSyntaxUID == syntax
        expected = reference.named(name).dataset(index)
        assert np.array_equal(back.pixel_array, expected.pixel_array), (syntax.name, name, index)
        assert back.RescaleSlope == expected.RescaleSlope


def test_a_written_study_reads_back_whole(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    study = write_study(TINY, tmp_path, progress=lambda done, total: calls.append((done, total)))
    files = sorted(tmp_path.rglob("*.dcm"))
    assert len(files) == study.count
    assert calls == [(done, study.count) for done in range(1, study.count + 1)]
    for path in files:
        ds = pydicom.dcmread(path)
        assert path.parent.name in SERIES_NAMES
        assert path.name == f"{ds.InstanceNumber:04d}.dcm"
        made = study.named(path.parent.name).dataset(ds.InstanceNumber - 1)
        content = io.BytesIO()
        made.save_as(content, enforce_file_format=True)
        assert path.read_bytes() == content.getvalue()
        facts = read_header(path).facts
        assert facts.unreadable == ()
        assert facts.sop_instance_uid == made.SOPInstanceUID


def test_only_the_series_asked_for_are_written(tmp_path: Path) -> None:
    write_study(TINY, tmp_path, only={"MIP"})
    assert [path.name for path in tmp_path.iterdir()] == ["MIP"]
    with pytest.raises(KeyError, match="no series 'PET'"):
        write_study(TINY, tmp_path, only={"PET"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": "huge"}, "no phantom of size 'huge'"),
        ({"orientation": "HFDL"}, "no patient position 'HFDL'"),
        (
            {"transfer_syntax_uid": "1.2.840.10008.1.2.2"},
            "cannot be written in 1.2.840.10008.1.2.2",
        ),
    ],
)
def test_a_spec_that_cannot_be_made_says_so(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PhantomSpec(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numbers start at 1"):
        make_study(PhantomSpec(patient_number=0))


def test_whole_body_slices_come_at_full_size() -> None:
    study = make_study(PhantomSpec(size="whole-body"))
    assert [study.named(name).count for name in ("CT IMAGES", "PET AC")] == [600, 600]
    ct, pet = (study.named(name).dataset(240) for name in ("CT IMAGES", "PET AC"))
    assert ct.pixel_array.shape == (512, 512)
    assert pet.pixel_array.shape == (200, 200)
    inside = distance_to_sphere(pet, study) < study.truth.sphere_radius_mm - 3
    suv = values(pet)[inside] * study.truth.suv_factor
    assert suv.size > 50
    assert np.allclose(suv, study.truth.sphere_suv, rtol=1e-3)


def test_the_background_round_the_sphere_is_lung() -> None:
    study = make_study(PhantomSpec(size="small"))
    truth = study.truth
    x, y, z = truth.sphere_centre_mm
    beside = np.array([[x, y, z + truth.sphere_radius_mm + 8], [x, y - 26, z]])
    assert truth.hu_at(beside) == pytest.approx(truth.background_hu)
    assert truth.suv_at(beside) == pytest.approx(truth.background_suv)
    lung = next(organ for organ in truth.organs if organ.name == "lung right")
    assert (lung.hu, lung.suv) == (truth.background_hu, truth.background_suv)


@pytest.mark.parametrize(
    ("semi", "q"),
    [((20, 20, 20), 2.0), ((60, 80, 122), 2.6), ((77, 50, 4), 2.0), ((9, 8, 99), 8.0)],
)
def test_an_organs_depth_is_never_less_than_the_true_one(
    semi: tuple[float, float, float], q: float
) -> None:
    """So that its values are exact deeper than half an edge, whatever its shape."""
    random = np.random.default_rng(7)
    organ = Organ("any", (3.0, -4.0, 5.0), semi, 10.0, 1.0, q)
    surface = on_surface(organ, random.normal(size=(300, 3)))
    centre = np.array(organ.centre_mm)
    inner = centre + (surface - centre) * random.uniform(0.1, 0.99, (300, 1))
    depth = depths(organ, inner)
    assert (depth > 0).all()
    assert (depths(organ, centre + (surface - centre) * 1.02) < 0).all()
    ways = random.normal(size=(600, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    reached = inner[:, None] + ways[None] * (1.05 * depth[:, None, None])
    left = depths(organ, reached.reshape(-1, 3)).reshape(300, 600) < 0
    assert left.any(axis=1).all(), "a ball of the depth and a little more leaves the organ"


def test_many_small_instances_are_distinct_and_valid(tmp_path: Path) -> None:
    written = write_many(tmp_path / "a", 120, folders=40, patient_number=3)
    other = write_many(tmp_path / "b", 120, folders=40, patient_number=4)
    assert len(written) == 120
    assert not written.keys() & other.keys()
    assert sorted((tmp_path / "a").rglob("*.dcm")) == sorted(written.values())
    assert len({path.parent for path in written.values()}) == 40
    read = {uid: read_header(path).facts for uid, path in written.items()}
    assert all(facts.sop_instance_uid == uid for uid, facts in read.items())
    assert len({facts.series_instance_uid for facts in read.values()}) == 40
    assert len({facts.study_instance_uid for facts in read.values()}) == 4
    assert {facts.transfer_syntax_uid for facts in read.values()} == {ExplicitVRLittleEndian}
    for uid, path in list(written.items())[:6]:
        ds = pydicom.dcmread(path)
        assert ds.file_meta.MediaStorageSOPInstanceUID == uid
        assert ds.InstanceNumber == int(path.stem) == ds.pixel_array[0, 0]
        assert ds.ImagePositionPatient[2] == -ds.InstanceNumber
        assert path.stat().st_size < 2048


def test_instances_that_do_not_fit_their_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 instances do not fit 5 folders"):
        write_many(tmp_path, 3, folders=5)


def seconds(time: str) -> float:
    return int(time[:2]) * 3600 + int(time[2:4]) * 60 + float(time[4:])


def stack(study: PhantomStudy, name: str) -> dict[tuple[float, float, float], float]:
    """Value by place in patient space, for pixels that are no padding."""
    found: dict[tuple[float, float, float], float] = {}
    for ds in datasets(study, name):
        kept = ds.pixel_array != ds.get("PixelPaddingValue", None)
        for place, value in zip(
            np.round(centres(ds)[kept], 2).tolist(), values(ds)[kept].tolist(), strict=True
        ):
            found[(place[0], place[1], place[2])] = value
    return found


def depths(organ: Organ, points: NDArray[np.float64]) -> NDArray[np.float32]:
    x, y, z = points.T.astype(np.float32)
    return organ.depth_mm(x, y, z)


def on_surface(organ: Organ, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of an organ's surface in these directions from its centre."""
    a, b, c = organ.semi_axes_mm
    q = organ.squareness
    scaled = directions * np.array([a, b, c])
    across = np.hypot(scaled[:, 0] / a, scaled[:, 1] / b)
    radius = (across**q + np.abs(scaled[:, 2] / c) ** q) ** (1 / q)
    return np.asarray(np.array(organ.centre_mm) + scaled / radius[:, None])
