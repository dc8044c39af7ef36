"""The SUV decision table: published cases, real slices, reference objects, and physics."""

import csv
import math
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from facts_builder import (
    AXIAL,
    CORRECTED,
    LEGACY_PET,
    changed,
    enhanced_pet,
    frame,
    one,
    pet,
    pet_stack,
    philips,
)
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from suv_table import CASES, SuvCase

from workers.header.facts import InstanceFacts, PrivateFact
from workers.header.read import read_header
from workers.pairing.suv import SuvVerdict, judge_suv
from workers.pairing.suv_body import body_grams, nuclide_of
from workers.pairing.suv_time import average_count_seconds
from workers.pairing.times import parse_date, parse_date_time, parse_time

F18 = 6586.2
LN2 = math.log(2)
ORDINARY = 70_000.0 / (368_080_000.0 * 2.0 ** (-3600.0 / F18))
"""The factor of `pet()`."""

# every row of expected.csv that is no consensus of four implementations, in one line
SPLIT_ROWS = {
    "ge/acrin_flt_breast_ACRIN-FLT-Breast_034_021": "not attenuation corrected, in PROPCPS",
    "ge/acrin_nsclc_fdg_pet_ACRIN-NSCLC-FDG-PET-196_023": "PatientWeight 0: never invented",
    "ge/nsclc_radiogenomics_R01-106_001": "AcquisitionTime is the series': back-computing is wrong",
    "ge/tcga_lusc_TCGA-60-2726_027": "GML: already SUVbw, factor 1",
    "ge/tcga_ucec_TCGA-D1-A16D_006": "injection dated a day late: its time of day decides",
    "philips/acrin_flt_breast_ACRIN-FLT-Breast_007_016": "not attenuation corrected",
    "philips/acrin_flt_breast_ACRIN-FLT-Breast_039_017": "not attenuation corrected",
    "philips/acrin_nsclc_fdg_pet_ACRIN-NSCLC-FDG-PET-020_000": "GML: already SUVbw, factor 1",
    "philips/acrin_nsclc_fdg_pet_ACRIN-NSCLC-FDG-PET-020_002": "not attenuation corrected",
    "philips/acrin_nsclc_fdg_pet_ACRIN-NSCLC-FDG-PET-065_009": "CNTS, its factor is 0.000000",
    "philips/anti_pd_1_lung_PD-1-Lung-00033_023": "not attenuation corrected",
    "philips/naf_prostate_NaF-PROSTATE-01-0009_012": "not attenuation corrected",
    "philips/nsclc_radiogenomics_AMC-012_029": "not attenuation corrected",
    "siemens/acrin_flt_breast_ACRIN-FLT-Breast_062_005": "not attenuation corrected, in PROPCPS",
    "siemens/cmb_crc_CMB-CRC-MSB-08170_023": "a secondary capture",
    "siemens/cmb_gec_CMB-GEC-MSB-06857_018": "a MIP; its header is whole, two agree with us",
    "siemens/cmb_mml_CMB-MML-MSB-06305_027": "a secondary capture",
    "siemens/cptac_ucec_C3N-01344_010": "PatientWeight absent",
    "siemens/tcga_luad_TCGA-17-Z051_019": "a MIP with a SeriesTime after its acquisition: the first"
    " acquisition is the reference, others take SeriesTime",
    "siemens/tcga_lusc_TCGA-92-7340_013": "a secondary capture",
    "siemens/tcga_thca_TCGA-DE-A4MA_014": "coronal reformats with a SeriesTime after their"
    " acquisition: as above",
}
OURS_DIFFERS = ("siemens/tcga_luad_TCGA-17-Z051_019", "siemens/tcga_thca_TCGA-DE-A4MA_014")
INJECTED_AFTER = "philips/acrin_flt_breast_ACRIN-FLT-Breast_040_018"


def factor_of(*slices: InstanceFacts, strict: bool = False, **options: float) -> float:
    verdict = judge_suv(slices, strict=strict, **options)
    assert isinstance(verdict.factor, float), verdict.reasons
    return verdict.factor


