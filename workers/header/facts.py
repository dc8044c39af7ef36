"""What the system knows of an instance from its header alone.

`InstanceFacts` is read once, when an instance is filed, and kept in the index as JSON, so that
roles,
completeness, SUV and geometry are judged without opening files again. Every field is named after
the DICOM keyword it comes from (`image_position_patient` is ImagePositionPatient); absent or empty
elements are None or (). Numbers that cannot be parsed are None and their keyword stands in
`unreadable`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any, cast

_NESTED = ("references", "private", "frames")
Vector3 = tuple[float, float, float]
Vector6 = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """One frame of a multi-frame instance (functional groups, shared ones already merged in)."""

    image_position_patient: Vector3 | None = None
    """Centre of the first pixel, LPS mm."""
    image_orientation_patient: Vector6 | None = None
    pixel_spacing: tuple[float, float] | None = None
    """(row spacing, column spacing) in mm."""
    slice_thickness: float | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    rescale_type: str | None = None
    frame_type: tuple[str, ...] = ()
    dimension_index_values: tuple[int, ...] = ()
    temporal_position_index: int | None = None
    frame_acquisition_number: int | None = None
    frame_acquisition_date_time: str | None = None
    frame_reference_date_time: str | None = None
    frame_acquisition_duration: float | None = None
    """Milliseconds."""
    decay_factor: float | None = None
    real_world_value_units: str | None = None
    """Code value of MeasurementUnitsCodeSequence (UCUM), e.g. "Bq/ml" or "{SUVbw}g/ml"."""
    real_world_value_slope: float | None = None
    real_world_value_intercept: float | None = None
    classic: tuple[tuple[str, str], ...] = ()
    """Legacy-converted: (keyword, value) of elements under Unassigned Per-Frame Converted
    Attributes.
    """


@dataclass(frozen=True, slots=True)
class SeriesReference:
    """A reference from a header to another series or instance."""

    kind: str
    """Keyword of the sequence it stands in, e.g. RelatedSeriesSequence, ReferencedImageSequence."""
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    purpose: str | None = None
    """Code value of PurposeOfReferenceCodeSequence, e.g. 122403 (For Attenuation Correction)."""


@dataclass(frozen=True, slots=True)
class PrivateFact:
    """One private element whose creator was checked."""

    creator: str
    element: str
    """"gggg,xxee" in lower-case hex, the block written as xx, e.g. "7053,xx00"."""
    value: str


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """The facts of one instance; units are DICOM's (mm, ms, kg, m, s, Bq) unless a field says
    otherwise.
    """

    # identity
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    accession_number: str = ""
    modality: str = ""
    manufacturer: str = ""
    manufacturer_model_name: str = ""
    study_description: str = ""
    series_description: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    image_type: tuple[str, ...] = ()
    burned_in_annotation: str = ""
    # times as they stand in the header (DA, TM, DT)
    study_date: str | None = None
    study_time: str | None = None
    series_date: str | None = None
    series_time: str | None = None
    acquisition_date: str | None = None
    acquisition_time: str | None = None
    acquisition_date_time: str | None = None
    content_date: str | None = None
    content_time: str | None = None
    timezone_offset_from_utc: str | None = None
    # patient
    patient_sex: str | None = None
    patient_size: float | None = None
    patient_weight: float | None = None
    patient_position: str | None = None
    # geometry
    frame_of_reference_uid: str | None = None
    image_position_patient: Vector3 | None = None
    image_orientation_patient: Vector6 | None = None
    anatomical_orientation_type: str | None = None
    pixel_spacing: tuple[float, float] | None = None
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    gantry_detector_tilt: float | None = None
    # pixels
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int | None = None
    samples_per_pixel: int | None = None
    photometric_interpretation: str | None = None
    bits_allocated: int | None = None
    bits_stored: int | None = None
    pixel_representation: int | None = None
    pixel_padding_value: int | None = None
    pixel_padding_range_limit: int | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    rescale_type: str | None = None
    has_pixel_data: bool = False
    # CT
    kvp: float | None = None
    convolution_kernel: tuple[str, ...] = ()
    images_in_acquisition: int | None = None
    scan_options: tuple[str, ...] = ()
    # PET
    series_type: tuple[str, ...] = ()
    units: str | None = None
    suv_type: str | None = None
    corrected_image: tuple[str, ...] = ()
    decay_correction: str | None = None
    attenuation_correction_method: str | None = None
    collimator_type: str | None = None
    number_of_slices: int | None = None
    number_of_time_slices: int | None = None
    number_of_rr_intervals: int | None = None
    number_of_time_slots: int | None = None
    image_index: int | None = None
    actual_frame_duration: float | None = None
    frame_reference_time: float | None = None
    decay_factor: float | None = None
    trigger_time: float | None = None
    temporal_position_identifier: int | None = None
    radiopharmaceutical: str | None = None
    radiopharmaceutical_start_time: str | None = None
    radiopharmaceutical_start_date_time: str | None = None
    radionuclide_total_dose: float | None = None
    radionuclide_half_life: float | None = None
    radionuclide_code: str | None = None
    """Code meaning (else value) of RadionuclideCodeSequence, e.g. "^18^Fluorine"."""
    # Enhanced PET
    decay_corrected: str | None = None
    attenuation_corrected: str | None = None
    decay_correction_date_time: str | None = None
    real_world_value_units: str | None = None
    concatenation_uid: str | None = None
    in_concatenation_number: int | None = None
    in_concatenation_total_number: int | None = None
    # MR
    repetition_time: float | None = None
    echo_time: float | None = None
    scanning_sequence: tuple[str, ...] = ()
    magnetic_field_strength: float | None = None
    imaged_nucleus: str | None = None
    # references as they stand in the header
    references: tuple[SeriesReference, ...] = ()
    reference_ct: str | None = None
    reference_rs: str | None = None
    reference_pl: str | None = None
    reference_frame: str | None = None
    # the rest
    private: tuple[PrivateFact, ...] = ()
    frames: tuple[FrameFacts, ...] = ()
    unreadable: tuple[str, ...] = field(default=())

    def private_value(self, creator: str, element: str) -> str | None:
        """The value of a private element of this creator ("7053,xx00"), or None."""
        for fact in self.private:
            if fact.creator == creator and fact.element == element:
                return fact.value
        return None

    def to_json(self) -> str:
        """Compact JSON without the fields that hold their default."""
        return _encoder().encode(_without_defaults(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceFacts:
        """Rebuild from `to_json`; unknown fields (of a newer version) are ignored."""
        raw: dict[str, Any] = json.loads(text)
        raw["references"] = tuple(SeriesReference(**item) for item in raw.get("references", ()))
        raw["private"] = tuple(PrivateFact(**item) for item in raw.get("private", ()))
        raw["frames"] = tuple(_frozen(FrameFacts, item) for item in raw.get("frames", ()))
        facts: InstanceFacts = _frozen(cls, raw)
        return facts


def _frozen(cls: type[Any], raw: dict[str, Any]) -> Any:
    known = cls.__dataclass_fields__
    return cls(
        **{
            name: tuple(map(_tuples, value)) if isinstance(value, list) else value
            for name, value in raw.items()
            if name in known
        }
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _without_defaults(facts: Any) -> dict[str, Any]:
    names, defaults, values_of = _fields(facts.__class__)
    kept = {
        name: value
        for name, value, default in zip(names, values_of(facts), defaults, strict=True)
        if value is not None and value != default
    }
    for name in _NESTED:
        if name in kept:
            kept[name] = [_without_defaults(one) for one in kept[name]]
    return kept


@cache
def _fields(cls: Hashable) -> tuple[list[str], list[Any], Callable[[Any], tuple[Any, ...]]]:
    """Return names and defaults of a class's fields, and what reads all values of one object."""
    fields = dataclasses.fields(cast(Any, cls))
    names = [item.name for item in fields]
    return names, [item.default for item in fields], attrgetter(*names)


@cache
def _encoder() -> json.JSONEncoder:
    """Return the encoder of every instance: to make one costs more than to use it."""
    return json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
