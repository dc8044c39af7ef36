"""Which PET and CT pair, and when: ranking, waiting, holding, overriding."""

from collections.abc import Sequence
from typing import Any

import pytest
from facts_builder import (
    CORONAL,
    changed,
    ct,
    ct_stack,
    evidence,
    one,
    pet_stack,
    without,
)

from workers.header.facts import InstanceFacts, SeriesReference
from workers.pairing.ranking import is_sharp_kernel
from workers.pairing.selection import (
    Override,
    PairDecision,
    PairingPolicy,
    PairState,
    SeriesEvidence,
    decide_pair,
)

PET_UID, CT_UID = "1.2.3.4", "1.2.3.5"


def decide(
    *series: SeriesEvidence,
    override: Override | None = None,
    policy: PairingPolicy | None = None,
    study_quiet: bool = False,
    capped: bool = False,
    **options: Any,
) -> PairDecision:
    return decide_pair(
        series,
        override,
        policy or PairingPolicy(),
        study_quiet=study_quiet,
        capped=capped,
        **options,
    )


def words(decision: PairDecision) -> str:
    return "; ".join(decision.reasons)


def arriving(instances: Sequence[InstanceFacts]) -> SeriesEvidence:
    return evidence(instances, quiet=False)


def whole_pet(**fields: Any) -> tuple[InstanceFacts, ...]:
    return pet_stack(30, **fields)


def whole_ct(**fields: Any) -> tuple[InstanceFacts, ...]:
    return ct_stack(**{"count": 42, **fields})


def related(uid: str, purpose: str = "122403") -> tuple[SeriesReference, ...]:
    return (SeriesReference("RelatedSeriesSequence", uid, None, purpose),)


# --- when --------------------------------------------------------------------------------------


def test_a_whole_pet_and_a_ct_that_covers_it_pair_at_once() -> None:
    decision = decide(arriving(whole_pet()), arriving(whole_ct()))
    assert (decision.state, decision.pet, decision.ct) == (PairState.READY, PET_UID, CT_UID)
    assert decision.covered_fraction == 1.0
    assert decision.no_pair is False


def test_rt_captures_mr_and_reports_are_not_waited_for() -> None:
    others = [
        arriving([one(f"1.2.840.10008.5.1.4.1.1.{short}", series=f"1.7.{short}", modality="XX")])
        for short in ("4", "481.3", "7", "88.11")
    ]
    assert decide(arriving(whole_pet()), arriving(whole_ct()), *others).state is PairState.READY


def test_scouts_reformats_nac_and_mip_are_not_waited_for() -> None:
    others = (
        arriving([ct(1, series="1.7.1", image_orientation_patient=CORONAL)]),
        arriving(ct_stack(5, series="1.7.2", image_type=("DERIVED", "SECONDARY", "MPR"))),
        arriving(pet_stack(5, series="1.7.3", corrected_image=("DECY",), number_of_slices=30)),
        arriving(pet_stack(5, series="1.7.4", series_type=("WHOLE BODY", "REPROJECTION"))),
    )
    assert decide(arriving(whole_pet()), arriving(whole_ct()), *others).state is PairState.READY


@pytest.mark.parametrize("missing", [1, 15, 30])
def test_a_pet_that_lacks_a_slice_is_waited_for(missing: int) -> None:
    decision = decide(arriving(without(whole_pet(), missing)), arriving(whole_ct()))
    assert decision.state is PairState.WAITING
    assert "PET 29 of 30" in words(decision)


def test_a_ct_that_is_still_short_is_waited_for() -> None:
    decision = decide(arriving(whole_pet()), arriving(ct_stack(20)))
    assert decision.state is PairState.WAITING
    assert "CT 20 slices so far" in words(decision)


@pytest.mark.parametrize("missing", [7, 20])
def test_a_ct_with_a_hole_is_waited_for(missing: int) -> None:
    decision = decide(arriving(whole_pet()), arriving(without(whole_ct(), missing)))
    assert decision.state is PairState.WAITING


