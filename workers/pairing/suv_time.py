"""How long the dose decayed before the moment that a PET series is corrected to.

The order follows the QIBA pseudo-code, PS3.3 C.8.9.1 and the IBSI SUV work. Every candidate of the
reference time is kept, so that a reader can see what spoke for and against the chosen one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from workers.pairing.suv_facts import LONGEST_SECONDS, PetForm, SuvFacts, SuvSlice
from workers.pairing.times import (
    at,
    is_dated,
    iso,
    on_nearest_day,
    parse_time,
    seconds_between,
)

EARLY_SECONDS = 300.0
"""Clocks of dose calibrator and scanner may disagree so much."""
SERIES_TOLERANCE_SECONDS = 1.0
"""Siemens writes AcquisitionTime microseconds before SeriesTime."""
CONSTANT_SECONDS = 2.0
LONG_HALF_LIFE_SECONDS = 41_400.0
HALF_DAY_SECONDS = 43_200.0


@dataclass(frozen=True, slots=True)
class ReferenceCandidate:
    """One way to tell the reference time, and what became of it."""

    source: str
    time: str
    """ISO 8601, local; only a time of day where no date is known."""
    chosen: bool
    note: str = ""


@dataclass(frozen=True)
class DecayTiming:
    """The decay time of each slice in seconds, or why it cannot be told."""

    seconds: tuple[float, ...] | None
    """One value a slice."""
    method: str
    reference: datetime | None = None
    candidates: tuple[ReferenceCandidate, ...] = ()
    refusals: tuple[str, ...] = ()
    adaptations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Injection:
    moment: datetime | None
    note: str = ""
    refusal: str = ""
    adaptation: str = ""


def average_count_seconds(half_life: float, duration: float) -> float:
    """Return Tave: the time into a frame when its mean count rate is met (PS3.3 C.8.9.4)."""
    x = math.log(2) / half_life * duration
    return duration / 2 if x < 1e-6 else duration * math.log(x / -math.expm1(-x)) / x


def decay_timing(facts: SuvFacts, half_life: float | None) -> DecayTiming:
    """Decide the decay time by DecayCorrection: ADMIN, NONE or START."""
    kind = facts.decay_correction
    if kind == "ADMIN":
        zeros = tuple(0.0 for _ in facts.slices)
        return DecayTiming(zeros, "decay corrected to the administration (ADMIN)")
    if kind not in ("START", "NONE"):
        what = f"DecayCorrection {kind!r} is not known" if kind else "no DecayCorrection"
        return DecayTiming(None, "", refusals=(f"{what}: to which time the image is corrected",))
    if kind == "NONE":
        return _uncorrected(facts, half_life)
    reference, candidates, note = _reference(facts, half_life)
    if reference is None:
        refusal = "no reference time: neither SeriesTime nor AcquisitionTime can be read"
        if facts.form is PetForm.ENHANCED:
            refusal = "no DecayCorrectionDateTime"
        return DecayTiming(None, "", candidates=candidates, refusals=(refusal,))
    source = next(one.source for one in candidates if one.chosen)
    method = f"decay corrected to the start (START), reference {source}"
    notes = (note,) if note else ()
    if half_life is None:
        return DecayTiming(None, method, reference, candidates, notes=notes)
    injection = _injection(facts, reference, half_life)
    if injection.moment is None:
        return DecayTiming(
            None, method, reference, candidates, refusals=(injection.refusal,), notes=notes
        )
    elapsed = seconds_between(injection.moment, reference)
    return DecayTiming(
        tuple(elapsed for _ in facts.slices),
        method,
        reference,
        candidates,
        adaptations=(injection.adaptation,) if injection.adaptation else (),
        notes=(*notes, *((injection.note,) if injection.note else ())),
    )


def _uncorrected(facts: SuvFacts, half_life: float | None) -> DecayTiming:
    """Treat every slice at its own average-count time."""
    method = "not decay corrected (NONE), each slice at its average-count time"
    if half_life is None:
        return DecayTiming(None, method)
    moments = [_average_moment(one, half_life) for one in facts.slices]
    known = [one for one in moments if one is not None]
    if not known or len(known) < len(moments):
        refusal = (
            "DecayCorrection NONE needs AcquisitionTime and ActualFrameDuration of every slice"
        )
        if facts.form is PetForm.ENHANCED:
            refusal = "DecayCorrected NO needs FrameReferenceDateTime of every frame"
        return DecayTiming(None, method, refusals=(refusal,))
    reference = min(known)
    chosen = ReferenceCandidate("average-count time of the first slice", iso(reference), True)
    injection = _injection(facts, reference, half_life)
    if injection.moment is None:
        return DecayTiming(None, method, reference, (chosen,), refusals=(injection.refusal,))
    start = injection.moment
    return DecayTiming(
        tuple(seconds_between(start, one) for one in known),
        method,
        reference,
        (chosen,),
        adaptations=(injection.adaptation,) if injection.adaptation else (),
        notes=(injection.note,) if injection.note else (),
    )


def _average_moment(one: SuvSlice, half_life: float) -> datetime | None:
    if one.frame_reference is not None:
        return one.frame_reference
    if one.acquired is None or one.duration_s is None:
        return None
    return one.acquired + timedelta(seconds=average_count_seconds(half_life, one.duration_s))


def _reference(
    facts: SuvFacts, half_life: float | None
) -> tuple[datetime | None, tuple[ReferenceCandidate, ...], str]:
    """Choose the reference time of a START series; returns it, every candidate, and a note."""
    if facts.form is PetForm.ENHANCED:
        moment = facts.decay_reference
        if moment is None:
            return None, (), ""
        return moment, (ReferenceCandidate("DecayCorrectionDateTime", iso(moment), True),), ""
    acquired = [one.acquired for one in facts.slices if one.acquired is not None]
    earliest = min(acquired, default=None)
    anchor = earliest or facts.series_started
    found: list[tuple[str, datetime, str]] = []  # source, moment, why not ("" = usable)
    if facts.vendor_reference is not None:
        source, private = facts.vendor_reference
        clock = private - at(private.date(), timedelta())
        moment = on_nearest_day(clock, anchor) if anchor else at(None, clock)
        found.append((f"private time of {source}", moment, ""))
    computed, computed_source, beds = _back_computed(facts, half_life)
    if facts.series_started is not None:
        why = _against_series_time(facts.series_started, earliest, computed, beds)
        found.append(("SeriesTime", facts.series_started, why))
    if computed is not None:
        found.append((computed_source, computed, ""))
    if earliest is not None:
        found.append(("earliest AcquisitionTime", earliest, ""))
    chosen = next((index for index, one in enumerate(found) if not one[2]), None)
    candidates = tuple(
        ReferenceCandidate(source, iso(moment), index == chosen, why)
        for index, (source, moment, why) in enumerate(found)
    )
    if chosen is None:
        return None, candidates, ""
    source, moment, _ = found[chosen]
    note = ""
    if earliest is None:
        note = f"{source} is used unchecked: no AcquisitionTime"
    elif seconds_between(moment, earliest) < -SERIES_TOLERANCE_SECONDS:
        note = f"{source} lies after the first acquisition ({iso(earliest)})"
    return moment, candidates, note


def _against_series_time(
    series: datetime, earliest: datetime | None, computed: datetime | None, beds: int
) -> str:
    """Return why SeriesTime is not the reference; "" when it is."""
    if earliest is not None:
        late = seconds_between(earliest, series)
        if late > SERIES_TOLERANCE_SECONDS:
            return f"{late:.0f} s later than the first acquisition: of a processed series"
    if computed is not None and beds >= 2:
        apart = abs(seconds_between(computed, series))
        if apart > CONSTANT_SECONDS:
            return f"{apart:.0f} s from the time that {beds} beds agree on"
    return ""


def _back_computed(facts: SuvFacts, half_life: float | None) -> tuple[datetime | None, str, int]:
    """Compute the reference from each slice's own decay; None unless it is constant.

    DecayFactor 1.0 says nothing (Philips writes it always). Where no slice has another,
    FrameReferenceTime serves, except on GE, which counts it to the start of the frame.
    """
    if half_life is None:
        return None, "", 0
    from_factor = all(one.decay_factor is None or one.decay_factor <= 1.0 for one in facts.slices)
    by_frame_time = from_factor and not facts.manufacturer.upper().startswith("GE")
    moments: list[datetime] = []
    for one in facts.slices:
        if one.acquired is None or one.duration_s is None:
            return None, "", 0
        if by_frame_time:
            since = one.frame_reference_s
        elif one.decay_factor is not None and one.decay_factor > 1.0:
            since = half_life * math.log2(one.decay_factor)
        else:
            since = None
        if since is None or since > LONGEST_SECONDS:
            return None, "", 0
        ahead = average_count_seconds(half_life, one.duration_s) - since
        moments.append(one.acquired + timedelta(seconds=ahead))
    if (max(moments) - min(moments)).total_seconds() >= CONSTANT_SECONDS:
        return None, "", 0
    middle = min(moments) + (max(moments) - min(moments)) / 2
    beds = len({one.acquired for one in facts.slices})
    if by_frame_time and beds < 2 and facts.manufacturer.upper().startswith("PHILIPS"):
        return None, "", 0  # its AcquisitionTime may be the series', FrameReferenceTime is not
    source = "FrameReferenceTime" if by_frame_time else "DecayFactor"
    return middle, f"back-computed from {source}", beds


def _injection(facts: SuvFacts, reference: datetime, half_life: float) -> _Injection:
    """Find the administration before a reference time, or refuse."""
    stamp = facts.start_date_time
    if stamp is not None and is_dated(reference):
        elapsed = seconds_between(stamp, reference)
        if half_life >= LONG_HALF_LIFE_SECONDS:
            if 0.0 <= elapsed < 5 * half_life:
                return _Injection(stamp)
        elif -EARLY_SECONDS <= elapsed < 2 * half_life:
            return _Injection(stamp, adaptation=_early(elapsed))
    if half_life >= LONG_HALF_LIFE_SECONDS:
        return _Injection(
            None,
            refusal="the administration date cannot be recovered: with a half-life of"
            f" {half_life:.0f} s only a RadiopharmaceuticalStartDateTime within five half-lives"
            " before the reference will do",
        )
    clock = parse_time(facts.start_time)
    source = "RadiopharmaceuticalStartTime"
    if stamp is not None:
        clock = stamp - at(stamp.date(), timedelta())
        source = "the time of day of RadiopharmaceuticalStartDateTime"
    if clock is None:
        return _Injection(None, refusal="no administration time (RadiopharmaceuticalStartTime)")
    moment = at(reference.date(), clock)
    if (moment - reference).total_seconds() > EARLY_SECONDS:
        moment -= timedelta(days=1)
    elapsed = (reference - moment).total_seconds()
    limit = min(HALF_DAY_SECONDS, 6 * half_life)
    if elapsed >= limit:
        return _Injection(
            None,
            refusal=f"administration {elapsed / 3600:.1f} h before the reference time"
            f" {iso(reference)} by its time of day: more than {limit / 3600:.1f} h"
            " cannot be trusted",
        )
    return _Injection(moment, note=f"administration by {source}", adaptation=_early(elapsed))


def _early(elapsed: float) -> str:
    if elapsed >= 0:
        return ""
    return f"the administration is {-elapsed:.0f} s after the reference time: computed as it is"