def refusal_of(*slices: InstanceFacts, strict: bool = False) -> str:
    verdict = judge_suv(slices, strict=strict)
    assert verdict.status == "refused"
    assert verdict.factor is None
    return "; ".join(verdict.reasons)


# --- published cases ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_published_case_gives_its_factor_or_its_refusal(case: SuvCase) -> None:
    verdict = judge_suv(case.slices, dose_is_bq=case.dose_is_bq)
    if case.factor is None:
        assert verdict.status == "refused"
        assert verdict.factor is None
        assert case.refusal in "; ".join(verdict.reasons)
    else:
        assert verdict.factor == pytest.approx(case.factor, rel=case.relative)
        assert verdict.label == case.label
    if case.reference_time is not None:
        assert verdict.reference_time == case.reference_time


def test_the_real_fet_header_gives_the_published_factor_per_kilogram() -> None:
    case = next(one for one in CASES if one.name == "error-real-fet-without-weight")
    verdict = judge_suv(case.slices, weight_kg=1.0)
    assert verdict.factor == pytest.approx(4.85999192344093e-06, rel=1e-6)
    assert verdict.label == "suvbw_adapted"


def expected_rows(test_data: Path) -> list[dict[str, str]]:
    with (test_data / "pet-slices" / "expected.csv").open() as file:
        return list(csv.DictReader(file))


def test_real_slices_give_what_four_public_implementations_agree_on(test_data: Path) -> None:
    compared = 0
    for row in expected_rows(test_data):
        if not row["verdict"].startswith("consensus"):
            continue
        name = row["file"].removesuffix(".dcm")
        verdict = judge_suv([read_header(test_data / "pet-slices" / row["file"]).facts])
        relative = 2e-3 if name == INJECTED_AFTER else 2e-4
        assert verdict.factor == pytest.approx(float(row["median"]), rel=relative), name
        assert (verdict.status == "adapted") == (name == INJECTED_AFTER), name
        compared += 1
    assert compared == 30


def test_every_other_real_slice_is_explained(test_data: Path) -> None:
    others = [r for r in expected_rows(test_data) if not r["verdict"].startswith("consensus")]
    assert {row["file"].removesuffix(".dcm") for row in others} == set(SPLIT_ROWS)
    for row in others:
        name = row["file"].removesuffix(".dcm")
        verdict = judge_suv([read_header(test_data / "pet-slices" / row["file"]).facts])
        if not row["median"] or "not attenuation corrected" in SPLIT_ROWS[name]:
            assert verdict.status == "refused", name
        elif name in OURS_DIFFERS:
            assert "earliest AcquisitionTime" in verdict.method
        else:
            assert verdict.factor == pytest.approx(float(row["median"]), rel=2e-4), name


def test_the_ibsi_reference_objects_come_out_at_0_20_and_4_00(test_data: Path) -> None:
    series: dict[str, list[Path]] = {}
    for path in sorted((test_data / "dro").glob("*.dcm")):
        series.setdefault(path.name[:11], []).append(path)
    assert len(series) == 10
    for name, paths in series.items():
        factor = factor_of(*(read_header(path).facts for path in paths))
        middle = dcmread(next(path for path in paths if "010" in path.name))
        suv = middle.pixel_array * float(middle.RescaleSlope) * factor
        low, high = suv[suv > 0].min(), suv.max()
        # 2_3 is stored in steps of 0.01: its hot sphere is 1.05 cm2/ml, which is 3.98
        tolerance = 0.03 if name.endswith("2_3") else 0.005
        assert high == pytest.approx(4.0, abs=tolerance), name
        assert low == pytest.approx(0.2, abs=tolerance), name


# --- physics -----------------------------------------------------------------------------------

doses = st.floats(1e6, 1e10)
weights = st.floats(1.0, 300.0)
half_lives = st.floats(600.0, 41_000.0)


@given(dose=doses, times=st.floats(1.01, 10.0))
def test_a_larger_dose_gives_a_factor_that_much_smaller(dose: float, times: float) -> None:
    small, large = pet(radionuclide_total_dose=dose), pet(radionuclide_total_dose=dose * times)
    assert factor_of(small) == pytest.approx(factor_of(large) * times, rel=1e-9)