def test_every_second_slice_of_a_ct_is_no_ct_yet() -> None:
    odd = without(whole_ct(count=43), *range(2, 44, 2))
    assert decide(arriving(whole_pet()), arriving(odd)).state is PairState.WAITING
    assert decide(arriving(whole_pet()), evidence(odd)).state is PairState.READY


def test_instance_numbers_that_do_not_follow_the_position_say_nothing() -> None:
    slices = whole_ct()
    shuffled = tuple(
        ct(number, image_position_patient=slices[(number * 5) % 42].image_position_patient)
        for number in range(1, 43)
    )
    assert decide(arriving(whole_pet()), arriving(shuffled)).state is PairState.READY


def test_a_ct_may_end_half_a_pet_step_short() -> None:
    short = whole_ct(count=39, low=1.9, step=3.0)
    beyond = whole_ct(count=39, low=2.5, step=3.0)
    assert decide(arriving(whole_pet()), arriving(short)).state is PairState.READY
    assert decide(arriving(whole_pet()), arriving(beyond)).state is PairState.WAITING


def test_another_ct_that_is_still_arriving_is_waited_for() -> None:
    second = arriving(ct_stack(5, series="1.8"))
    decision = decide(arriving(whole_pet()), arriving(whole_ct()), second)
    assert decision.state is PairState.WAITING
    assert "waiting for another CT" in words(decision)
    quiet = evidence(ct_stack(5, series="1.8"))
    assert decide(arriving(whole_pet()), arriving(whole_ct()), quiet).state is PairState.READY


def test_another_pet_that_is_still_arriving_is_waited_for() -> None:
    second = arriving(without(pet_stack(30, series="1.8"), 3))
    decision = decide(arriving(whole_pet()), arriving(whole_ct()), second)
    assert decision.state is PairState.WAITING
    assert "waiting for another PET" in words(decision)


def test_a_ct_that_the_pet_references_is_paired_without_waiting_for_others() -> None:
    referring = arriving(whole_pet(references=related(CT_UID)))
    second_ct = arriving(ct_stack(5, series="1.8"))
    second_pet = arriving(without(pet_stack(30, series="1.9"), 3))
    decision = decide(referring, arriving(whole_ct()), second_ct, second_pet)
    assert (decision.state, decision.ct) == (PairState.READY, CT_UID)


def test_a_referenced_ct_that_still_arrives_is_waited_for_although_another_is_whole() -> None:
    referring = arriving(whole_pet(references=related("1.8")))
    decision = decide(referring, arriving(whole_ct()), arriving(ct_stack(5, series="1.8")))
    assert decision.state is PairState.WAITING


def test_what_is_broken_is_waited_for_while_another_pet_arrives() -> None:
    broken = evidence(without(whole_pet(), 3))
    other = arriving(without(pet_stack(30, series="1.8"), 30))
    assert decide(broken, arriving(whole_ct()), other).state is PairState.WAITING


# --- no pair -----------------------------------------------------------------------------------


def test_a_study_without_pet_or_without_ct_has_no_pair_and_is_not_held() -> None:
    only_pet, only_ct = evidence(whole_pet()), evidence(whole_ct())
    for alone in (only_pet, only_ct):
        assert decide(alone).state is PairState.NONE
        assert decide(alone).no_pair is False
        assert decide(alone, study_quiet=True).state is PairState.NONE
        assert decide(alone, study_quiet=True).no_pair is True
    assert "no CT volume" in words(decide(only_pet))
    assert "no PET" in words(decide(only_ct))


def test_a_scout_is_no_ct_and_this_is_said() -> None:
    scout = evidence([ct(1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
                         image_orientation_patient=CORONAL)])  # fmt: skip
    decision = decide(evidence(whole_pet()), scout, study_quiet=True)
    assert (decision.state, decision.no_pair) == (PairState.NONE, True)
    assert "series 2 is ct_scout: ImageType LOCALIZER" in words(decision)


