"""Roles: attributes and geometry of the whole series, descriptions last."""

import csv
from pathlib import Path
from typing import Any

import pytest
from facts_builder import (
    CORONAL,
    ENHANCED_CT,
    SAGITTAL,
    SC,
    STORAGE,
    changed,
    ct,
    ct_stack,
    enhanced_pet,
    frame,
    one,
    pet,
    pet_stack,
)

from workers.completeness.descriptions import described_role
from workers.completeness.roles import Role, judge_role
from workers.header.facts import InstanceFacts
from workers.header.read import read_header

NOT_CORRECTED = ("NORM", "DTIM", "DECY")


def role_of(*instances: InstanceFacts) -> Role:
    verdict = judge_role(instances)
    assert verdict.reasons, "every verdict says why"
    return verdict.role


def reasons_of(*instances: InstanceFacts) -> str:
    return "; ".join(judge_role(instances).reasons)


# --- PET ---------------------------------------------------------------------------------------


def test_an_axial_pet_with_attn_is_pet_ac() -> None:
    assert role_of(*pet_stack(5)) is Role.PET_AC


def test_derived_secondary_alone_does_not_exclude_a_pet() -> None:
    assert role_of(*pet_stack(5, image_type=("DERIVED", "SECONDARY"))) is Role.PET_AC


def test_an_absent_series_type_does_not_exclude_a_pet() -> None:
    assert role_of(*pet_stack(5, series_type=())) is Role.PET_AC


def test_attn_alone_separates_nac_from_ac_whatever_the_description_says() -> None:
    nac = pet_stack(5, corrected_image=NOT_CORRECTED, series_description="wb_ctac.img")
    ac = pet_stack(5, series_description="WBNAC noattn", units="PROPCPS")
    assert role_of(*nac) is Role.PET_NAC
    assert role_of(*ac) is Role.PET_AC
    assert "description sounds like pet_ac" in reasons_of(*nac)
    assert "description sounds like pet_nac" in reasons_of(*ac)


def test_one_slice_without_attn_makes_the_series_nac() -> None:
    slices = (*pet_stack(4), pet(9, corrected_image=NOT_CORRECTED))
    assert role_of(*slices) is Role.PET_NAC
    assert "on 1 of 5" in reasons_of(*slices)


@pytest.mark.parametrize(
    "fields",
    [
        {"series_type": ("WHOLE BODY", "REPROJECTION")},
        {"image_type": ("DERIVED", "SECONDARY", "OTHER", "CSA MIP")},
        {"image_type": ("ORIGINAL", "SECONDARY", "MIP")},
    ],
)
def test_a_projection_is_pet_mip(fields: dict[str, Any]) -> None:
    assert role_of(*pet_stack(4, **fields)) is Role.PET_MIP


def test_an_orientation_that_rotates_is_pet_mip_without_saying_so() -> None:
    views = tuple(
        pet(number, image_orientation_patient=(cos, sin, 0.0, 0.0, 0.0, -1.0))
        for number, (cos, sin) in enumerate(((1.0, 0.0), (0.7071, 0.7071), (0.0, 1.0), (-1.0, 0.0)))
    )
    assert role_of(*views) is Role.PET_MIP
    assert "rotates" in reasons_of(*views)


def test_coronals_keep_every_attribute_and_are_reformatted_by_geometry() -> None:
    coronals = tuple(
        pet(n, image_orientation_patient=CORONAL, image_position_patient=(0.0, 4.0 * n, 0.0))
        for n in range(1, 5)
    )
    assert role_of(*coronals) is Role.PET_REFORMATTED
    assert role_of(*pet_stack(4, image_type=("DERIVED", "PRIMARY", "CSA MPR THICK"))) is (
        Role.PET_REFORMATTED
    )


def test_dynamic_and_gated_series_are_no_volume() -> None:
    dynamic = pet_stack(4, series_type=("DYNAMIC", "IMAGE"), number_of_time_slices=45)
    gated = pet_stack(4, series_type=("GATED", "IMAGE"), number_of_time_slots=8)
    assert role_of(*dynamic) is Role.PET_DYNAMIC
    assert "45 time points: not one volume" in reasons_of(*dynamic)
    assert role_of(*gated) is Role.PET_GATED
    assert "8 gates: not one volume" in reasons_of(*gated)