@given(weight=weights, times=st.floats(1.01, 3.0))
def test_a_heavier_patient_gives_a_factor_that_much_larger(weight: float, times: float) -> None:
    light, heavy = pet(patient_weight=weight), pet(patient_weight=weight * times)
    assert factor_of(heavy) == pytest.approx(factor_of(light) * times, rel=1e-9)


@given(half_life=half_lives, seconds=st.integers(0, 1100))
def test_the_dose_decays_with_its_half_life(half_life: float, seconds: int) -> None:
    injected = datetime(2025, 1, 1, 11) - timedelta(seconds=seconds)  # noqa: DTZ001
    slice_ = pet(
        radionuclide_half_life=half_life,
        radiopharmaceutical_start_date_time=injected.strftime("%Y%m%d%H%M%S"),
    )
    expected = 70_000.0 / 368_080_000.0 * 2 ** (seconds / half_life)
    assert factor_of(slice_) == pytest.approx(expected, rel=1e-9)


@given(shift=st.integers(-30_000, 20_000), minutes=st.integers(0, 1439))
def test_dates_and_midnight_do_not_matter(shift: int, minutes: int) -> None:
    scan = datetime(2025, 1, 1) + timedelta(days=shift, minutes=minutes)  # noqa: DTZ001
    injection = scan - timedelta(hours=1)
    slice_ = pet(
        series_date=scan.strftime("%Y%m%d"),
        series_time=scan.strftime("%H%M%S"),
        acquisition_date=scan.strftime("%Y%m%d"),
        acquisition_time=scan.strftime("%H%M%S"),
        radiopharmaceutical_start_time=injection.strftime("%H%M%S"),
        radiopharmaceutical_start_date_time=injection.strftime("%Y%m%d%H%M%S"),
    )
    assert factor_of(slice_) == pytest.approx(ORDINARY, rel=1e-12)
    by_time = changed([slice_], radiopharmaceutical_start_date_time=None)
    assert factor_of(*by_time) == pytest.approx(ORDINARY, rel=1e-12)


@given(header=st.integers(-12, 14), stamp=st.integers(-12, 14))
def test_offsets_from_utc_are_honoured(header: int, stamp: int) -> None:
    injected = datetime(2025, 1, 1, 10) + timedelta(hours=stamp - header)  # noqa: DTZ001
    slice_ = pet(
        timezone_offset_from_utc=f"{header:+03d}00",
        radiopharmaceutical_start_date_time=f"{injected:%Y%m%d%H%M%S}{stamp:+03d}00",
        radiopharmaceutical_start_time=None,
    )
    assert factor_of(slice_) == pytest.approx(ORDINARY, rel=1e-12)


def test_an_offset_without_a_zone_of_the_header_is_the_scanners_own() -> None:
    stamp = "20250101100000.000000+0500"
    assert factor_of(pet(radiopharmaceutical_start_date_time=stamp)) == ORDINARY


@given(half_life=half_lives, duration=st.floats(1.0, 3600.0))
def test_the_mean_count_rate_is_met_before_the_middle_of_a_frame(
    half_life: float, duration: float
) -> None:
    tave = average_count_seconds(half_life, duration)
    decay = LN2 / half_life
    mean_rate = -math.expm1(-decay * duration) / (decay * duration)
    assert math.exp(-decay * tave) == pytest.approx(mean_rate, rel=1e-9)
    assert 0 < tave <= duration / 2


# --- the reference time ------------------------------------------------------------------------


def beds(*starts: str, factors: tuple[float, ...], **fields: object) -> tuple[InstanceFacts, ...]:
    return tuple(
        pet(number, acquisition_time=start, decay_factor=factor, **fields)
        for number, (start, factor) in enumerate(zip(starts, factors, strict=True), start=1)
    )


def decay_factor(seconds_to_start: float, duration: float = 300.0) -> float:
    return float(2 ** ((seconds_to_start + average_count_seconds(F18, duration)) / F18))


