"""What a PET series says of its units, dose, weight and times, whichever object it comes as.

Classic PET has one instance a slice; Enhanced PET (PS3.3 A.56) keeps times and units per frame;
Legacy Converted Enhanced PET (A.70) keeps the classic attributes, nested. This module brings them
to one form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from workers.header.facts import FrameFacts, InstanceFacts
from workers.pairing.times import local_moment, moment_of, parse_date_time, parse_offset

ENHANCED_PET = "1.2.840.10008.5.1.4.1.1.130"
LEGACY_PET = "1.2.840.10008.5.1.4.1.1.128.1"
PHILIPS = "Philips PET Private Group"
GE = "GEMS_PETD_01"
SIEMENS = "SIEMENS MED PT"
_MAKERS = {PHILIPS: "PHILIPS", GE: "GE ", SIEMENS: "SIEMENS"}
# UCUM codes of CID 84/85 (PS3.16), braces and case aside -> Units, SUVType
_UCUM = {
    "bq/ml": ("BQML", ""),
    "g/ml": ("GML", "BW"),
    "suvbwg/ml": ("GML", "BW"),
    "suvlbmg/ml": ("GML", "LBM"),
    "suvlbm(james128)g/ml": ("GML", "LBMJAMES128"),
    "suvlbm(janma)g/ml": ("GML", "LBMJANMA"),
    "suvibwg/ml": ("GML", "IBW"),
    "suvbsacm2/ml": ("CM2ML", "BSA"),
    "cm2/ml": ("CM2ML", "BSA"),
    "counts": ("CNTS", ""),
    "counts/s": ("CPS", ""),
    "propcounts": ("PROPCNTS", ""),
    "propcounts/s": ("PROPCPS", ""),
}

LONGEST_SECONDS = 1e7
"""No frame, and no time since the reference, is longer."""

T = TypeVar("T")


class PetForm(StrEnum):
    """Which information object the series consists of."""

    CLASSIC = "classic"
    ENHANCED = "enhanced"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class SuvSlice:
    """What differs from slice to slice."""

    acquired: datetime | None = None
    """Start of its acquisition."""
    duration_s: float | None = None
    decay_factor: float | None = None
    frame_reference_s: float | None = None
    """FrameReferenceTime: seconds from the series reference to the average-count time."""
    frame_reference: datetime | None = None
    """Enhanced: FrameReferenceDateTime."""
    suv_scale: float | None = None
    """Philips (7053,xx00); None when absent or zero, as Philips writes it."""
    activity_scale: float | None = None
    """Philips (7053,xx09)."""
    real_world_ratio: float | None = 1.0
    """Real world value / rescaled value of an enhanced frame; None when no factor leads there."""


@dataclass(frozen=True)
class SuvFacts:
    """What holds for the whole series."""

    form: PetForm
    slices: tuple[SuvSlice, ...]
    units: str | None
    suv_type: str
    corrected: frozenset[str]
    """Corrections that every slice has."""
    attenuation: bool | None
    decay_correction: str
    manufacturer: str
    weight: float | None
    size: float | None
    sex: str
    dose: float | None
    half_life: float | None
    nuclide: str
    start_time: str | None
    start_date_time: datetime | None
    start_has_date: bool
    series_started: datetime | None
    decay_reference: datetime | None
    """Enhanced: DecayCorrectionDateTime."""
    vendor_reference: tuple[str, datetime] | None
    """Private scan or decay reference time and its creator; only the time of day may be trusted."""
    orphan_private: bool = False
    """A private value was used whose block names no creator."""
    conflicts: tuple[tuple[str, str], ...] = field(default=())
    """(keyword, words) of what must agree over a series and does not."""


def suv_facts(instances: Sequence[InstanceFacts]) -> SuvFacts:
    """Bring the instances of one series to one form, slices in the order given."""
    first = instances[0]
    form = {ENHANCED_PET: PetForm.ENHANCED, LEGACY_PET: PetForm.LEGACY}.get(
        first.sop_class_uid, PetForm.CLASSIC
    )
    zone = parse_offset(first.timezone_offset_from_utc)
    conflicts: list[tuple[str, str]] = []

    def agreed(keyword: str, values: Iterable[T | None]) -> T | None:
        distinct = list(dict.fromkeys(value for value in values if value not in (None, "")))
        if len(distinct) > 1:
            shown = ", ".join(str(value) for value in distinct[:3])
            conflicts.append((keyword, f"{keyword} differs within the series ({shown})"))
        return distinct[0] if distinct else None

    start = agreed(
        "RadiopharmaceuticalStartDateTime",
        (one.radiopharmaceutical_start_date_time for one in instances),
    )
    stamp = parse_date_time(start)
    decay_reference = agreed(
        "DecayCorrectionDateTime", (one.decay_correction_date_time for one in instances)
    )
    reference_stamp = parse_date_time(decay_reference)
    if zone is None and reference_stamp is not None:
        zone = reference_stamp.offset
    units, suv_type = _units(form, instances, agreed)
    started = [
        moment_of(one.series_date or one.acquisition_date or one.study_date, one.series_time)
        for one in instances
    ]
    return SuvFacts(
        form=form,
        slices=tuple(one for facts in instances for one in _slices(facts, form, zone)),
        units=units,
        suv_type=suv_type,
        corrected=frozenset.intersection(*(frozenset(one.corrected_image) for one in instances)),
        attenuation=_attenuation(form, instances),
        decay_correction=agreed("DecayCorrection", map(_decay_correction, instances)) or "",
        manufacturer=first.manufacturer,
        weight=agreed("PatientWeight", (one.patient_weight for one in instances)),
        size=agreed("PatientSize", (one.patient_size for one in instances)),
        sex=(agreed("PatientSex", (one.patient_sex for one in instances)) or "").upper(),
        dose=agreed("RadionuclideTotalDose", (one.radionuclide_total_dose for one in instances)),
        half_life=agreed("RadionuclideHalfLife", (one.radionuclide_half_life for one in instances)),
        nuclide=first.radionuclide_code or "",
        start_time=agreed(
            "RadiopharmaceuticalStartTime",
            (one.radiopharmaceutical_start_time for one in instances),
        ),
        start_date_time=local_moment(stamp, zone),
        start_has_date=stamp is not None,
        series_started=min((one for one in started if one is not None), default=None),
        decay_reference=local_moment(reference_stamp, zone),
        vendor_reference=_vendor_reference(first),
        orphan_private=any(one.creator == "" for one in first.private),
        conflicts=tuple(conflicts),
    )


def _units(
    form: PetForm, instances: Sequence[InstanceFacts], agreed: object
) -> tuple[str | None, str]:
    assert callable(agreed)  # noqa: S101 - a closure; its type cannot be written shorter
    if form is PetForm.ENHANCED:
        codes = [one.real_world_value_units for one in instances]
        codes += [frame.real_world_value_units for one in instances for frame in one.frames]
        code = agreed("MeasurementUnitsCodeSequence", codes)
        if code is None:
            return None, ""
        plain = str(code).lower().replace("{", "").replace("}", "").strip()
        for suffix in ("g/ml", "cm2/ml"):
            if plain.startswith(suffix) and len(plain) > len(suffix):  # g/ml{SUVbw} is seen too
                plain = plain[len(suffix) :] + suffix
        return _UCUM.get(plain, (str(code), ""))
    units = agreed("Units", (one.units for one in instances))
    kind = agreed("SUVType", (one.suv_type for one in instances))
    return (str(units).upper() if units else None), str(kind or "").upper()


def _attenuation(form: PetForm, instances: Sequence[InstanceFacts]) -> bool | None:
    said = {(one.attenuation_corrected or "").upper() for one in instances}
    if form is PetForm.CLASSIC or (form is PetForm.LEGACY and said == {""}):
        return all("ATTN" in one.corrected_image for one in instances)
    return True if said == {"YES"} else None if said == {""} else False


def _decay_correction(facts: InstanceFacts) -> str:
    if facts.sop_class_uid == ENHANCED_PET:
        return {"YES": "START", "NO": "NONE"}.get((facts.decay_corrected or "").upper(), "")
    return (facts.decay_correction or "").upper()


def _slices(facts: InstanceFacts, form: PetForm, zone: timedelta | None) -> tuple[SuvSlice, ...]:
    suv_scale, activity_scale = _philips(facts, "7053,xx00"), _philips(facts, "7053,xx09")
    if form is PetForm.CLASSIC or not facts.frames:
        milliseconds = facts.frame_reference_time
        return (
            SuvSlice(
                acquired=_acquired(facts, zone),
                duration_s=_positive_seconds(facts.actual_frame_duration),
                decay_factor=_finite(facts.decay_factor),
                frame_reference_s=_seconds(milliseconds),
                suv_scale=suv_scale,
                activity_scale=activity_scale,
            ),
        )
    return tuple(
        _frame_slice(facts, frame, zone, suv_scale, activity_scale) for frame in facts.frames
    )


def _frame_slice(
    facts: InstanceFacts,
    frame: FrameFacts,
    zone: timedelta | None,
    suv_scale: float | None,
    activity_scale: float | None,
) -> SuvSlice:
    nested = dict(frame.classic)
    day = nested.get("AcquisitionDate") or facts.acquisition_date or facts.series_date
    acquired = (
        local_moment(parse_date_time(frame.frame_acquisition_date_time), zone)
        or moment_of(day, nested.get("AcquisitionTime"))
        or _acquired(facts, zone)
    )
    milliseconds = _number(nested.get("FrameReferenceTime"), facts.frame_reference_time)
    duration = frame.frame_acquisition_duration
    if duration is None:
        duration = _number(nested.get("ActualFrameDuration"), facts.actual_frame_duration)
    decay_factor = frame.decay_factor
    if decay_factor is None:
        decay_factor = _number(nested.get("DecayFactor"), facts.decay_factor)
    return SuvSlice(
        acquired=acquired,
        duration_s=_positive_seconds(duration),
        decay_factor=_finite(decay_factor),
        frame_reference_s=_seconds(milliseconds),
        frame_reference=local_moment(parse_date_time(frame.frame_reference_date_time), zone),
        suv_scale=suv_scale,
        activity_scale=activity_scale,
        real_world_ratio=_real_world_ratio(frame),
    )


def _real_world_ratio(frame: FrameFacts) -> float | None:
    """Compare RealWorldValueMapping with the rescale, which the factor is multiplied with."""
    slope, intercept = frame.real_world_value_slope, frame.real_world_value_intercept or 0.0
    rescale, offset = frame.rescale_slope or 1.0, frame.rescale_intercept or 0.0
    if slope is None:
        return 1.0
    ratio = slope / rescale
    if not 0 < abs(ratio) < math.inf:
        return None
    return ratio if abs(intercept - offset * ratio) <= 1e-6 * max(1.0, abs(intercept)) else None


def _acquired(facts: InstanceFacts, zone: timedelta | None) -> datetime | None:
    day = facts.acquisition_date or facts.series_date or facts.study_date
    return moment_of(day, facts.acquisition_time) or local_moment(
        parse_date_time(facts.acquisition_date_time), zone
    )


def _philips(facts: InstanceFacts, element: str) -> float | None:
    value = _number(_private(facts, PHILIPS, element), None)
    return value if value is not None and 0 < value < math.inf else None


def _private(facts: InstanceFacts, creator: str, element: str) -> str | None:
    """Return a private value; a block without creator counts for its own maker alone."""
    value = facts.private_value(creator, element)
    if value is None and facts.manufacturer.upper().startswith(_MAKERS[creator]):
        value = facts.private_value("", element)
    return value


def _vendor_reference(facts: InstanceFacts) -> tuple[str, datetime] | None:
    for creator, element in ((GE, "0009,xx0d"), (SIEMENS, "0071,xx22")):
        stamp = parse_date_time(_private(facts, creator, element))
        if stamp is not None and stamp.has_time:
            return f"{creator} ({element})", stamp.moment
    return None


def _positive_seconds(milliseconds: float | None) -> float | None:
    seconds = _seconds(milliseconds)
    return seconds if seconds is not None and seconds > 0 else None


def _seconds(milliseconds: float | None) -> float | None:
    """Return seconds; None for what no frame of a PET lasts (NaN among it)."""
    if milliseconds is None or not abs(milliseconds) <= LONGEST_SECONDS * 1000:
        return None
    return milliseconds / 1000.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(text: str | None, otherwise: float | None) -> float | None:
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise
