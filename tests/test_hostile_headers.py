"""No header makes a judgement fail: every field may be missing, absurd or a lie."""

from dataclasses import replace
from typing import Any

import pytest
from facts_builder import AXIAL, CORONAL, CT, ENHANCED_PET, LEGACY_PET, PET, ct, evidence, pet
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.completeness.stacks import main_stack
from workers.header.facts import FrameFacts, InstanceFacts, PrivateFact
from workers.pairing.selection import Override, PairingPolicy, PairState, decide_pair
from workers.pairing.suv import SuvStatus, judge_suv

numbers = st.one_of(
    st.none(),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), 70.0, 6586.2, 3.7e8]),
    st.floats(),
)
counts = st.one_of(st.none(), st.integers(-3, 70_000))
dates = st.sampled_from([None, "", "00000000", "00010101", "99991231", "20250101", "soon"])
times = st.sampled_from([None, "", "000000", "235959.999999", "110000", "99", "11:00"])
stamps = st.sampled_from(
    [None, "", "20250101100000", "00010101000000", "99991231235959+1400", "20250101", "x",
     "20250101100000-9959"]
)  # fmt: skip
vectors = st.one_of(st.none(), st.tuples(*[st.floats()] * 3), st.just((0.0, 0.0, 4.0)))
orientations = st.one_of(
    st.none(), st.sampled_from([AXIAL, CORONAL, (0.0,) * 6]), st.tuples(*[st.floats()] * 6)
)
privates = st.sampled_from(
    [(), *((PrivateFact(creator, element, value),)
           for creator, element in (("GEMS_PETD_01", "0009,xx0d"), ("", "7053,xx00"),
                                    ("Philips PET Private Group", "7053,xx09"))
           for value in ("", "nan", "inf", "20250101110000", "0.5"))]
)  # fmt: skip
fields: dict[str, st.SearchStrategy[Any]] = {
    "modality": st.sampled_from(["PT", "CT", ""]),
    "manufacturer": st.sampled_from(["", "GE MEDICAL SYSTEMS", "Philips", "SIEMENS"]),
    "units": st.sampled_from([None, "BQML", "GML", "CNTS", "CM2ML", "\0"]),
    "suv_type": st.sampled_from([None, "BW", "LBM", "IBW", "?"]),
    "corrected_image": st.sampled_from([(), ("ATTN", "DECY"), ("ATTN",)]),
    "decay_correction": st.sampled_from([None, "START", "ADMIN", "NONE", "?"]),
    "decay_corrected": st.sampled_from([None, "YES", "NO"]),
    "attenuation_corrected": st.sampled_from([None, "YES", "NO"]),
    "decay_correction_date_time": stamps,
    "series_date": dates,
    "series_time": times,
    "acquisition_date": dates,
    "acquisition_time": times,
    "acquisition_date_time": stamps,
    "timezone_offset_from_utc": st.sampled_from([None, "+0100", "-9959", "x"]),
    "radiopharmaceutical_start_time": times,
    "radiopharmaceutical_start_date_time": stamps,
    "patient_weight": numbers,
    "patient_size": numbers,
    "patient_sex": st.sampled_from([None, "M", "O", "0000"]),
    "radionuclide_total_dose": numbers,
    "radionuclide_half_life": numbers,
    "actual_frame_duration": numbers,
    "frame_reference_time": numbers,
    "decay_factor": numbers,
    "series_type": st.sampled_from([(), ("DYNAMIC",), ("GATED", "IMAGE"), ("", "REPROJECTION")]),
    "number_of_slices": counts,
    "number_of_time_slices": counts,
    "image_index": counts,
    "series_number": counts,
    "image_position_patient": vectors,
    "image_orientation_patient": orientations,
    "real_world_value_units": st.sampled_from([None, "Bq/ml", "{SUVbw}g/ml", "{", ""]),
    "number_of_frames": counts,
    "concatenation_uid": st.sampled_from([None, "1.2"]),
    "in_concatenation_total_number": counts,
    "private": privates,
}
frames = st.builds(
    FrameFacts,
    image_position_patient=vectors,
    image_orientation_patient=orientations,
    rescale_slope=numbers,
    rescale_intercept=numbers,
    real_world_value_slope=numbers,
    real_world_value_intercept=numbers,
    decay_factor=numbers,
    frame_acquisition_duration=numbers,
    frame_acquisition_date_time=stamps,
    frame_reference_date_time=stamps,
)
PET_CLASSES = (PET, ENHANCED_PET, LEGACY_PET)


@st.composite
def some_series(
    draw: st.DrawFn, classes: tuple[str, ...] = (*PET_CLASSES, CT)
) -> tuple[InstanceFacts, ...]:
    """A sound header with a few absurd fields, or one of nothing but absurd fields."""
    sop_class = draw(st.sampled_from(classes))
    uid = draw(st.sampled_from(["1.7", "1.8", "1.9"]))
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    if draw(st.integers(0, 3)) == 0:
        names = sorted(fields)
    make = pet if sop_class != CT else ct
    made = []
    for number in range(draw(st.integers(1, 3))):
        own = {name: draw(fields[name]) for name in names}
        if sop_class in (ENHANCED_PET, LEGACY_PET):
            own["frames"] = tuple(draw(st.lists(frames, max_size=2)))
        made.append(replace(make(number, series=uid, **own), sop_class_uid=sop_class))
    return tuple(made)


@pytest.mark.parametrize("z", [1e6, -1.7e308, float("inf"), float("nan")])
def test_a_position_that_no_scanner_reaches_is_none(z: float) -> None:
    assert main_stack([pet(image_position_patient=(0.0, 0.0, z))]) is None


@settings(max_examples=600, deadline=None)
@given(some_series(PET_CLASSES), st.booleans(), st.booleans())
def test_an_suv_is_a_finite_number_or_refused(
    instances: tuple[InstanceFacts, ...], strict: bool, dose_is_bq: bool
) -> None:
    verdict = judge_suv(instances, strict=strict, dose_is_bq=dose_is_bq)
    factors = verdict.factor if isinstance(verdict.factor, tuple) else (verdict.factor,)
    if verdict.status is SuvStatus.REFUSED:
        assert verdict.factor is None
        assert verdict.reasons
    else:
        assert all(factor is not None and 0 < abs(factor) < float("inf") for factor in factors)
        assert not (strict and verdict.status is SuvStatus.ADAPTED)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(some_series(), max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, Override(), Override(forced=True), Override(pet="1.7", ct="1.8")]),
)
def test_a_study_of_any_headers_gets_a_decision_with_reasons(
    study: list[tuple[InstanceFacts, ...]], quiet: bool, capped: bool, override: Override | None
) -> None:
    series = {one[0].series_instance_uid: evidence(one, quiet=quiet) for one in study}
    for one_ in series.values():
        assert one_.role.reasons
        assert one_.completeness.reasons
    decision = decide_pair(
        list(series.values()),
        override,
        PairingPolicy(require_suv=True),
        study_quiet=quiet,
        capped=capped,
    )
    assert decision.reasons
    if decision.state is PairState.READY:
        assert decision.pet in series
        assert decision.ct in series