def test_the_series_time_is_the_reference_of_later_beds() -> None:
    slices = beds("110000", "110500", factors=(decay_factor(0), decay_factor(300)))
    verdict = judge_suv(slices)
    assert verdict.factor == ORDINARY
    assert verdict.reference_time == "2025-01-01T11:00:00"
    assert [one.source for one in verdict.candidates] == [
        "SeriesTime",
        "back-computed from DecayFactor",
        "earliest AcquisitionTime",
    ]
    assert [one.chosen for one in verdict.candidates] == [True, False, False]


def test_a_late_series_time_yields_to_the_beds_own_decay() -> None:
    slices = beds(
        "110500", "111000", factors=(decay_factor(300), decay_factor(600)), series_time="150000"
    )
    verdict = judge_suv(slices)
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-6)
    assert "back-computed from DecayFactor" in verdict.method
    assert "processed series" in verdict.candidates[0].note


def test_a_dummy_series_time_is_contradicted_by_two_beds() -> None:
    slices = beds(
        "110500", "111000", factors=(decay_factor(300), decay_factor(600)), series_time="103000"
    )
    verdict = judge_suv(slices)
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-6)
    assert "2 beds agree" in verdict.candidates[0].note


def test_one_bed_alone_does_not_contradict_the_series_time() -> None:
    slices = beds("110000", factors=(decay_factor(486),))
    assert judge_suv(slices).factor == ORDINARY


def test_series_level_acquisition_times_make_no_back_computed_time() -> None:
    slices = beds(
        "110000", "110000", factors=(decay_factor(0), decay_factor(300)), series_time="150000"
    )
    verdict = judge_suv(slices)
    assert verdict.factor == ORDINARY
    assert "earliest AcquisitionTime" in verdict.method


def test_a_philips_decay_factor_of_one_says_nothing() -> None:
    slices = tuple(
        pet(number, series_time="150000", acquisition_time=start, manufacturer="Philips",
            frame_reference_time=None)
        for number, start in enumerate(("110000", "110500"))
    )  # fmt: skip
    assert "earliest AcquisitionTime" in judge_suv(slices).method


def test_a_ge_private_time_counts_by_its_time_of_day_alone() -> None:
    private = (PrivateFact("GEMS_PETD_01", "0009,xx0d", "19990505235800.00"),)
    verdict = judge_suv(
        [
            pet(
                manufacturer="GE MEDICAL SYSTEMS", private=private,
                series_date="20250102", series_time="003000",
                acquisition_date="20250102", acquisition_time="000300",
                radiopharmaceutical_start_date_time="20250101225800",
            )
        ]
    )  # fmt: skip
    assert verdict.reference_time == "2025-01-01T23:58:00"
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-12)


def test_a_siemens_private_time_comes_first_too() -> None:
    private = (PrivateFact("SIEMENS MED PT", "0071,xx22", "20241231110000.000000"),)
    verdict = judge_suv([pet(manufacturer="SIEMENS", private=private, series_time="111500")])
    assert verdict.factor == ORDINARY
    assert "SIEMENS MED PT" in verdict.method


def test_a_private_block_without_creator_counts_for_its_own_maker_with_a_warning() -> None:
    nobody = (PrivateFact("", "7053,xx00", "0.0005"),)
    verdict = judge_suv([pet(units="CNTS", manufacturer="Philips Medical Systems", private=nobody)])
    assert verdict.factor == 0.0005
    assert verdict.status == "adapted"
    assert "(7053,xx00)" in refusal_of(pet(units="CNTS", manufacturer="Other", private=nobody))


def test_no_time_at_all_is_refused() -> None:
    reason = refusal_of(pet(series_time=None, acquisition_time=None))
    assert "no reference time" in reason


def test_a_series_time_without_acquisition_time_is_used_and_said() -> None:
    verdict = judge_suv([pet(acquisition_time=None)])
    assert verdict.factor == ORDINARY
    assert "unchecked" in "; ".join(verdict.reasons)