def test_a_dynamic_series_of_one_time_point_is_a_volume() -> None:
    single = pet_stack(4, series_type=("DYNAMIC", "IMAGE"), number_of_time_slices=1)
    assert role_of(*single) is Role.PET_AC


def test_several_time_points_at_each_position_are_dynamic_without_saying_so() -> None:
    early = pet_stack(4)
    late = changed(pet_stack(4, series="1.2.3.4.5"), acquisition_time="113000")
    assert role_of(*early, *late) is Role.PET_DYNAMIC
    triggered = changed(pet_stack(4, series="1.2.3.4.5"), trigger_time=400.0)
    assert role_of(*early, *triggered) is Role.PET_GATED


def test_two_images_at_one_position_are_a_conflict_and_not_time_points() -> None:
    stray = pet(99, acquisition_time="113000", image_position_patient=(0.0, 0.0, 8.0))
    assert role_of(*pet_stack(8), stray) is Role.PET_AC


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"samples_per_pixel": 3}, "3 samples"),
        ({"collimator_type": "PARA"}, "CollimatorType PARA"),
        ({"radionuclide_code": "^177^Lutetium"}, "SPECT"),
        ({"radionuclide_code": "^99m^Technetium"}, "SPECT"),
        ({"radionuclide_code": "In-111"}, "SPECT"),
        ({"image_type": ("DERIVED", "SECONDARY", "MPR FUSION")}, "FUSION"),
        ({"image_position_patient": None}, "no image position"),
    ],
)
def test_what_only_says_pt_is_pet_other(fields: dict[str, Any], word: str) -> None:
    instance = pet(**fields)
    assert role_of(instance) is Role.PET_OTHER
    assert word in reasons_of(instance)


@pytest.mark.parametrize("collimator", ["NONE", "RING", None])
def test_real_pet_has_no_collimator_or_a_ring(collimator: str | None) -> None:
    assert role_of(pet(collimator_type=collimator)) is Role.PET_AC


def test_a_secondary_capture_that_says_pt_is_pet_other() -> None:
    assert role_of(one(SC, modality="PT")) is Role.PET_OTHER


def test_an_enhanced_pet_is_judged_by_its_own_attributes() -> None:
    frames = [frame(4.0 * n) for n in range(4)]
    assert role_of(enhanced_pet(frames)) is Role.PET_AC
    assert role_of(enhanced_pet(frames, attenuation_corrected="NO")) is Role.PET_NAC
    projected = [frame(0.0, frame_type=("DERIVED", "PRIMARY", "MIP"))]
    assert role_of(enhanced_pet(projected)) is Role.PET_MIP


# --- CT ----------------------------------------------------------------------------------------


def test_an_axial_stack_is_ct_also_when_it_is_derived() -> None:
    assert role_of(*ct_stack(30)) is Role.CT
    assert role_of(*ct_stack(30, image_type=("DERIVED", "SECONDARY", "AXIAL"))) is Role.CT


def test_a_sagittal_reformat_that_says_axial_is_reformatted() -> None:
    slices = tuple(
        ct(n, image_orientation_patient=SAGITTAL, image_position_patient=(2.0 * n, 0.0, 0.0))
        for n in range(1, 20)
    )
    assert role_of(*slices) is Role.CT_REFORMATTED


@pytest.mark.parametrize("word", ["MPR", "REFORMATTED", "MIP", "CSA MPR"])
def test_an_axial_reformat_is_excluded_by_image_type(word: str) -> None:
    assert role_of(*ct_stack(30, image_type=("DERIVED", "SECONDARY", word))) is (
        Role.CT_REFORMATTED
    )


def test_localizers_are_scouts() -> None:
    scouts = (
        ct(1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), image_orientation_patient=CORONAL),
        ct(2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), image_orientation_patient=SAGITTAL),
    )
    assert role_of(*scouts) is Role.CT_SCOUT
    assert role_of(ct(image_orientation_patient=CORONAL)) is Role.CT_SCOUT