def test_a_few_slices_for_bolus_planning_are_no_ct() -> None:
    few = evidence(ct_stack(1, low=40.0))
    decision = decide(evidence(whole_pet()), few, study_quiet=True)
    assert (decision.state, decision.no_pair) == (PairState.NONE, True)
    assert "only 1 slice" in words(decision)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"corrected_image": ("DECY",)}, "pet_nac"),
        ({"series_type": ("DYNAMIC", "IMAGE"), "number_of_time_slices": 3}, "3 time points"),
        ({"series_type": ("GATED", "IMAGE"), "number_of_time_slots": 8}, "8 gates"),
        ({"collimator_type": "PARA"}, "SPECT that says PT"),
    ],
)
def test_a_pet_that_is_no_volume_to_pair_is_named(fields: dict[str, Any], word: str) -> None:
    decision = decide(evidence(whole_pet(**fields)), evidence(whole_ct()), study_quiet=True)
    assert (decision.state, decision.no_pair) == (PairState.NONE, True)
    assert word in words(decision)


# --- held --------------------------------------------------------------------------------------


def test_a_quiet_pet_that_is_not_whole_is_held_with_words_and_a_way_out() -> None:
    decision = decide(evidence(without(whole_pet(), 9)), evidence(whole_ct()), study_quiet=True)
    assert decision.state is PairState.HELD
    assert "PET 29 of 30, gap at z = 32.0 mm" in words(decision)
    assert "send the missing slices, force the pair, or choose another PET" in words(decision)


def test_a_quiet_ct_with_a_gap_is_held() -> None:
    decision = decide(evidence(whole_pet()), evidence(without(whole_ct(), 9)), study_quiet=True)
    assert (decision.state, decision.ct) == (PairState.HELD, CT_UID)
    assert "gap at z = 24.0 mm" in words(decision)


def test_the_best_pet_being_broken_is_not_papered_over_with_a_lesser_one() -> None:
    broken = evidence(without(whole_pet(), 9))
    lesser = evidence(pet_stack(10, series="1.8"))
    decision = decide(broken, lesser, evidence(whole_ct()), study_quiet=True)
    assert decision.state is PairState.HELD
    chosen = decide(
        broken, lesser, evidence(whole_ct()), study_quiet=True, override=Override(pet="1.8")
    )
    assert (chosen.state, chosen.pet) == (PairState.READY, "1.8")


def test_a_broken_ct_is_passed_over_for_a_whole_one_and_this_is_said() -> None:
    broken = evidence(without(whole_ct(), 9))
    other = evidence(whole_ct(series="1.8", series_number=7))
    decision = decide(evidence(whole_pet()), broken, other, study_quiet=True)
    assert (decision.state, decision.ct) == (PairState.READY, "1.8")
    assert "series 2 would come first but is not whole" in words(decision)


def test_a_ct_that_covers_too_little_is_held() -> None:
    decision = decide(evidence(whole_pet()), evidence(ct_stack(30)), study_quiet=True)
    assert decision.state is PairState.HELD
    assert decision.covered_fraction == pytest.approx(23 / 30)
    assert "covers 76.6% of the PET (27 mm short at the upper end)" in words(decision)
    tolerant = PairingPolicy(minimum_coverage=0.7)
    assert decide(evidence(whole_pet()), evidence(ct_stack(30)), policy=tolerant).state is (
        PairState.READY
    )


@pytest.mark.parametrize("frame", ["1.2.3.8", "", None])
def test_another_or_no_frame_of_reference_is_held(frame: str | None) -> None:
    other = evidence(whole_ct(frame_of_reference_uid=frame))
    decision = decide(evidence(whole_pet()), other, study_quiet=True)
    assert decision.state is PairState.HELD
    assert "FrameOfReferenceUID" in words(decision)
    assert "force" in words(decision)


def test_a_study_under_two_patients_is_held() -> None:
    series = (evidence(whole_pet()), evidence(whole_ct()))
    decision = decide(*series, conflicting_patients=True)
    assert decision.state is PairState.HELD
    assert "two PatientIDs" in words(decision)
    forced = decide(*series, conflicting_patients=True, override=Override(forced=True))
    assert forced.state is PairState.READY