def test_unknown_dates_leave_the_times_of_day() -> None:
    slice_ = pet(series_date="00000000", acquisition_date=None)
    assert factor_of(slice_) == ORDINARY
    assert judge_suv([slice_]).reference_time == "11:00:00"


# --- the administration ------------------------------------------------------------------------


def test_an_injection_date_that_was_shifted_apart_leaves_its_time_of_day() -> None:
    assert factor_of(pet(radiopharmaceutical_start_date_time="20110114100000")) == ORDINARY


def test_an_injection_some_seconds_after_the_reference_is_computed_and_said() -> None:
    verdict = judge_suv([pet(radiopharmaceutical_start_date_time="20250101110041")])
    assert verdict.status == "adapted"
    assert verdict.dt_seconds == pytest.approx(-41)
    assert verdict.factor == pytest.approx(70_000 / 368.08e6 * 2 ** (-41 / F18))


def test_an_injection_ten_minutes_after_the_reference_is_refused() -> None:
    reason = refusal_of(pet(radiopharmaceutical_start_date_time="20250101111000"))
    assert "cannot be trusted" in reason


@pytest.mark.parametrize(("hours", "computed"), [(10.9, True), (11.1, False)])
def test_a_time_of_day_is_trusted_for_six_half_lives_of_f18(hours: float, computed: bool) -> None:
    start = datetime(2025, 1, 1, 11) - timedelta(hours=hours)  # noqa: DTZ001
    slice_ = pet(
        radiopharmaceutical_start_time=start.strftime("%H%M%S"),
        radiopharmaceutical_start_date_time=None,
    )
    assert (judge_suv([slice_]).factor is not None) is computed


@pytest.mark.parametrize(
    ("half_life", "stamp", "computed"),
    [
        (41_399.0, None, True),
        (41_400.0, None, False),
        (41_400.0, "20250101100000", True),
        (41_400.0, "20250101110010", False),
        (282_276.0, "20241217000000", True),
        (282_276.0, "20241214000000", False),
    ],
)
def test_a_long_half_life_needs_the_date(
    half_life: float, stamp: str | None, computed: bool
) -> None:
    slice_ = pet(radionuclide_half_life=half_life, radiopharmaceutical_start_date_time=stamp)
    assert (judge_suv([slice_]).factor is not None) is computed


# --- decay correction --------------------------------------------------------------------------


def test_an_image_corrected_to_the_administration_needs_no_times() -> None:
    slice_ = pet(
        decay_correction="ADMIN",
        series_time=None,
        acquisition_time=None,
        radiopharmaceutical_start_time=None,
        radiopharmaceutical_start_date_time=None,
        radionuclide_half_life=None,
    )
    assert factor_of(slice_) == 70_000 / 368.08e6


def test_an_uncorrected_image_gets_a_factor_for_each_slice() -> None:
    bare = tuple(word for word in CORRECTED if word != "DECY")
    slices = tuple(
        pet(number, decay_correction="NONE", corrected_image=bare, acquisition_time=start)
        for number, start in enumerate(("110000", "110500"))
    )
    verdict = judge_suv(slices)
    tave = average_count_seconds(F18, 300)
    assert verdict.status == "ok"
    assert verdict.factor == pytest.approx(
        [70_000 / 368.08e6 * 2 ** ((3600 + later + tave) / F18) for later in (0, 300)], rel=1e-9
    )
    assert verdict.dt_seconds == pytest.approx([3600 + tave, 3900 + tave])


def test_an_uncorrected_image_without_frame_durations_is_refused() -> None:
    bare = ("ATTN", "NORM")
    reason = refusal_of(
        pet(decay_correction="NONE", corrected_image=bare, actual_frame_duration=None)
    )
    assert "ActualFrameDuration" in reason


def test_a_header_that_says_corrected_and_not_corrected_is_adapted_and_refused_when_strict() -> (
    None
):
    slice_ = pet(decay_correction="NONE")
    assert judge_suv([slice_]).status == "adapted"
    assert "DECY" in refusal_of(slice_, strict=True)