def test_an_axial_stack_that_says_localizer_is_a_ct_by_geometry() -> None:
    slices = ct_stack(30, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    assert role_of(*slices) is Role.CT
    assert "geometry decides" in reasons_of(*slices)


def test_an_embedded_localizer_does_not_change_the_series() -> None:
    scout = ct(
        99, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), image_orientation_patient=CORONAL
    )
    assert role_of(scout, *ct_stack(30)) is Role.CT
    assert "left out for another orientation: 1 image" in reasons_of(scout, *ct_stack(30))
    reformat = ct_stack(30, image_type=("DERIVED", "SECONDARY", "REFORMATTED"))
    assert role_of(scout, *reformat) is Role.CT_REFORMATTED


def test_bolus_monitoring_and_cine_are_dynamic() -> None:
    monitoring = tuple(
        ct(n, acquisition_number=n, image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MON"))
        for n in range(1, 8)
    )
    cine = tuple(ct(n, image_position_patient=(0.0, 0.0, float(n % 4))) for n in range(16))
    phases = (*ct_stack(8), *ct_stack(8, series="1.2.3.5.1", acquisition_number=2))
    assert role_of(*monitoring) is Role.CT_DYNAMIC
    assert role_of(*cine) is Role.CT_DYNAMIC
    assert "4 images at one position within one acquisition" in reasons_of(*cine)
    assert role_of(*phases) is Role.CT_DYNAMIC
    assert "2 acquisitions of the same positions" in reasons_of(*phases)


def test_a_ct_that_is_a_picture_is_other() -> None:
    assert role_of(ct(samples_per_pixel=3)) is Role.OTHER
    assert role_of(ct(image_orientation_patient=None)) is Role.OTHER


def test_an_enhanced_ct_is_judged_by_its_frames() -> None:
    frames = tuple(frame(2.0 * n) for n in range(20))
    assert role_of(one(ENHANCED_CT, modality="CT", frames=frames)) is Role.CT


def test_a_few_axial_slices_are_said_to_be_few() -> None:
    assert "only a few slices" in reasons_of(*ct_stack(2))


# --- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sop_class", "role"),
    [
        ("4", Role.MR), ("4.1", Role.MR), ("481.2", Role.RTDOSE), ("481.3", Role.RTSTRUCT),
        ("481.5", Role.RTPLAN), ("66.4", Role.SEG), ("66.1", Role.REG), ("66.3", Role.REG),
        ("88.11", Role.SR), ("88.67", Role.SR), ("104.1", Role.PDF), ("7", Role.SC),
        ("7.4", Role.SC), ("20", Role.OTHER), ("481.1", Role.OTHER), ("66", Role.OTHER),
    ],
)  # fmt: skip
def test_other_objects_have_the_role_of_their_class(sop_class: str, role: Role) -> None:
    assert role_of(one(STORAGE + sop_class, modality="XX")) is role


def test_a_private_class_is_other_whatever_its_modality() -> None:
    assert role_of(one("1.3.12.2.1107.5.9.1", modality="CT")) is Role.OTHER


def test_the_most_frequent_class_of_a_series_decides() -> None:
    slices = (*ct_stack(10), one(SC, 99, series="1.2.3.5", modality="CT"))
    assert role_of(*slices) is Role.CT
    assert "1 of 11 instances are of another SOP class" in reasons_of(*slices)


def test_the_order_of_the_instances_does_not_matter() -> None:
    scout = ct(99, image_orientation_patient=CORONAL)
    for series in (pet_stack(6), (*ct_stack(6), scout), pet_stack(6, series_type=())):
        assert judge_role(series) == judge_role(tuple(reversed(series)))


def test_ct_and_pet_of_one_description_are_told_apart() -> None:
    assert role_of(*pet_stack(5, series_description="WB")) is Role.PET_AC
    assert role_of(*ct_stack(5, series_description="WB")) is Role.CT


def test_no_instances_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        judge_role([])


# --- real data ---------------------------------------------------------------------------------

