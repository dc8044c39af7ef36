"""Facts of instances as scanners write them, by hand: a PET, a CT, a whole series of either."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from workers.completeness.roles import judge_role
from workers.completeness.series import judge_completeness
from workers.header.facts import FrameFacts, InstanceFacts, PrivateFact
from workers.pairing.selection import SeriesEvidence

STORAGE = "1.2.840.10008.5.1.4.1.1."
PET, CT, SC = STORAGE + "128", STORAGE + "2", STORAGE + "7"
ENHANCED_PET, LEGACY_PET, ENHANCED_CT = STORAGE + "130", STORAGE + "128.1", STORAGE + "2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORRECTED = ("NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN")
STUDY = "1.2.3"


def one(
    sop_class: str, number: int = 1, *, series: str = "1.2.3.4", **fields: Any
) -> InstanceFacts:
    """An instance of any class."""
    known = {
        "sop_class_uid": sop_class,
        "sop_instance_uid": f"{series}.{number}",
        "study_instance_uid": STUDY,
        "series_instance_uid": series,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "instance_number": number,
    }
    return InstanceFacts(**{**known, **fields})


def pet(number: int = 1, *, series: str = "1.2.3.4", **fields: Any) -> InstanceFacts:
    """A slice of an ordinary F-18 whole-body PET: 70 kg, 368.08 MBq, an hour before the scan."""
    known: dict[str, Any] = {
        "modality": "PT",
        "manufacturer": "Phantom",
        "image_type": ("ORIGINAL", "PRIMARY"),
        "series_type": ("WHOLE BODY", "IMAGE"),
        "series_number": 4,
        "units": "BQML",
        "corrected_image": CORRECTED,
        "decay_correction": "START",
        "collimator_type": "NONE",
        "series_date": "20250101",
        "series_time": "110000.000000",
        "acquisition_date": "20250101",
        "acquisition_time": "110000.000000",
        "actual_frame_duration": 300_000.0,
        "frame_reference_time": 150_000.0,
        "decay_factor": 1.0,
        "patient_weight": 70.0,
        "patient_size": 1.75,
        "patient_sex": "O",
        "radionuclide_total_dose": 368_080_000.0,
        "radionuclide_half_life": 6586.2,
        "radiopharmaceutical_start_time": "100000.000000",
        "radiopharmaceutical_start_date_time": "20250101100000.000000",
        "frame_of_reference_uid": "1.2.3.9",
        "image_orientation_patient": AXIAL,
        "image_position_patient": (0.0, 0.0, 0.0),
    }
    return one(PET, number, series=series, **{**known, **fields})


def pet_stack(
    count: int, *, step: float = 4.0, low: float = 0.0, series: str = "1.2.3.4", **fields: Any
) -> tuple[InstanceFacts, ...]:
    """A whole PET series, feet first."""
    known = {"number_of_slices": count, **fields}
    return tuple(
        pet(
            number,
            series=series,
            **{
                "image_position_patient": (0.0, 0.0, low + step * (number - 1)),
                "image_index": number,
                **known,
            },
        )
        for number in range(1, count + 1)
    )


def ct(number: int = 1, *, series: str = "1.2.3.5", **fields: Any) -> InstanceFacts:
    """A slice of an ordinary CT."""
    known: dict[str, Any] = {
        "modality": "CT",
        "manufacturer": "Phantom",
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "series_number": 2,
        "acquisition_number": 1,
        "convolution_kernel": ("STANDARD",),
        "series_date": "20250101",
        "series_time": "105500",
        "acquisition_date": "20250101",
        "acquisition_time": "105500",
        "frame_of_reference_uid": "1.2.3.9",
        "image_orientation_patient": AXIAL,
        "image_position_patient": (0.0, 0.0, 0.0),
    }
    return one(CT, number, series=series, **{**known, **fields})


def ct_stack(
    count: int, *, step: float = 3.0, low: float = 0.0, series: str = "1.2.3.5", **fields: Any
) -> tuple[InstanceFacts, ...]:
    """A whole CT series."""
    return tuple(
        ct(
            number,
            series=series,
            **{"image_position_patient": (0.0, 0.0, low + step * (number - 1)), **fields},
        )
        for number in range(1, count + 1)
    )


def enhanced_pet(frames: Iterable[FrameFacts], **fields: Any) -> InstanceFacts:
    """An Enhanced PET of some frames; its dose is in MBq."""
    listed = tuple(frames)
    known: dict[str, Any] = {
        "modality": "PT",
        "attenuation_corrected": "YES",
        "decay_corrected": "YES",
        "decay_correction_date_time": "20250101110000",
        "real_world_value_units": "Bq/ml",
        "patient_weight": 70.0,
        "radionuclide_total_dose": 368.08,
        "radionuclide_half_life": 6586.2,
        "radiopharmaceutical_start_date_time": "20250101100000",
        "number_of_frames": len(listed),
        "frames": listed,
        "frame_of_reference_uid": "1.2.3.9",
    }
    return one(ENHANCED_PET, **{**known, **fields})


def frame(z: float = 0.0, **fields: Any) -> FrameFacts:
    """An axial frame."""
    known: dict[str, Any] = {
        "image_position_patient": (0.0, 0.0, z),
        "image_orientation_patient": AXIAL,
    }
    return FrameFacts(**{**known, **fields})


def philips(suv: str | None = None, activity: str | None = None) -> dict[str, Any]:
    """The private factors of a Philips PET."""
    creator = "Philips PET Private Group"
    facts = [PrivateFact(creator, "7053,xx00", suv)] if suv is not None else []
    facts += [PrivateFact(creator, "7053,xx09", activity)] if activity is not None else []
    return {"manufacturer": "Philips Medical Systems", "private": tuple(facts)}


def evidence(
    instances: Sequence[InstanceFacts], *, quiet: bool = True, same_study: bool = True
) -> SeriesEvidence:
    """A series as the pairing decision gets it, judged for real."""
    role = judge_role(instances)
    completeness = judge_completeness(instances, role.role, quiet=quiet)
    first = instances[0]
    return SeriesEvidence(
        first.series_instance_uid,
        first.study_instance_uid,
        tuple(instances),
        role,
        completeness,
        quiet,
        same_study,
    )


def without(instances: Sequence[InstanceFacts], *numbers: int) -> tuple[InstanceFacts, ...]:
    """Leave out slices by InstanceNumber."""
    return tuple(one for one in instances if one.instance_number not in numbers)


def changed(instances: Sequence[InstanceFacts], **fields: Any) -> tuple[InstanceFacts, ...]:
    """Change fields of every slice."""
    return tuple(replace(one, **fields) for one in instances)