def test_an_unknown_decay_correction_is_refused() -> None:
    assert "DecayCorrection" in refusal_of(pet(decay_correction=None))
    assert "'LATER'" in refusal_of(pet(decay_correction="LATER"))


def test_a_slice_that_lacks_attenuation_correction_refuses_the_series() -> None:
    mixed = (pet(1), pet(2, corrected_image=("DECY",)))
    assert "lacks ATTN" in refusal_of(*mixed)


def test_decay_correction_missing_from_corrected_image_is_refused() -> None:
    assert "lacks DECY" in refusal_of(pet(corrected_image=("ATTN",)))


# --- weight, dose, half-life -------------------------------------------------------------------


def test_a_weight_in_grams_is_read_as_such_unless_strict() -> None:
    verdict = judge_suv([pet(patient_weight=70_000.0)])
    assert (verdict.factor, verdict.weight_kg, verdict.label) == (ORDINARY, 70.0, "suvbw_adapted")
    assert "grams" in refusal_of(pet(patient_weight=70_000.0), strict=True)


@pytest.mark.parametrize(
    ("dose", "read_as"),
    [(29.9, None), (30.0, 30e6), (9_999.0, 9_999e6), (1e4, 1e4), (368.08e6, 368.08e6)],
)
def test_the_size_of_a_dose_tells_its_unit(dose: float, read_as: float | None) -> None:
    verdict = judge_suv([pet(radionuclide_total_dose=dose)])
    assert verdict.dose_bq == read_as
    assert (verdict.status == "refused") is (read_as is None)


def test_missing_facts_are_all_named_at_once() -> None:
    reason = refusal_of(
        pet(patient_weight=None, radionuclide_total_dose=None, radionuclide_half_life=None)
    )
    for keyword in ("PatientWeight", "RadionuclideTotalDose", "RadionuclideHalfLife"):
        assert keyword in reason


def test_recorded_overrides_stand_in_and_are_labelled_even_when_strict() -> None:
    verdict = judge_suv(
        [pet(patient_weight=None, radionuclide_total_dose=None)],
        strict=True, weight_kg=70.0, dose_bq=368.08e6,
    )  # fmt: skip
    assert verdict.factor == ORDINARY
    assert verdict.label == "suvbw_adapted"
    assert len(verdict.adaptations) == 2


@pytest.mark.parametrize(
    ("nuclide", "half_life", "status"),
    [
        ("^18^Fluorine", 6588.0, "ok"),
        ("F^18^[^18^Fluorine]", 6000.0, "adapted"),
        ("C-131A3", 4057.7, "ok"),
        ("^68^Gallium", 6586.2, "adapted"),
        ("UNKNOWN", 1234.0, "ok"),
    ],
)
def test_a_half_life_off_its_nuclide_is_said(nuclide: str, half_life: float, status: str) -> None:
    verdict = judge_suv([pet(radionuclide_code=nuclide, radionuclide_half_life=half_life)])
    assert verdict.status == status
    assert verdict.half_life_s == half_life


def test_nuclides_are_read_in_every_spelling() -> None:
    spellings = {
        "18F": "F18", "^18^Fluorine": "F18", "F^18^": "F18", "F^18^ [^18^Fluorine]": "F18",
        "C-111A1": "F18", "68Ga": "GA68", "Ga-68": "GA68", "^89^Zirconium": "ZR89",
        "Rb^82^": "RB82", "11C": "C11", "Oxygen": None, "": None,
    }  # fmt: skip
    assert {text: nuclide_of(text) for text in spellings} == spellings


def test_a_weight_that_differs_within_the_series_is_refused() -> None:
    assert "PatientWeight differs" in refusal_of(pet(1), pet(2, patient_weight=71.0))
    assert judge_suv([pet(1), pet(2, patient_weight=71.0)], weight_kg=70.0).status == "adapted"