REAL_ROLES = {
    "ge/acrin_flt_breast_ACRIN-FLT-Breast_034_021": Role.PET_DYNAMIC,
    "philips/acrin_flt_breast_ACRIN-FLT-Breast_007_016": Role.PET_DYNAMIC,
    "philips/acrin_flt_breast_ACRIN-FLT-Breast_040_018": Role.PET_DYNAMIC,
    "siemens/acrin_flt_breast_ACRIN-FLT-Breast_062_005": Role.PET_DYNAMIC,
    "philips/acrin_flt_breast_ACRIN-FLT-Breast_039_017": Role.PET_NAC,
    "philips/acrin_nsclc_fdg_pet_ACRIN-NSCLC-FDG-PET-020_002": Role.PET_NAC,
    "philips/anti_pd_1_lung_PD-1-Lung-00033_023": Role.PET_NAC,
    "philips/naf_prostate_NaF-PROSTATE-01-0009_012": Role.PET_NAC,
    "philips/nsclc_radiogenomics_AMC-012_029": Role.PET_NAC,
    "siemens/cmb_crc_CMB-CRC-MSB-08170_023": Role.PET_OTHER,
    "siemens/cmb_mml_CMB-MML-MSB-06305_027": Role.PET_OTHER,
    "siemens/tcga_lusc_TCGA-92-7340_013": Role.PET_OTHER,
    "siemens/cmb_gec_CMB-GEC-MSB-06857_018": Role.PET_MIP,
    "siemens/cmb_lca_CMB-LCA-MSB-01649_021": Role.PET_MIP,
    "siemens/tcga_luad_TCGA-17-Z051_019": Role.PET_MIP,
    "siemens/tcga_thca_TCGA-DE-A4MA_014": Role.PET_REFORMATTED,
}


def test_real_slices_have_the_roles_of_their_headers(test_data: Path) -> None:
    with (test_data / "pet-slices" / "expected.csv").open() as file:
        names = [row["file"].removesuffix(".dcm") for row in csv.DictReader(file)]
    for name in names:
        facts = read_header(test_data / "pet-slices" / f"{name}.dcm").facts
        assert judge_role([facts]).role is REAL_ROLES.get(name, Role.PET_AC), name


@pytest.mark.parametrize("study", ["STS_002", "STS_003"])
def test_real_studies_have_their_roles(test_data: Path, study: str) -> None:
    roles = {}
    for folder in ("PET", "CT", "MR_T1"):
        paths = sorted((test_data / "studies" / study / folder / "dicom" / "image").glob("*.dcm"))
        roles[folder] = judge_role([read_header(path).facts for path in paths]).role
        mask = test_data / "studies" / study / folder / "dicom" / "mask" / "RS.dcm"
        assert judge_role([read_header(mask).facts]).role is Role.RTSTRUCT
    assert roles == {"PET": Role.PET_AC, "CT": Role.CT, "MR_T1": Role.MR}


# --- descriptions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "text", "role"),
    [
        ("PT", "WBNAC noattn", Role.PET_NAC), ("PT", "[WB_CTAC] Body", Role.PET_AC),
        ("PT", "PET AC 3DWB", Role.PET_AC), ("PT", "PET FDG NAC", Role.PET_NAC),
        ("PT", "PET_BODY_NO_AC", Role.PET_NAC), ("PT", "<MIP Range>", Role.PET_MIP),
        ("PT", "CORONALS", Role.PET_REFORMATTED), ("PT", "PET WB", None),
        ("PT", "PET WB UNCORRECTED", Role.PET_NAC), ("PT", "PET corr.", Role.PET_AC),
        ("CT", "CT SCOUT HEAD IN", Role.CT_SCOUT), ("CT", "Topogram  0.6  T20f", Role.CT_SCOUT),
        ("CT", "PreMonitoring  10.0  B30f", Role.CT_DYNAMIC), ("CT", "CT WB", None),
        ("MR", "AC", None),
    ],
)  # fmt: skip
def test_what_a_description_sounds_like(modality: str, text: str, role: Role | None) -> None:
    assert described_role(text, modality) is role
