"""Completeness: by count and positions, by quiet, and in words where neither fits."""

from pathlib import Path

import pytest
from facts_builder import (
    CORONAL,
    LEGACY_PET,
    ct,
    ct_stack,
    enhanced_pet,
    evidence,
    frame,
    one,
    pet,
    pet_stack,
    without,
)
from hypothesis import given
from hypothesis import strategies as st

from workers.completeness.roles import Role, judge_role
from workers.completeness.series import Completeness, SeriesState, judge_completeness
from workers.completeness.stacks import main_stack, stacks_of, volume_instances
from workers.header.facts import InstanceFacts
from workers.header.read import read_header


def judged(
    *instances: InstanceFacts, role: Role = Role.PET_AC, quiet: bool = False
) -> Completeness:
    return judge_completeness(instances, role, quiet=quiet)


# --- PET by its own count ----------------------------------------------------------------------


def test_a_pet_is_complete_with_its_last_slice_and_not_before() -> None:
    slices = pet_stack(5)
    for received in range(1, 5):
        assert judged(*slices[:received]).state is SeriesState.RECEIVING
    whole = judged(*slices)
    assert (whole.state, whole.expected, whole.received) == (SeriesState.COMPLETE, 5, 5)


@given(st.permutations(range(8)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    slices = pet_stack(8)
    assert judged(*(slices[index] for index in order)) == judged(*slices)


def test_the_same_instance_twice_counts_once() -> None:
    slices = pet_stack(5)
    assert judged(*slices[:4], slices[0]).state is SeriesState.RECEIVING
    assert judged(*slices, slices[0]).state is SeriesState.COMPLETE


def test_a_slice_missing_in_the_middle_is_named_by_its_place() -> None:
    missing = without(pet_stack(303, step=2.5, low=-800.0), 156)
    waiting, quiet = judged(*missing), judged(*missing, quiet=True)
    assert waiting.state is SeriesState.RECEIVING
    assert quiet.state is SeriesState.INCONSISTENT
    assert (quiet.expected, quiet.received) == (303, 302)
    assert quiet.reasons == ("PET 302 of 303, gap at z = -412.5 mm, ImageIndex 156 missing",)


def test_a_slice_missing_at_the_end_is_inconsistent_and_not_waited_for_ever() -> None:
    missing = without(pet_stack(10, image_index=1), 10)
    verdict = judged(*missing, quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert verdict.reasons == ("PET 9 of 10, no gap: slices are missing at an end",)


def test_more_slices_than_number_of_slices_allows_are_inconsistent() -> None:
    verdict = judged(*pet_stack(10, number_of_slices=8), quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert "more than NumberOfSlices allows" in verdict.reasons[0]


def test_ges_time_slices_are_beds_and_not_time_points() -> None:
    slices = pet_stack(205, number_of_time_slices=6, series_type=("STATIC", "IMAGE"))
    verdict = judged(*slices)
    assert (verdict.state, verdict.expected) == (SeriesState.COMPLETE, 205)


def test_a_dynamic_series_has_its_slices_at_each_time() -> None:
    fields = {"series_type": ("DYNAMIC", "IMAGE"), "number_of_time_slices": 3}
    slices = [
        pet(
            10 * time + index,
            number_of_slices=4,
            image_position_patient=(0.0, 0.0, 4.0 * index),
            acquisition_time=f"11{time:02d}00",
            image_index=4 * time + index + 1,
            **fields,
        )
        for time in range(3)
        for index in range(4)
    ]
    role = judge_role(slices).role
    assert role is Role.PET_DYNAMIC
    assert judged(*slices, role=role).state is SeriesState.COMPLETE
    assert judged(*slices[:-1], role=role).state is SeriesState.RECEIVING
    assert judged(*slices[:4], role=role, quiet=True).reasons[0].startswith("PET 4 of 12")


def test_a_dynamic_series_of_unknown_times_is_complete_when_quiet() -> None:
    slices = pet_stack(4, series_type=("DYNAMIC", "IMAGE"))
    assert judged(*slices, role=Role.PET_DYNAMIC).state is SeriesState.RECEIVING
    assert judged(*slices, role=Role.PET_DYNAMIC, quiet=True).state is SeriesState.COMPLETE


def test_a_gated_series_has_its_slices_in_each_gate() -> None:
    fields = {"series_type": ("GATED", "IMAGE"), "number_of_rr_intervals": 1,
              "number_of_time_slots": 2}  # fmt: skip
    first = pet_stack(4, **fields)
    second = tuple(
        pet(4 + n, number_of_slices=4, image_index=4 + n, trigger_time=500.0,
            image_position_patient=(0.0, 0.0, 4.0 * (n - 1)), **fields)
        for n in range(1, 5)
    )  # fmt: skip
    assert judged(*first, role=Role.PET_GATED).expected == 8
    assert judged(*first, *second, role=Role.PET_GATED).state is SeriesState.COMPLETE


def test_without_number_of_slices_a_pet_is_complete_when_gap_free_and_quiet() -> None:
    slices = pet_stack(6, number_of_slices=None)
    assert judged(*slices).state is SeriesState.RECEIVING
    assert judged(*slices, quiet=True).state is SeriesState.COMPLETE
    gapped = judged(*without(slices, 3), quiet=True)
    assert gapped.state is SeriesState.INCONSISTENT
    assert "gap at z = 8.0 mm" in gapped.reasons[0]


def test_an_image_index_that_never_varies_says_nothing() -> None:
    assert judged(*pet_stack(5, image_index=1)).state is SeriesState.COMPLETE


def test_an_image_index_that_varies_covers_each_number_once() -> None:
    slices = pet_stack(5)
    twice = (*slices[:4], pet(5, number_of_slices=5, image_index=4,
                              image_position_patient=(0.0, 0.0, 16.0)))  # fmt: skip
    assert "not unique" in judged(*twice, quiet=True).reasons[0]
    assert judged(*twice).state is SeriesState.RECEIVING


def test_two_different_images_at_one_place_are_never_complete() -> None:
    stray = pet(99, number_of_slices=6, image_position_patient=(0.0, 0.0, 8.0))
    verdict = judged(*pet_stack(5, number_of_slices=6, image_index=1), stray, quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert "2 different images at z = 8.0 mm" in verdict.reasons[0]


def test_a_mip_is_counted_and_has_no_positions() -> None:
    views = [pet(n, number_of_slices=3, image_index=n) for n in range(1, 4)]
    assert judged(*views, role=Role.PET_MIP).state is SeriesState.COMPLETE
    assert judged(*views[:2], role=Role.PET_MIP, quiet=True).state is SeriesState.INCONSISTENT


def test_slightly_uneven_steps_are_no_gap() -> None:
    uneven = pet_stack(5, step=3.27)
    moved = (*uneven[:4], pet(5, number_of_slices=5, image_index=5,
                              image_position_patient=(0.0, 0.0, 3 * 3.27 + 3.19)))  # fmt: skip
    assert judged(*moved).state is SeriesState.COMPLETE


# --- multi-frame -------------------------------------------------------------------------------


def test_an_enhanced_pet_is_complete_with_its_frames() -> None:
    frames = [frame(4.0 * n) for n in range(6)]
    verdict = judged(enhanced_pet(frames))
    assert (verdict.state, verdict.expected, verdict.received) == (SeriesState.COMPLETE, 6, 6)
    cut = judged(enhanced_pet(frames[:5], number_of_frames=6), quiet=True)
    assert cut.state is SeriesState.INCONSISTENT


def test_a_concatenation_is_complete_with_all_its_parts() -> None:
    parts = [
        enhanced_pet(
            [frame(4.0 * (3 * part + n)) for n in range(3)],
            sop_instance_uid=f"1.9.{part}",
            concatenation_uid="1.9",
            in_concatenation_number=part + 1,
            in_concatenation_total_number=3,
        )
        for part in range(3)
    ]
    missing = judged(*parts[:2])
    assert (missing.state, missing.expected, missing.received) == (SeriesState.RECEIVING, 3, 2)
    whole = judged(*parts)
    assert (whole.state, whole.expected, whole.received) == (SeriesState.COMPLETE, 9, 9)


def test_a_legacy_converted_pet_counts_its_frames() -> None:
    frames = tuple(frame(4.0 * n) for n in range(6))
    converted = one(LEGACY_PET, modality="PT", frames=frames, number_of_frames=6,
                    number_of_slices=6)  # fmt: skip
    assert judged(converted).state is SeriesState.COMPLETE


# --- CT and the rest ---------------------------------------------------------------------------


def test_a_ct_is_complete_when_quiet_and_gap_free() -> None:
    slices = ct_stack(20)
    waiting = judged(*slices, role=Role.CT)
    assert (waiting.state, waiting.expected) == (SeriesState.RECEIVING, None)
    assert judged(*slices, role=Role.CT, quiet=True).state is SeriesState.COMPLETE


def test_a_gap_in_a_quiet_ct_is_inconsistent_with_its_place() -> None:
    verdict = judged(*without(ct_stack(20), 7, 8, 15), role=Role.CT, quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert verdict.reasons == ("CT 17 slices, gap at z = 19.5, 42.0 mm",)


def test_an_embedded_localizer_is_no_gap() -> None:
    scout = ct(99, image_orientation_patient=CORONAL, image_position_patient=(0.0, -300.0, 500.0))
    verdict = judged(*ct_stack(20), scout, role=Role.CT, quiet=True)
    assert (verdict.state, verdict.received) == (SeriesState.COMPLETE, 20)


def test_mixed_orientations_are_never_whole() -> None:
    tilted = (1.0, 0.0, 0.0, 0.0, 0.98, -0.2)
    lower = pet_stack(10, image_index=1, number_of_slices=15)
    upper = pet_stack(
        5,
        low=40.0,
        series="1.2.3.4.1",
        image_index=1,
        number_of_slices=15,
        image_orientation_patient=tilted,
    )
    verdict = judged(*lower, *upper, quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert "5 images of another orientation" in verdict.reasons[0]
    slices = (*ct_stack(20), *ct_stack(6, series="1.2.3.5.1", image_orientation_patient=tilted))
    assert judged(*slices, role=Role.CT, quiet=True).state is SeriesState.INCONSISTENT


def test_a_pet_slice_without_a_place_is_never_whole() -> None:
    lost = pet(10, number_of_slices=10, image_index=10, image_position_patient=None)
    verdict = judged(*pet_stack(9, number_of_slices=10), lost, quiet=True)
    assert verdict.state is SeriesState.INCONSISTENT
    assert "without a place" in verdict.reasons[0]


@pytest.mark.parametrize("role", [Role.MR, Role.RTSTRUCT, Role.SR, Role.CT_SCOUT, Role.OTHER])
def test_what_has_no_total_is_complete_when_quiet(role: Role) -> None:
    instances = ct_stack(3)
    assert judged(*instances, role=role).state is SeriesState.RECEIVING
    assert judged(*instances, role=role, quiet=True).state is SeriesState.COMPLETE


@pytest.mark.parametrize("study", ["STS_002", "STS_003"])
def test_real_pet_is_complete_at_once_and_real_ct_when_quiet(test_data: Path, study: str) -> None:
    def series(folder: str) -> list[InstanceFacts]:
        found = (test_data / "studies" / study / folder / "dicom" / "image").glob("*.dcm")
        return [read_header(path).facts for path in sorted(found)]

    pets, cts = series("PET"), series("CT")
    assert judged(*pets).state is SeriesState.COMPLETE
    assert judged(*pets[:20], *pets[21:]).state is SeriesState.RECEIVING
    assert evidence(cts, quiet=False).completeness.state is SeriesState.RECEIVING
    assert evidence(cts).completeness.state is SeriesState.COMPLETE


# --- stacks ------------------------------------------------------------------------------------


def test_slices_are_sorted_along_the_normal_whatever_the_numbers_say() -> None:
    slices = ct_stack(5)
    stack = main_stack(tuple(reversed(slices)))
    assert stack is not None
    assert stack.positions == (0.0, 3.0, 6.0, 9.0, 12.0)
    assert volume_instances(tuple(reversed(slices))) == slices


def test_a_prone_stack_runs_the_same_way_as_a_supine_one() -> None:
    prone = ct_stack(5, image_orientation_patient=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    stack = main_stack(prone)
    assert stack is not None
    assert stack.normal == (0.0, 0.0, 1.0)
    assert stack.is_axial


def test_each_orientation_is_a_stack_of_its_own_the_largest_first() -> None:
    scout = ct(99, image_orientation_patient=CORONAL)
    stacks = stacks_of((scout, *ct_stack(5)))
    assert [len(stack.slices) for stack in stacks] == [5, 1]
    assert scout not in volume_instances((scout, *ct_stack(5)))


def test_rounded_direction_cosines_are_one_orientation() -> None:
    rounded = (1.0, 1e-6, 0.0, -1e-6, 1.0, 0.0)
    last = ct(5, image_position_patient=(0.0, 0.0, 12.0), image_orientation_patient=rounded)
    slices = (*ct_stack(4), last)
    assert len(stacks_of(slices)) == 1


def test_a_series_without_any_place_stays_as_it_is() -> None:
    pictures = (ct(2, image_position_patient=None), ct(1, image_orientation_patient=None))
    assert main_stack(pictures) is None
    assert volume_instances(pictures) == pictures