# --- units -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sex", "grams"),
    [
        ("LBM", "M", 77_000 - 120_000 * 0.16),
        ("LBM", "F", 74_900 - 148_000 * 0.16),
        ("LBMJAMES128", "F", 74_900 - 148_000 * 0.16),
        ("LBMJANMA", "M", 9270e3 * 70 / (6680 + 216 * 70 / 1.75**2)),
        ("LBMJANMA", "F", 9270e3 * 70 / (8780 + 244 * 70 / 1.75**2)),
        ("IBW", "M", (48.0 + 1.06 * 23) * 1000),
        ("IBW", "F", (45.5 + 0.91 * 23) * 1000),
        ("IBW", "O", ((48.0 + 1.06 * 23) + (45.5 + 0.91 * 23)) / 2 * 1000),
    ],
)
def test_gml_of_another_kind_becomes_body_weight_suv(kind: str, sex: str, grams: float) -> None:
    slice_ = pet(units="GML", suv_type=kind, patient_sex=sex)
    assert factor_of(slice_) == pytest.approx(70_000 / grams, rel=1e-12)
    assert body_grams(kind, 70.0, 1.75, sex).value == pytest.approx(grams)


def test_units_and_suv_type_that_do_not_fit_are_refused() -> None:
    assert "BSA" in refusal_of(pet(units="GML", suv_type="BSA"))
    assert "CM2ML with SUVType BW" in refusal_of(pet(units="CM2ML", suv_type="BW"))
    assert "SUVType XYZ" in refusal_of(pet(units="GML", suv_type="XYZ"))


def test_gml_needs_neither_weight_nor_times() -> None:
    slice_ = pet(units="GML", patient_weight=None, series_time=None, radionuclide_total_dose=None)
    assert factor_of(slice_) == 1.0


@pytest.mark.parametrize("units", ["PROPCNTS", "PROPCPS", "1CM", "CPS", "", None])
def test_units_that_lead_nowhere_are_refused(units: str | None) -> None:
    verdict = judge_suv([pet(units=units)])
    assert verdict.status == "refused"
    assert verdict.label == (units or "unknown units")


def test_philips_counts_without_factors_are_refused() -> None:
    assert "CNTS" in refusal_of(pet(units="CNTS", **philips("0.000000")))


def test_philips_counts_become_activity_and_then_suv() -> None:
    slice_ = pet(units="CNTS", **philips("0.000000", "2.0"))
    assert factor_of(slice_) == pytest.approx(2 * ORDINARY)


def test_the_scanners_own_factors_check_ours() -> None:
    near = judge_suv([pet(**philips("0.0002779", "1.0"))])
    far = judge_suv([pet(**philips("0.0003", "1.0"))])
    assert (near.status, far.status) == ("ok", "adapted")
    assert near.factor == far.factor == ORDINARY


# --- enhanced and legacy-converted -------------------------------------------------------------


def test_an_enhanced_pet_has_its_dose_in_megabecquerel() -> None:
    verdict = judge_suv([enhanced_pet([frame(0.0), frame(4.0)])])
    assert (verdict.status, verdict.factor) == ("ok", pytest.approx(ORDINARY, rel=1e-12))
    assert verdict.dose_bq == pytest.approx(368.08e6)


def test_an_enhanced_dose_in_becquerel_is_recognised() -> None:
    verdict = judge_suv([enhanced_pet([frame()], radionuclide_total_dose=368.08e6)])
    assert (verdict.status, verdict.dose_bq) == ("adapted", 368.08e6)


def test_an_enhanced_pet_that_is_not_attenuation_corrected_is_refused() -> None:
    assert "AttenuationCorrected" in refusal_of(enhanced_pet([frame()], attenuation_corrected="NO"))


def test_frames_without_decay_correction_get_a_factor_each() -> None:
    frames = [
        frame(z, frame_reference_date_time=stamp)
        for z, stamp in ((0.0, "20250101110000"), (4.0, "20250101110500"))
    ]
    verdict = judge_suv([enhanced_pet(frames, decay_corrected="NO")])
    assert verdict.factor == pytest.approx([ORDINARY, ORDINARY * 2 ** (300 / F18)])
    lacking = enhanced_pet([frame()], decay_corrected="NO")
    assert "FrameReferenceDateTime" in refusal_of(lacking)