def test_a_partner_that_never_ends_is_held_after_the_hard_cap() -> None:
    pet = decide(arriving(without(whole_pet(), 9)), evidence(whole_ct()), capped=True)
    assert pet.state is PairState.HELD
    assert "PET 29 of 30, gap at z = 32.0 mm" in words(pet)
    assert "after the hard cap" in words(pet)
    ct_ = decide(evidence(whole_pet()), arriving(ct_stack(20)), capped=True)
    assert ct_.state is PairState.HELD
    assert "CT 20 slices so far" in words(ct_)


def test_after_the_hard_cap_a_whole_pair_does_not_wait_for_a_third_series() -> None:
    series = (evidence(whole_pet()), evidence(whole_ct()), arriving(ct_stack(5, series="1.8")))
    assert decide(*series).state is PairState.WAITING
    assert decide(*series, capped=True).state is PairState.READY


def test_a_refused_suv_holds_only_where_suv_is_required() -> None:
    series = (evidence(whole_pet(patient_weight=None)), evidence(whole_ct()))
    assert decide(*series).state is PairState.READY
    strict = PairingPolicy(require_suv=True)
    decision = decide(*series, policy=strict)
    assert decision.state is PairState.HELD
    assert "PatientWeight is absent" in words(decision)
    assert decide(*series, policy=strict, override=Override(weight_kg=70.0)).state is (
        PairState.READY
    )


# --- which PET ---------------------------------------------------------------------------------


def ranked(*pets: Sequence[InstanceFacts]) -> list[str]:
    reference = evidence(whole_ct(count=90, low=-60.0))
    decision = decide(*(evidence(one) for one in pets), reference, study_quiet=True)
    assert decision.pet_candidates[0].chosen
    assert [one.rank for one in decision.pet_candidates] == list(range(1, len(pets) + 1))
    return [one.series_uid for one in decision.pet_candidates]


def test_the_longest_pet_comes_first() -> None:
    assert ranked(pet_stack(20, series="1.8"), whole_pet()) == [PET_UID, "1.8"]


def test_within_five_percent_of_length_an_original_comes_first() -> None:
    derived = pet_stack(31, series="1.8", image_type=("DERIVED", "SECONDARY"))
    assert ranked(derived, whole_pet()) == [PET_UID, "1.8"]


def test_a_delayed_scan_does_not_win() -> None:
    delayed = pet_stack(31, series="1.8", acquisition_time="130000", series_time="130000")
    assert ranked(delayed, whole_pet()) == [PET_UID, "1.8"]


def test_of_two_reconstructions_the_thinner_slices_win() -> None:
    thin = pet_stack(60, step=2.0, series="1.8")
    assert ranked(whole_pet(), thin) == ["1.8", PET_UID]


# --- which CT ----------------------------------------------------------------------------------


def cts(*series: SeriesEvidence, pet: Sequence[InstanceFacts] = (), **options: Any) -> list[str]:
    decision = decide(evidence(pet or whole_pet()), *series, study_quiet=True, **options)
    return [one.series_uid for one in decision.ct_candidates]


def test_the_pets_own_reference_comes_before_everything() -> None:
    named = evidence(whole_ct(series="1.8", series_number=9, convolution_kernel=("LUNG",)))
    by_series = whole_pet(references=related("1.8"))
    by_image = whole_pet(references=(SeriesReference("ReferencedImageSequence", None, "1.8.7"),))
    for pet in (by_series, by_image):
        assert cts(evidence(whole_ct()), named, pet=pet) == ["1.8", CT_UID]
    other_purpose = whole_pet(references=related("1.8", purpose="121322"))
    assert cts(evidence(whole_ct()), named, pet=other_purpose) == [CT_UID, "1.8"]


