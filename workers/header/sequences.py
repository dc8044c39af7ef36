"""What the nested elements of a header say: doses, references, functional groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from workers import limits
from workers.errors import Exceeded
from workers.header import uids
from workers.header.elements import shown
from workers.header.facts import FrameFacts, SeriesReference

_KEYWORDS = (
    "RadiopharmaceuticalInformationSequence",
    "RelatedSeriesSequence",
    "ReferencedImageSequence",
    "SourceImageSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "ReferencedStructureSetSequence",
    "ReferencedRTPlanSequence",
    "RealWorldValueMappingSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_CONVERTED_SHARED = "UnassignedSharedConvertedAttributesSequence"
_CONVERTED_FRAME = "UnassignedPerFrameConvertedAttributesSequence"
# classic attributes that a legacy-converted PET keeps nested (PS3.3 A.70)
_CLASSIC_FIELDS = {
    "Units": "units",
    "SUVType": "suv_type",
    "DecayCorrection": "decay_correction",
    "AttenuationCorrectionMethod": "attenuation_correction_method",
    "SeriesTime": "series_time",
    "SeriesDate": "series_date",
    "PatientWeight": "patient_weight",
    "PatientSize": "patient_size",
    "CollimatorType": "collimator_type",
    "AcquisitionDate": "acquisition_date",
    "AcquisitionTime": "acquisition_time",
    "ActualFrameDuration": "actual_frame_duration",
    "FrameReferenceTime": "frame_reference_time",
    "DecayFactor": "decay_factor",
}
_CLASSIC_NUMBERS = ("patient_weight", "patient_size", "actual_frame_duration",
                    "frame_reference_time", "decay_factor")  # fmt: skip
_MAXIMUM_REFERENCES = 64
_NO_TEXT = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN"})


@cache
def SEQUENCES() -> frozenset[int]:  # noqa: N802 - a constant that is made on first use
    """Return the tags of the sequences that are decoded."""
    tags = {tag_for_keyword(keyword) for keyword in (*_KEYWORDS, _CONVERTED_SHARED)}
    return frozenset(int(tag) for tag in tags if tag is not None)


def sequence_facts(nested: Dataset, unreadable: list[str]) -> dict[str, Any]:
    """Read fields of InstanceFacts out of the decoded sequences."""
    facts: dict[str, Any] = {}
    shared = _first(nested, "SharedFunctionalGroupsSequence")
    converted = _first(shared, _CONVERTED_SHARED) or _first(nested, _CONVERTED_SHARED)
    if converted is not None:
        facts.update(_classic(converted))
        facts.update(_dose(_first(converted, "RadiopharmaceuticalInformationSequence")))
    facts.update(_dose(_first(nested, "RadiopharmaceuticalInformationSequence")))
    facts["references"] = tuple(itertools.islice(_references(nested), _MAXIMUM_REFERENCES))
    facts.update(_dictionary_references(nested))
    frames = tuple(_frames(nested, shared, unreadable))
    if frames:
        facts["frames"] = frames
    mapping = _first(nested, "RealWorldValueMappingSequence")
    units = _units_of(mapping) or (frames[0].real_world_value_units if frames else None)
    if units:
        facts["real_world_value_units"] = units
    return {name: value for name, value in facts.items() if value is not None}


def _dose(item: Dataset | None) -> dict[str, Any]:
    if item is None:
        return {}
    nuclide = _first(item, "RadionuclideCodeSequence")
    return {
        "radiopharmaceutical": _text(item, "Radiopharmaceutical"),
        "radiopharmaceutical_start_time": _text(item, "RadiopharmaceuticalStartTime"),
        "radiopharmaceutical_start_date_time": _text(item, "RadiopharmaceuticalStartDateTime"),
        "radionuclide_total_dose": _number(item, "RadionuclideTotalDose"),
        "radionuclide_half_life": _number(item, "RadionuclideHalfLife"),
        "radionuclide_code": _text(nuclide, "CodeMeaning") or _text(nuclide, "CodeValue"),
    }


def _classic(item: Dataset) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for keyword, name in _CLASSIC_FIELDS.items():
        read = _number if name in _CLASSIC_NUMBERS else _text
        facts[name] = read(item, keyword)
    corrected = _text(item, "CorrectedImage")
    if corrected:
        facts["corrected_image"] = tuple(corrected.split("\\"))
    series_type = _text(item, "SeriesType")
    if series_type:
        facts["series_type"] = tuple(series_type.split("\\"))
    return facts


def _references(nested: Dataset) -> Iterator[SeriesReference]:
    for item in _items(nested, "RelatedSeriesSequence"):
        purpose = _text(_first(item, "PurposeOfReferenceCodeSequence"), "CodeValue")
        series = _text(item, "SeriesInstanceUID")
        yield SeriesReference("RelatedSeriesSequence", series, None, purpose)
    for kind in ("ReferencedImageSequence", "SourceImageSequence"):
        for item in _items(nested, kind):
            purpose = _text(_first(item, "PurposeOfReferenceCodeSequence"), "CodeValue")
            instance = _text(item, "ReferencedSOPInstanceUID")
            yield SeriesReference(kind, None, instance, purpose)
    for item in _items(nested, "ReferencedSeriesSequence"):
        yield SeriesReference("ReferencedSeriesSequence", _text(item, "SeriesInstanceUID"))


def _dictionary_references(nested: Dataset) -> dict[str, Any]:
    """Return reference_ct, _rs, _pl and _frame as they stand in the header (dictionary)."""
    frame = _first(nested, "ReferencedFrameOfReferenceSequence")
    study = _first(frame, "RTReferencedStudySequence")
    series = _first(study, "RTReferencedSeriesSequence")
    ct = (
        _text(series, "SeriesInstanceUID")
        or _text(_first(nested, "ReferencedSeriesSequence"), "SeriesInstanceUID")
        or _text(_first(nested, "ReferencedImageSequence"), "ReferencedSOPInstanceUID")
    )
    structure = _first(nested, "ReferencedStructureSetSequence")
    plan = _first(nested, "ReferencedRTPlanSequence")
    return {
        "reference_ct": ct,
        "reference_rs": _text(structure, "ReferencedSOPInstanceUID"),
        "reference_pl": _text(plan, "ReferencedSOPInstanceUID"),
        "reference_frame": _text(frame, "FrameOfReferenceUID"),
    }


def _frames(nested: Dataset, shared: Dataset | None, unreadable: list[str]) -> Iterator[FrameFacts]:
    for item in _items(nested, "PerFrameFunctionalGroupsSequence"):
        yield _frame(item, shared, unreadable)


def _frame(item: Dataset, shared: Dataset | None, unreadable: list[str]) -> FrameFacts:
    def group(keyword: str) -> Dataset | None:
        return _first(item, keyword) or _first(shared, keyword)

    content = group("FrameContentSequence")
    measures = group("PixelMeasuresSequence")
    rescale = group("PixelValueTransformationSequence")
    mapping = group("RealWorldValueMappingSequence")
    position = _vector(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = _vector(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if position is None and "PlanePositionSequence" in item:
        unreadable.append("PlanePositionSequence")
    frame_type = None
    for keyword in ("PETFrameTypeSequence", "CTImageFrameTypeSequence", "MRImageFrameTypeSequence"):
        frame_type = frame_type or _text(group(keyword), "FrameType")
    indices = _vector(content, "DimensionIndexValues", None)
    return FrameFacts(
        image_position_patient=position,  # type: ignore[arg-type]
        image_orientation_patient=orientation,  # type: ignore[arg-type]
        pixel_spacing=_vector(measures, "PixelSpacing", 2),  # type: ignore[arg-type]
        slice_thickness=_number(measures, "SliceThickness"),
        rescale_slope=_number(rescale, "RescaleSlope"),
        rescale_intercept=_number(rescale, "RescaleIntercept"),
        rescale_type=_text(rescale, "RescaleType"),
        frame_type=tuple(frame_type.split("\\")) if frame_type else (),
        dimension_index_values=tuple(int(index) for index in indices or ()),
        temporal_position_index=_integer(content, "TemporalPositionIndex"),
        frame_acquisition_number=_integer(content, "FrameAcquisitionNumber"),
        frame_acquisition_date_time=_text(content, "FrameAcquisitionDateTime"),
        frame_reference_date_time=_text(content, "FrameReferenceDateTime"),
        frame_acquisition_duration=_number(content, "FrameAcquisitionDuration"),
        decay_factor=_number(group("PETFrameCorrectionFactorsSequence"), "DecayFactor"),
        real_world_value_units=_units_of(mapping),
        real_world_value_slope=_number(mapping, "RealWorldValueSlope"),
        real_world_value_intercept=_number(mapping, "RealWorldValueIntercept"),
        classic=tuple(_converted(_first(item, _CONVERTED_FRAME))),
    )


def _converted(item: Dataset | None) -> Iterator[tuple[str, str]]:
    for tag in item.keys() if item is not None else ():
        if tag.is_private or item is None:
            continue
        element = _element(item, tag)
        if element.keyword and element.VR not in _NO_TEXT:
            value = element.value
            words = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
            yield element.keyword, words


def _units_of(mapping: Dataset | None) -> str | None:
    return _text(_first(mapping, "MeasurementUnitsCodeSequence"), "CodeValue")


def _items(dataset: Dataset | None, keyword: str) -> list[Dataset]:
    if dataset is None or keyword not in dataset:
        return []
    value = dataset[keyword].value
    return list(value) if isinstance(value, Sequence) else []


def _first(dataset: Dataset | None, keyword: str) -> Dataset | None:
    items = _items(dataset, keyword)
    return items[0] if items else None


def _text(dataset: Dataset | None, keyword: str) -> str | None:
    tag = tag_for_keyword(keyword)
    if dataset is None or tag is None or tag not in dataset:
        return None
    value = _element(dataset, tag).value
    if value is None:
        return None
    if isinstance(value, MultiValue | list | tuple):
        return uids.without_nul("\\".join(str(part).strip(" \0") for part in value)) or None
    return uids.without_nul(str(value).strip(" \0")) or None


def _element(dataset: Dataset, tag: int) -> DataElement:
    """Decode one element, unless its value is so long that decoding it is what somebody is after.

    Sequences are bounded by their elements (nesting.py).
    """
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.VR != "SQ":
        length = len(raw.value or b"")
        if length > limits.VALUE.maximum:
            raise Exceeded(limits.VALUE, length, f"nested element {shown(tag)} has")
    return dataset[tag]


def _number(dataset: Dataset | None, keyword: str) -> float | None:
    text = _text(dataset, keyword)
    if text is None:
        return None
    try:
        return float(text.split("\\")[0])
    except ValueError:
        return None


def _integer(dataset: Dataset | None, keyword: str) -> int | None:
    value = _number(dataset, keyword)
    return int(value) if value is not None and math.isfinite(value) else None


def _vector(dataset: Dataset | None, keyword: str, length: int | None) -> tuple[float, ...] | None:
    text = _text(dataset, keyword)
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return None
    return values if length is None or len(values) == length else None
