"""Which PET and which CT come first, with the reasons of each.

PET: largest axial extent (5 % is a tie), then ORIGINAL, then the earliest acquisition (a delayed
scan must not win), then the thinnest slices. CT: the PET's own reference, the frame of reference,
the covered fraction, then original, soft kernel, close in time, and at last the SeriesNumber.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.completeness.series import SeriesState
from workers.header.facts import InstanceFacts
from workers.pairing.coverage import Coverage, coverage_of, is_sufficient
from workers.pairing.evidence import SeriesEvidence
from workers.pairing.times import local_moment, moment_of, parse_date_time

FOR_ATTENUATION_CORRECTION = "122403"
"""DCM code of PurposeOfReferenceCodeSequence (PS3.16 CID 7203)."""
EXTENT_TIE = 0.95
_SHARP_WORDS = ("LUNG", "BONE", "EDGE", "ULTRA", "CHEST", "SHARP")


@dataclass(frozen=True)
class RankedCt:
    """A CT as seen from one PET."""

    series: SeriesEvidence
    coverage: Coverage | None
    reference: str
    """How the PET refers to it; "" when it does not."""
    same_frame: bool
    seconds_apart: float
    sufficient: bool

    @property
    def fraction(self) -> float:
        """Return the covered fraction, 0 where it cannot be told."""
        return self.coverage.fraction if self.coverage else 0.0


def rank_pets(pets: Sequence[SeriesEvidence]) -> list[SeriesEvidence]:
    """Order PET candidates, best first."""
    left = sorted(pets, key=_extent, reverse=True)
    ranked: list[SeriesEvidence] = []
    while left:
        longest = _extent(left[0])
        tied = [one for one in left if _extent(one) >= EXTENT_TIE * longest] or left[:1]
        ranked += sorted(tied, key=_pet_key)
        left = [one for one in left if one not in tied]
    return ranked


def pet_reasons(pet: SeriesEvidence) -> tuple[str, ...]:
    """Describe what ranked a PET."""
    reasons = [f"{_extent(pet):.0f} mm long"]
    if is_original(pet):
        reasons.append("ORIGINAL")
    if acquired(pet.instances) is None:
        reasons.append("acquisition time unknown")
    if pet.stack is not None and pet.stack.step:
        reasons.append(f"slices of {pet.stack.step:.2f} mm")
    return (*reasons, *pet.completeness.reasons)


def rank_cts(
    pet: SeriesEvidence, cts: Sequence[SeriesEvidence], preference: str, minimum: float
) -> list[RankedCt]:
    """Order CT candidates for one PET, best first."""
    seen = [_seen_from(pet, ct) for ct in cts]
    if preference == "diagnostic":
        return sorted(seen, key=lambda one: _diagnostic_key(one, minimum))
    return sorted(seen, key=_attenuation_key)


def ct_reasons(one: RankedCt) -> tuple[str, ...]:
    """Describe what ranked a CT."""
    frame = "same frame of reference" if one.same_frame else "another frame of reference"
    reasons = [one.reference] if one.reference else []
    reasons.append(frame)
    covers = (
        "coverage cannot be told" if one.coverage is None else f"covers {percent(one.fraction)}"
    )
    reasons.append(f"{covers} of the PET" if one.coverage else covers)
    if is_original(one.series):
        reasons.append("ORIGINAL")
    kernel = "\\".join(one.series.instances[0].convolution_kernel)
    if kernel:
        reasons.append(f"{'sharp kernel' if is_sharp_kernel(kernel) else 'kernel'} {kernel}")
    if math.isfinite(one.seconds_apart):
        reasons.append(f"{one.seconds_apart / 60:.0f} min from the PET")
    if not one.series.same_study:
        reasons.append("of another study of the patient")
    if one.series.completeness.state is SeriesState.RECEIVING:
        slices = len(one.series.instances)
        return (*reasons, f"CT {slices} slices so far: sufficient where gap-free over the PET")
    return (*reasons, *one.series.completeness.reasons)


def percent(fraction: float) -> str:
    """Write a fraction; only the whole is 100%."""
    return f"{int(fraction * 1000) / 10:g}%"


def reference_to(pet: SeriesEvidence, ct: SeriesEvidence) -> str:
    """Say how the PET refers to a CT: by series, by image, or by the name of its description."""
    images = {one.sop_instance_uid for one in ct.instances}
    references = {one for facts in pet.instances for one in facts.references}
    for one in references:
        if (
            one.kind == "RelatedSeriesSequence"
            and one.purpose == FOR_ATTENUATION_CORRECTION
            and one.series_instance_uid == ct.series_uid
        ):
            return "the PET names it as its CT for attenuation correction"
    if any(
        one.kind == "ReferencedImageSequence" and one.sop_instance_uid in images
        for one in references
    ):
        return "the PET references its images"
    method = pet.instances[0].attenuation_correction_method or ""
    name = _plain(ct.instances[0].series_description)
    after_comma = method.split(",", 1)[-1]
    parts = {_plain(part) for part in (*re.split(r"[,:^\\]", method), after_comma, method)}
    if name and name in parts:
        return "the PET's AttenuationCorrectionMethod names it"
    return ""


def same_frame(pet: SeriesEvidence, ct: SeriesEvidence) -> bool:
    """Tell whether both share one non-empty FrameOfReferenceUID."""
    frames = {one.frame_of_reference_uid for one in (*pet.instances, *_members(ct))}
    return len(frames) == 1 and None not in frames and "" not in frames


def acquired(instances: Sequence[InstanceFacts]) -> datetime | None:
    """Return the earliest acquisition of a series, by its own clock."""
    moments = [
        moment_of(one.acquisition_date or one.series_date, one.acquisition_time)
        or local_moment(parse_date_time(one.acquisition_date_time), None)
        or moment_of(one.series_date or one.study_date, one.series_time)
        for one in instances
    ]
    return min((one for one in moments if one is not None), default=None)


def is_original(series: SeriesEvidence) -> bool:
    """Tell whether ImageType begins with ORIGINAL."""
    return series.instances[0].image_type[:1] == ("ORIGINAL",)


def is_sharp_kernel(kernel: str) -> bool:
    """Recognise kernels for lung and bone by the makers' naming (heuristic); no other is sharp.

    GE: words. Siemens: B50f, Br59, Bl64 and above. Canon: FC30 and above. Philips: D, E, L, YA...
    """
    text = kernel.upper().split("\\")[0].strip()
    if any(word in text for word in _SHARP_WORDS):
        return True
    canon = re.fullmatch(r"FC(\d{2})", text)
    if canon:
        return int(canon[1]) >= 30
    siemens = re.match(r"[BHIJQTU][A-Z]?(\d{2})", text)
    if siemens:
        return int(siemens[1]) >= 50
    return re.fullmatch(r"D|E|F|L|Y[A-Z]", text) is not None


def _members(series: SeriesEvidence) -> tuple[InstanceFacts, ...]:
    """Return the instances of the main stack: an embedded localizer may have its own frame."""
    if series.stack is None:
        return series.instances
    return tuple(
        series.instances[index]
        for index in dict.fromkeys(one.instance for one in series.stack.slices)
    )


def _seen_from(pet: SeriesEvidence, ct: SeriesEvidence) -> RankedCt:
    coverage = coverage_of(pet.stack, ct.stack)
    mine, other = acquired(pet.instances), acquired(ct.instances)
    apart = math.inf
    if mine is not None and other is not None:
        apart = abs((mine - other).total_seconds())
    return RankedCt(
        series=ct,
        coverage=coverage,
        reference=reference_to(pet, ct),
        same_frame=same_frame(pet, ct),
        seconds_apart=apart,
        sufficient=is_sufficient(ct, coverage),
    )


def _extent(series: SeriesEvidence) -> float:
    return series.stack.extent if series.stack is not None else 0.0


def _number(series: SeriesEvidence) -> int:
    number = series.instances[0].series_number
    return number if number is not None else 1 << 31


def _pet_key(pet: SeriesEvidence) -> tuple[bool, float, float, int, str]:
    moment = acquired(pet.instances)
    step = pet.stack.step if pet.stack is not None else None
    return (
        not is_original(pet),
        moment.timestamp() if moment is not None else math.inf,
        step or math.inf,
        _number(pet),
        pet.series_uid,
    )


def _attenuation_key(one: RankedCt) -> tuple[object, ...]:
    return (not one.reference, not one.same_frame, -round(one.fraction, 2), *_finer(one))


def _diagnostic_key(one: RankedCt, minimum: float) -> tuple[object, ...]:
    """Order for reading: the CT for attenuation correction last among those that reach."""
    step = one.series.stack.step if one.series.stack is not None else None
    return (
        not one.same_frame,
        one.fraction < minimum,
        bool(one.reference),
        step or math.inf,
        -round(one.fraction, 2),
        *_finer(one),
    )


def _finer(one: RankedCt) -> tuple[bool, bool, float, bool, int, str]:
    kernel = "\\".join(one.series.instances[0].convolution_kernel)
    return (
        not is_original(one.series),
        is_sharp_kernel(kernel),
        one.seconds_apart,
        not one.series.same_study,
        _number(one.series),
        one.series.series_uid,
    )


def _plain(text: str) -> str:
    return " ".join(text.upper().split())