@pytest.mark.parametrize(
    ("method", "description"),
    [
        ("measured,AC  CT WB", "AC  CT WB"),
        ("measured,AC  CT WB  5.0  HD_FoV", "AC CT WB 5.0 HD_FoV"),
        ("CT-derived mu-map,^CT 4 AC: AC_CT", "AC_CT"),
        ("measured,AC_CT", "ac_ct"),
    ],
)
def test_siemens_names_the_ct_in_its_attenuation_correction_method(
    method: str, description: str
) -> None:
    named = evidence(whole_ct(series="1.8", series_number=9, series_description=description))
    pet = whole_pet(attenuation_correction_method=method)
    assert cts(evidence(whole_ct(series_description="CT")), named, pet=pet)[0] == "1.8"


def test_the_same_frame_of_reference_comes_before_coverage() -> None:
    other = evidence(whole_ct(series="1.8", frame_of_reference_uid="1.1"))
    assert cts(other, evidence(ct_stack(38)))[0] == CT_UID


def test_more_coverage_comes_before_kernel_and_time() -> None:
    longer = evidence(whole_ct(series="1.8", convolution_kernel=("LUNG",), series_number=9))
    assert cts(evidence(ct_stack(37)), longer) == ["1.8", CT_UID]


def test_original_soft_and_close_in_time_break_ties_before_the_number() -> None:
    derived = evidence(whole_ct(series="1.6", series_number=1,
                                image_type=("DERIVED", "SECONDARY", "AXIAL")))  # fmt: skip
    sharp = evidence(whole_ct(series="1.7", series_number=1, convolution_kernel=("B70f",)))
    early = evidence(whole_ct(series="1.8", series_number=1, acquisition_time="090000"))
    first = evidence(whole_ct())
    last = evidence(whole_ct(series="1.9", series_number=12))
    assert cts(derived, sharp, early, last, first) == [CT_UID, "1.9", "1.8", "1.7", "1.6"]


def test_a_diagnostic_ct_can_be_preferred() -> None:
    low_dose = evidence(whole_ct(step=3.0))
    diagnostic = evidence(ct_stack(115, step=1.0, series="1.8", series_number=9))
    pet = whole_pet(references=related(CT_UID))
    assert cts(low_dose, diagnostic, pet=pet)[0] == CT_UID
    policy = PairingPolicy(ct_preference="diagnostic")
    assert cts(low_dose, diagnostic, pet=pet, policy=policy)[0] == "1.8"
    short = evidence(ct_stack(60, step=1.0, series="1.8", series_number=9))
    assert cts(low_dose, short, pet=pet, policy=policy)[0] == CT_UID


def test_a_ct_of_another_study_serves_only_within_a_day_and_one_frame() -> None:
    elsewhere = evidence(whole_ct(), same_study=False)
    assert decide(evidence(whole_pet()), elsewhere, study_quiet=True).state is PairState.READY
    later = evidence(
        whole_ct(acquisition_date="20250103", series_date="20250103"), same_study=False
    )
    strange = evidence(whole_ct(frame_of_reference_uid="1.1"), same_study=False)
    for one_ in (later, strange):
        assert decide(evidence(whole_pet()), one_, study_quiet=True).state is PairState.NONE


def test_a_pet_of_another_study_is_never_chosen() -> None:
    elsewhere = evidence(whole_pet(), same_study=False)
    assert decide(elsewhere, evidence(whole_ct()), study_quiet=True).pet is None


def test_a_tilted_ct_is_no_match_for_an_axial_pet() -> None:
    tilted = evidence(whole_ct(image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 0.8, -0.6)))
    decision = decide(evidence(whole_pet()), tilted, study_quiet=True)
    assert decision.state is PairState.HELD


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        ("STANDARD", False), ("LUNG", True), ("BONEPLUS", True), ("SOFT", False),
        ("B30f", False), ("B70f", True), ("Br40d", False), ("Bl57d", True), ("I30f", False),
        ("I70f", True), ("FC08", False), ("FC51", True), ("B", False), ("C", False), ("D", True),
        ("YA", True), ("", False), ("XYZ", False),
    ],
)  # fmt: skip
def test_kernels_for_lung_and_bone_are_known_by_name(kernel: str, sharp: bool) -> None:
    assert is_sharp_kernel(kernel) is sharp