def test_offsets_of_enhanced_date_times_are_honoured() -> None:
    told = enhanced_pet(
        [frame()],
        decay_correction_date_time="20250101120000+0200",
        radiopharmaceutical_start_date_time="20250101090000+0000",
    )
    assert factor_of(told) == pytest.approx(ORDINARY, rel=1e-12)


@pytest.mark.parametrize(
    ("code", "factor"),
    [
        ("Bq/ml", ORDINARY),
        ("{SUVbw}g/ml", 1.0),
        ("g/ml{SUVbw}", 1.0),
        ("{SUVbsa}cm2/ml", 3.787585663752127),
        ("{propcounts}", None),
        ("{counts}/s", None),
        ("[arb'U]", None),
    ],
)
def test_enhanced_units_come_from_the_real_world_value(code: str, factor: float | None) -> None:
    told = enhanced_pet([frame()], real_world_value_units=code, patient_size=1.75)
    assert judge_suv([told]).factor == (None if factor is None else pytest.approx(factor))


def test_a_real_world_slope_other_than_the_rescale_is_made_up_for() -> None:
    scaled = frame(rescale_slope=2.0, real_world_value_slope=3.0)
    assert factor_of(enhanced_pet([scaled])) == pytest.approx(1.5 * ORDINARY)
    offset = frame(
        rescale_slope=2.0, real_world_value_slope=2.0, real_world_value_intercept=-1024.0
    )
    assert "offset" in refusal_of(enhanced_pet([offset]))


def test_a_legacy_converted_pet_keeps_its_dose_in_becquerel() -> None:
    classic = pet()
    frames = tuple(
        frame(z, classic=(("AcquisitionTime", time), ("DecayFactor", f"{factor:.6g}"),
                          ("ActualFrameDuration", "300000")))
        for z, time, factor in (
            (0.0, "110000", decay_factor(0)),
            (4.0, "110500", decay_factor(300)),
        )
    )  # fmt: skip
    told = changed([classic], sop_class_uid=LEGACY_PET, frames=frames, decay_factor=None,
                   acquisition_time=None, series_time="150000")  # fmt: skip
    verdict = judge_suv(told)
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-5)
    assert "back-computed from DecayFactor" in verdict.method
    assert verdict.dose_bq == 368.08e6


# --- what a verdict says -----------------------------------------------------------------------


def test_a_verdict_carries_everything_it_rests_on() -> None:
    verdict = judge_suv(pet_stack(3))
    assert verdict == SuvVerdict(
        status=verdict.status,
        factor=ORDINARY,
        method="Bq/ml, decay corrected to the start (START), reference SeriesTime",
        reference_time="2025-01-01T11:00:00",
        reasons=(),
        label="suvbw",
        candidates=verdict.candidates,
        dt_seconds=3600.0,
        weight_kg=70.0,
        dose_bq=368_080_000.0,
        half_life_s=F18,
        adaptations=(),
    )


def test_no_slices_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        judge_suv([])


def test_what_is_no_pet_is_refused_in_words() -> None:
    picture = one("1.2.840.10008.5.1.4.1.1.7", modality="PT", image_orientation_patient=AXIAL)
    assert "no Units" in refusal_of(picture)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("110000", 39_600.0), ("11", 39_600.0), ("1100", 39_600.0), ("11:00:00", 39_600.0),
     ("110000.250000 ", 39_600.25), ("235960", 86_399.0), ("240000", None), ("noon", None),
     ("", None), (None, None)],
)  # fmt: skip
def test_times_are_read_as_dicom_writes_them(text: str | None, seconds: float | None) -> None:
    time = parse_time(text)
    assert (time.total_seconds() if time is not None else None) == seconds


def test_dates_that_are_none_are_not_read() -> None:
    assert parse_date("00000000") is None
    assert parse_date("20250230") is None
    assert parse_date("2025.02.03") == parse_date("20250203")
    assert parse_date_time("20250203") is not None
    assert parse_date_time("20250203") != parse_date_time("20250203000000")
    assert parse_date_time("202502") is None
