"""Which slices are one volume, and how its axes are brought into canonical order."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from volumes import FEET_FIRST, PRONE, SUPINE, Scan, facts, series_of, turned

from workers.errors import DataError, PairingRefused
from workers.header.facts import FrameFacts, InstanceFacts
from workers.header.read import read_header
from workers.pairing.geometry import plan_volume
from workers.pairing.grid import Grid, canonical, isotropic

SCAN = Scan()
UNTURNED = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def refusal(slices: list[InstanceFacts]) -> str:
    with pytest.raises(PairingRefused) as caught:
        plan_volume(slices)
    return str(caught.value)


def test_an_unordered_stack_is_sorted_along_its_normal() -> None:
    slices = facts(SCAN)
    random.Random(1).shuffle(slices)
    volume = plan_volume(slices)
    order = [slices[placed.instance].image_position_patient for placed in volume.slices]
    assert [place[2] for place in order if place] == [100.0 + 4 * k for k in range(8)]
    assert volume.size == (12, 10, 8)
    assert volume.spacing == (3.0, 2.0, 4.0)  # x is along a row: PixelSpacing's second value
    assert volume.origin == SCAN.origin
    assert volume.uniform
    assert volume.deviation_mm == 0.0
    assert volume.warnings == ()


def test_a_missing_slice_is_a_gap_named_by_its_place() -> None:
    slices = facts(SCAN)
    del slices[3]
    assert refusal(slices) == (
        "gap at z = 112.0 mm: 8.00 mm between slices that are 4.00 mm apart elsewhere "
        "(1 slice missing)"
    )


def test_a_slice_missing_at_the_end_is_not_seen_by_geometry() -> None:
    assert plan_volume(facts(SCAN)[:-1]).size == (12, 10, 7)


def test_an_instance_given_twice_counts_once() -> None:
    slices = facts(SCAN)
    assert plan_volume([*slices, slices[2]]).size == (12, 10, 8)


def test_two_different_slices_at_one_position_are_refused() -> None:
    slices = facts(SCAN)
    twin = dataclasses.replace(slices[2], sop_instance_uid="1.9")
    assert refusal([*slices, twin]) == "two different slices at one position, z = 108.0 mm"


def test_several_time_points_are_not_one_volume() -> None:
    slices = facts(SCAN)
    later = [
        dataclasses.replace(one, sop_instance_uid=f"{one.sop_instance_uid}.{t}")
        for t in (2, 3)
        for one in slices
    ]
    assert refusal(slices + later).startswith("3 slices at each of 8 positions: several volumes")


def test_slices_that_all_lie_at_one_place_are_no_volume() -> None:
    assert refusal(facts(SCAN.with_(step=0.0))) == "not a volume: all 8 slices lie at z = 100.0 mm"


def test_turned_slices_in_one_series_are_refused() -> None:
    slices = facts(SCAN)
    slices[:2] = [
        dataclasses.replace(one, image_orientation_patient=turned(30)) for one in slices[:2]
    ]
    assert "mixed orientations: 2 of 8 slices are turned" in refusal(slices)


def test_rounded_direction_cosines_are_one_orientation() -> None:
    slices = facts(SCAN.with_(orientation=turned(20)))
    rounded = tuple(round(value, 5) for value in turned(20))
    slices[4] = dataclasses.replace(slices[4], image_orientation_patient=rounded)
    assert plan_volume(slices).size == (12, 10, 8)


def test_mixed_matrix_sizes_and_spacings_are_refused() -> None:
    slices = facts(SCAN)
    larger = [*slices[1:], dataclasses.replace(slices[0], rows=20)]
    assert refusal(larger) == "mixed matrix sizes in one series: 12x10, 12x20"
    coarser = [*slices[1:], dataclasses.replace(slices[0], pixel_spacing=(2.5, 3.0))]
    assert refusal(coarser) == "mixed pixel spacings in one series: 2.5x3 mm, 2x3 mm"


def test_a_gantry_tilt_is_refused_with_its_angle() -> None:
    slices = [
        dataclasses.replace(one, image_position_patient=(-20.0, -15.0, 100.0 + 4 * k))
        for k, one in enumerate(facts(SCAN.with_(orientation=turned(14, axis=0))))
    ]
    assert refusal(slices).startswith("tilted: the stack leans 14.0 degrees against its slices")


def test_a_slice_that_jumps_aside_is_refused() -> None:
    slices = facts(SCAN)
    slices[3] = dataclasses.replace(slices[3], image_position_patient=(-12.0, -15.0, 112.0))
    assert refusal(slices) == "slices lie up to 8.0 mm sideways of one another"


def test_a_little_sideways_is_noted() -> None:
    slices = facts(SCAN)
    slices[3] = dataclasses.replace(slices[3], image_position_patient=(-19.4, -15.0, 112.0))
    assert plan_volume(slices).warnings == (
        "slices lie up to 0.60 mm sideways of one another; taken as aligned",
    )


def test_steps_within_a_tenth_stay_untouched_samples() -> None:
    # a complete GE series: 3.27 mm steps, one of 3.19
    positions = [3.27 * k - (0.08 if k >= 4 else 0) for k in range(8)]
    volume = plan_volume(facts(SCAN.with_(positions=tuple(positions))))
    assert volume.uniform
    assert 0 < volume.deviation_mm <= 0.05
    assert volume.spacing[2] == pytest.approx(3.257, abs=0.005)


def test_uneven_steps_are_told_and_lie_on_an_even_grid_from_end_to_end() -> None:
    positions = (0.0, 4.0, 8.0, 13.0, 18.0, 22.0, 26.0, 30.0)
    volume = plan_volume(facts(SCAN.with_(positions=positions)))
    assert not volume.uniform
    assert "uneven steps" in volume.warnings[0]
    layout = canonical(volume)
    grid = layout.grid
    assert grid.origin[2] == pytest.approx(100.0)
    last = grid.affine @ np.array([0, 0, grid.size[2] - 1, 1.0])
    assert last[2] == pytest.approx(130.0)
    heights = [100 + grid.spacing[2] * place for place in layout.offsets]
    assert heights == pytest.approx([100 + place for place in positions])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_position_patient": None}, "without a usable ImagePositionPatient"),
        ({"image_orientation_patient": None}, "without a usable ImageOrientationPatient"),
        ({"pixel_spacing": None}, "without a usable PixelSpacing"),
        ({"pixel_spacing": (0.0, 3.0)}, "PixelSpacing 0\\3 is not a size"),
        ({"image_position_patient": (0.0, math.nan, 1.0)}, "usable ImagePositionPatient"),
        ({"image_orientation_patient": (1.0, 0, 0, 1.0, 0, 0)}, "not a pair of unit vectors"),
        ({"rows": None}, "without Rows and Columns"),
        ({"number_of_frames": 40}, "a multi-frame image of 40 frames without a place for each"),
    ],
)
def test_a_slice_without_its_place_is_refused_in_words(
    change: dict[str, object], words: str
) -> None:
    slices = facts(SCAN)
    slices[0] = dataclasses.replace(slices[0], **change)  # type: ignore[arg-type]
    assert words in refusal(slices)


def test_one_slice_is_no_volume() -> None:
    assert refusal(facts(SCAN)[:1]) == "not a volume: 1 slice with a place in space"


def test_the_frames_of_a_multi_frame_image_are_slices() -> None:
    one = facts(SCAN)[0]
    frames = tuple(
        FrameFacts(image_position_patient=(-20.0, -15.0, z), pixel_spacing=(2.0, 3.0))
        for z in (108.0, 100.0, 104.0)
    )
    volume = plan_volume([dataclasses.replace(one, frames=frames, number_of_frames=3)])
    assert [placed.frame for placed in volume.slices] == [1, 2, 0]
    assert volume.spacing[2] == 4.0


@pytest.mark.parametrize("orientation", [SUPINE, PRONE, FEET_FIRST, turned(7), turned(90)])
@pytest.mark.parametrize("reverse", [False, True])
def test_every_voxel_keeps_its_place_when_axes_are_turned(
    orientation: tuple[float, ...], reverse: bool
) -> None:
    scan = SCAN.with_(orientation=orientation, step=-4.0 if reverse else 4.0)
    volume = plan_volume(facts(scan))
    layout = canonical(volume)
    # each stored voxel carries its own place; turned, they must lie where the grid says
    stored = np.stack([np.stack(scan.points(s.instance), axis=-1) for s in volume.slices])
    slices = stored[list(layout.slice_order())]
    for axis in range(3):
        turned_volume = layout.turn_volume(slices[..., axis])
        assert turned_volume.shape == layout.grid.shape
        c, h, w = np.indices(layout.grid.shape)
        places = np.stack([w, h, c, np.ones_like(c)], axis=-1) @ layout.grid.affine.T
        np.testing.assert_allclose(turned_volume, places[..., axis], atol=1e-9)
    direction = np.array(layout.grid.direction)
    assert (np.diag(direction) > 0.9).all()


def test_a_sagittal_stack_comes_out_in_canonical_order_too() -> None:
    scan = SCAN.with_(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    layout = canonical(plan_volume(facts(scan)))
    assert not layout.slices_are_c
    assert layout.grid.size == (8, 12, 10)
    assert np.allclose(layout.grid.direction, np.eye(3))


def test_cubes_cover_the_extent_and_share_its_middle() -> None:
    grid = canonical(plan_volume(facts(SCAN))).grid
    cubes = isotropic(grid, 2.5)
    assert cubes.spacing == (2.5, 2.5, 2.5)
    assert cubes.size == (15, 8, 13)

    def middle(one: Grid) -> np.ndarray:
        return one.affine @ np.array([*((n - 1) / 2 for n in one.size), 1.0])

    np.testing.assert_allclose(middle(cubes), middle(grid), atol=1e-9)


def test_an_absurd_number_of_cubes_is_refused() -> None:
    grid = Grid((512, 512, 1000), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), UNTURNED)
    with pytest.raises(PairingRefused, match=r"set pairing\.grid coarser"):
        isotropic(grid, 0.1)


@given(
    st.floats(-180, 180),
    st.sampled_from([0, 1, 2]),
    st.floats(0.5, 6),
    st.tuples(st.floats(-500, 500), st.floats(-500, 500), st.floats(-1500, 1500)),
    st.randoms(use_true_random=False),
)
def test_any_even_stack_is_uniform_whatever_its_order_and_turn(
    degrees: float,
    axis: int,
    step: float,
    origin: tuple[float, float, float],
    shuffled: random.Random,
) -> None:
    scan = SCAN.with_(orientation=turned(degrees, axis), step=step, origin=origin)
    slices = facts(scan)
    shuffled.shuffle(slices)
    volume = plan_volume(slices)
    assert volume.uniform
    assert volume.spacing[2] == pytest.approx(step, abs=1e-6)
    direction = np.array(canonical(volume).grid.direction)
    assert np.linalg.det(direction) == pytest.approx(1 if np.linalg.det(direction) > 0 else -1)


ODD = {
    "failing/gantrytilting/001": "tilted: the stack leans 14.0 degrees",
    "failing/notavolume/001": "not a volume: all 4 slices lie at z = 61.5 mm",
    "failing/sliceincrement/001": "gap at z = 33.1 mm",
    "failing/sliceincrement/002": "tilted: the stack leans 15.5 degrees",
    "failing/sliceorientation/001": "mixed orientations: 2 of 4 slices",
}


@pytest.mark.parametrize("folder", ODD)
def test_real_odd_series_are_refused_for_what_is_odd_with_them(test_data, folder: str) -> None:
    series = series_of(test_data / "odd" / "dicom2nifti" / folder)
    assert refusal(list(series.facts)).startswith(ODD[folder])


def test_the_real_two_slice_scrap_says_that_a_gap_could_not_be_seen(test_data) -> None:
    series = series_of(test_data / "odd" / "dicom2nifti" / "failing" / "slicecount" / "001")
    assert plan_volume(series.facts).warnings == ("only 2 slices: a gap could not be seen",)


@pytest.mark.parametrize(("study", "size"), [("STS_002", (30, 27, 48)), ("STS_003", (29, 30, 51))])
def test_the_real_pets_are_even_volumes(test_data, study: str, size: tuple[int, ...]) -> None:
    found = []
    for path in (test_data / "studies" / study / "PET" / "dicom" / "image").iterdir():
        try:
            found.append(read_header(path).facts)
        except DataError:
            continue
    volume = plan_volume(found)
    assert volume.size == size
    assert volume.uniform
    assert volume.spacing[2] == 3.27