# --- overrides ---------------------------------------------------------------------------------


def test_a_forced_pair_is_made_and_says_what_it_overrules() -> None:
    broken = evidence(without(whole_pet(), 9))
    strange = evidence(ct_stack(30, frame_of_reference_uid="1.1"))
    override = Override(pet=PET_UID, ct=CT_UID, forced=True)
    decision = decide(broken, strange, override=override, study_quiet=True)
    assert (decision.state, decision.pet, decision.ct) == (PairState.READY, PET_UID, CT_UID)
    for word in ("forced", "PET 29 of 30", "FrameOfReferenceUID", "covers 75.8%"):
        assert word in words(decision)


def test_a_forced_pair_does_not_wait() -> None:
    override = Override(forced=True)
    decision = decide(arriving(without(whole_pet(), 9)), arriving(ct_stack(20)), override=override)
    assert decision.state is PairState.READY


def test_a_forced_pair_stays_when_a_better_series_arrives() -> None:
    override = Override(pet="1.8", ct="1.9", forced=True)
    lesser = (evidence(pet_stack(10, series="1.8")), evidence(ct_stack(20, series="1.9")))
    before = decide(*lesser, override=override)
    after = decide(*lesser, evidence(whole_pet()), evidence(whole_ct()), override=override)
    assert (before.pet, before.ct) == (after.pet, after.ct) == ("1.8", "1.9")


def test_a_choice_is_checked_like_any_other() -> None:
    strange = evidence(whole_ct(frame_of_reference_uid="1.1", series="1.8"))
    series = (evidence(whole_pet()), evidence(whole_ct()), strange)
    assert decide(*series).ct == CT_UID
    assert decide(*series, override=Override(ct="1.8")).state is PairState.HELD


def test_a_nac_can_be_chosen_by_a_person() -> None:
    nac = evidence(whole_pet(corrected_image=("DECY",)))
    decision = decide(nac, evidence(whole_ct()), override=Override(pet=PET_UID))
    assert decision.state is PairState.READY
    assert "chosen by a recorded override" in words(decision)


def test_a_choice_that_is_not_there_is_held() -> None:
    series = (evidence(whole_pet()), evidence(whole_ct()))
    assert "is not in the study" in words(decide(*series, override=Override(pet="9.9")))
    assert "is not there" in words(decide(*series, override=Override(ct="9.9")))


def test_a_weight_alone_chooses_nothing() -> None:
    series = (evidence(whole_pet()), evidence(whole_ct()))
    decision = decide(*series, override=Override(weight_kg=80.0))
    assert decision == decide(*series)


# --- revisions ---------------------------------------------------------------------------------


def test_a_better_ct_that_arrives_later_changes_the_decision() -> None:
    lesser = evidence(ct_stack(37))
    assert decide(evidence(whole_pet()), lesser).ct == CT_UID
    better = evidence(whole_ct(series="1.8", series_number=9))
    assert decide(evidence(whole_pet()), lesser, better).ct == "1.8"


def test_the_order_of_the_series_does_not_matter() -> None:
    series = [
        evidence(whole_pet()),
        evidence(pet_stack(30, series="1.8")),
        evidence(whole_ct()),
        evidence(whole_ct(series="1.9")),
    ]
    forwards, backwards = decide(*series), decide(*reversed(series))
    assert (forwards.pet, forwards.ct) == (backwards.pet, backwards.ct)
    assert forwards.pet_candidates == backwards.pet_candidates


def test_a_moved_frame_of_reference_of_one_slice_is_seen() -> None:
    slices = whole_ct()
    mixed = (*slices[:-1], *changed(slices[-1:], frame_of_reference_uid="1.1"))
    assert decide(evidence(whole_pet()), evidence(mixed)).state is PairState.HELD
