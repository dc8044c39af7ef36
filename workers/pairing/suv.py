"""The SUV factor of a PET series: computed, adapted with its reasons, or refused.

SUVbw = (stored x RescaleSlope + RescaleIntercept) x factor. The decision table rests on the QIBA
pseudo-code, PS3.3 C.8.9 and the IBSI SUV work. Nothing is invented: a missing weight, dose or time
refuses, and every refusal of a series is named, not only the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from workers.header.facts import InstanceFacts
from workers.pairing.suv_body import Checked, body_grams, check_dose, check_half_life, check_weight
from workers.pairing.suv_facts import PetForm, SuvFacts, suv_facts
from workers.pairing.suv_time import DecayTiming, ReferenceCandidate, decay_timing
from workers.pairing.times import iso

PHILIPS_CHECK = 0.05
"""The ratio of both Philips factors may be so far off ours: real, agreed series are up to 3.4 %."""
MOST_HALF_LIVES = 20.0
"""A millionth of the dose is left: nothing of it can be seen."""
_SAME = 1e-12


class SuvStatus(StrEnum):
    """What can be said of a series."""

    OK = "ok"
    ADAPTED = "adapted"
    REFUSED = "refused"


@dataclass(frozen=True)
class SuvVerdict:
    """The factor that turns rescaled values into SUVbw, with everything it rests on.

    `factor` is one number, or one a slice (frame) in the order given where they differ;
    `dt_seconds` likewise.
    """

    status: SuvStatus
    factor: float | tuple[float, ...] | None
    method: str
    reference_time: str | None
    reasons: tuple[str, ...]
    label: str
    """suvbw, suvbw_adapted, or the Units of the series where SUV is refused."""
    candidates: tuple[ReferenceCandidate, ...] = ()
    dt_seconds: float | tuple[float, ...] | None = None
    weight_kg: float | None = None
    dose_bq: float | None = None
    half_life_s: float | None = None
    adaptations: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Inputs:
    """The checked inputs of one series."""

    facts: SuvFacts
    weight: Checked
    dose: Checked
    half_life: Checked
    timing: DecayTiming


@dataclass(frozen=True)
class _Route:
    """One way from Units to SUVbw: factors a slice, and what it rests on."""

    method: str
    factors: tuple[float, ...] | None = None
    refusals: tuple[str, ...] = ()
    adaptations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decays: bool = False
    used: tuple[Checked, ...] = ()
    depends: frozenset[str] = field(default=frozenset())
    """Keywords that must agree over the series."""


def judge_suv(
    instances: Sequence[InstanceFacts],
    *,
    strict: bool = False,
    weight_kg: float | None = None,
    dose_bq: float | None = None,
    dose_is_bq: bool = False,
) -> SuvVerdict:
    """Decide the SUVbw factor of one PET series.

    The instances come in slice order; frames count as slices. `strict` refuses what would only be
    "adapted" (recorded overrides stay allowed); `weight_kg` and `dose_bq` are overrides recorded
    for the study; `dose_is_bq` takes the dose as Bq whatever its size.
    """
    if not instances:
        raise ValueError("judge_suv needs at least one instance")
    facts = suv_facts(instances)
    weight = check_weight(facts.weight, weight_kg)
    dose = check_dose(
        facts.dose, dose_bq, enhanced=facts.form is PetForm.ENHANCED, dose_is_bq=dose_is_bq
    )
    half_life = check_half_life(facts.half_life, facts.nuclide)
    inputs = _Inputs(facts, weight, dose, half_life, decay_timing(facts, half_life.value))
    route = _route(inputs)
    refusals = (*_uncorrected(facts), *_conflicts(facts, route), *route.refusals,
                *(one.refusal for one in route.used if one.refusal))  # fmt: skip
    if route.factors is not None and not all(0 < abs(one) < math.inf for one in route.factors):
        refusals += ("the factor is no finite number",)
    adaptations = (*_doubts(facts, route), *route.adaptations,
                   *(one.adaptation for one in route.used if one.adaptation))  # fmt: skip
    if strict:
        recorded = {one.adaptation for one in route.used if one.overridden}
        refusals += tuple(f"strict: {one}" for one in adaptations if one not in recorded)
    return _verdict(
        inputs, route, tuple(dict.fromkeys(refusals)), tuple(dict.fromkeys(adaptations))
    )


def _verdict(
    inputs: _Inputs, route: _Route, refusals: tuple[str, ...], adaptations: tuple[str, ...]
) -> SuvVerdict:
    timing = inputs.timing
    refused = bool(refusals) or route.factors is None
    status = SuvStatus.REFUSED if refused else SuvStatus.ADAPTED if adaptations else SuvStatus.OK
    label = {SuvStatus.OK: "suvbw", SuvStatus.ADAPTED: "suvbw_adapted"}.get(
        status, inputs.facts.units or "unknown units"
    )
    reference = timing.reference if route.decays else None
    return SuvVerdict(
        status=status,
        factor=None if refused or route.factors is None else _collapsed(route.factors),
        method=route.method,
        reference_time=iso(reference) if reference is not None else None,
        reasons=(*refusals, *adaptations, *route.notes, *(timing.notes if route.decays else ())),
        label=label,
        candidates=timing.candidates if route.decays else (),
        dt_seconds=_collapsed(timing.seconds) if route.decays and timing.seconds else None,
        weight_kg=inputs.weight.value,
        dose_bq=inputs.dose.value,
        half_life_s=inputs.half_life.value,
        adaptations=adaptations,
    )


def _route(inputs: _Inputs) -> _Route:
    """Choose the way by Units."""
    facts = inputs.facts
    if facts.units == "BQML":
        return _scaled(inputs, _activity(inputs))
    if facts.units == "GML":
        return _scaled(inputs, _normalised(inputs, facts.suv_type or "BW"))
    if facts.units == "CM2ML":
        if facts.suv_type not in ("", "BSA"):
            return _Route("", refusals=(f"Units CM2ML with SUVType {facts.suv_type}",))
        return _scaled(inputs, _normalised(inputs, "BSA"))
    if facts.units == "CNTS":
        return _counts(inputs)
    what = f"Units {facts.units}" if facts.units else "no Units"
    return _Route("", refusals=(f"{what}: no factor leads to SUV",))


def _activity(inputs: _Inputs) -> _Route:
    """Return the factors of Bq/ml: 1000 kg / (D 2^(-dt/T))."""
    timing = inputs.timing
    decays = inputs.facts.decay_correction != "ADMIN"
    used = (inputs.weight, inputs.dose, *((inputs.half_life,) if decays else ()))
    factors = None
    refusals = list(timing.refusals)
    weight, dose, half_life = inputs.weight.value, inputs.dose.value, inputs.half_life.value
    if timing.seconds is not None and (half_life or not decays):
        halvings = [dt / half_life if half_life and decays else 0.0 for dt in timing.seconds]
        if max(map(abs, halvings)) > MOST_HALF_LIVES:
            refusals.append(f"more than {MOST_HALF_LIVES:g} half-lives after the administration")
        elif weight and dose:
            factors = tuple(1000.0 * weight / (dose * 2.0**-n) for n in halvings)
    route = _Route(
        f"Bq/ml, {timing.method}" if timing.method else "Bq/ml",
        factors,
        tuple(refusals),
        timing.adaptations,
        decays=decays,
        used=used,
        depends=frozenset(_activity_keywords(inputs, decays)),
    )
    return _with_philips_check(inputs.facts, route)


def _activity_keywords(inputs: _Inputs, decays: bool) -> Iterator[str]:
    yield "DecayCorrection"
    if not inputs.weight.overridden:
        yield "PatientWeight"
    if not inputs.dose.overridden:
        yield "RadionuclideTotalDose"
    if decays:
        yield from ("RadionuclideHalfLife", "RadiopharmaceuticalStartTime",
                    "RadiopharmaceuticalStartDateTime", "DecayCorrectionDateTime")  # fmt: skip


def _normalised(inputs: _Inputs, kind: str) -> _Route:
    """Return the factors of an image that already is an SUV of some type."""
    count = len(inputs.facts.slices)
    if kind == "BW":
        return _Route("already SUVbw (GML)", tuple(1.0 for _ in range(count)))
    if kind == "BSA" and inputs.facts.units == "GML":
        return _Route("", refusals=("Units GML with SUVType BSA, which is cm2/ml",))
    method = f"SUV by {kind}, times weight / {kind}"
    if not inputs.weight.value:
        return _Route(method, used=(inputs.weight,))
    body = body_grams(kind, inputs.weight.value, inputs.facts.size, inputs.facts.sex)
    used = (inputs.weight, body)
    if not body.value:
        return _Route(method, used=used)
    factor = inputs.weight.value * 1000.0 / body.value
    depends = {"PatientSize", "PatientSex"} | (
        set() if inputs.weight.overridden else {"PatientWeight"}
    )
    factors = tuple(factor for _ in range(count))
    return _Route(method, factors, used=used, depends=frozenset(depends))


def _counts(inputs: _Inputs) -> _Route:
    """Return the factors of Philips counts: its SUV factor, else its activity factor."""
    slices = inputs.facts.slices
    scales = [one.suv_scale for one in slices]
    if all(scales):
        told = tuple(scale for scale in scales if scale)
        return _Route("counts, Philips SUV factor (7053,xx00)", told)
    activities = [one.activity_scale for one in slices]
    if not all(activities):
        refusal = "Units CNTS without a Philips factor (7053,xx00) or (7053,xx09) that is not zero"
        return _Route("", refusals=(refusal,))
    route = _activity(inputs)
    factors: tuple[float, ...] | None = None
    if route.factors is not None:
        factors = tuple(a * f for a, f in zip(activities, route.factors, strict=True) if a)
    method = f"counts, Philips activity factor (7053,xx09), then {route.method}"
    return replace(route, method=method, factors=factors)


def _scaled(inputs: _Inputs, route: _Route) -> _Route:
    """Apply the ratio of real world value to rescaled value of enhanced frames."""
    ratios = [one.real_world_ratio for one in inputs.facts.slices]
    if any(ratio is None for ratio in ratios):
        refusal = "RealWorldValueMapping and rescale differ by an offset: no factor leads to SUV"
        return replace(route, refusals=(*route.refusals, refusal))
    if route.factors is None or all(ratio == 1.0 for ratio in ratios):
        return route
    factors = tuple(f * r for f, r in zip(route.factors, ratios, strict=True) if r is not None)
    note = "RealWorldValueMapping differs from rescale"
    return replace(route, factors=factors, notes=(*route.notes, note))


def _with_philips_check(facts: SuvFacts, route: _Route) -> _Route:
    """Compare with the ratio of both Philips factors, which the scanner computed by itself."""
    one = facts.slices[0]
    if facts.units != "BQML" or not (one.suv_scale and one.activity_scale and route.factors):
        return route
    scanner = one.suv_scale / one.activity_scale
    apart = abs(scanner / route.factors[0] - 1)
    text = f"the scanner's own factors give {scanner:.4g}, {apart:.2%} from {route.factors[0]:.4g}"
    if apart > PHILIPS_CHECK:
        return replace(route, adaptations=(*route.adaptations, text))
    return replace(route, notes=(*route.notes, text))


def _uncorrected(facts: SuvFacts) -> tuple[str, ...]:
    """Refuse an image that lacks the corrections that SUV presumes."""
    refusals = []
    enhanced = facts.form is PetForm.ENHANCED
    if facts.attenuation is False:
        name = "AttenuationCorrected is not YES" if enhanced else "CorrectedImage lacks ATTN"
        refusals.append(f"{name}: not attenuation corrected")
    if not enhanced and "DECY" not in facts.corrected and facts.decay_correction != "NONE":
        refusals.append("CorrectedImage lacks DECY: not decay corrected")
    return tuple(refusals)


def _conflicts(facts: SuvFacts, route: _Route) -> tuple[str, ...]:
    """Name the disagreements within the series that this way depends on."""
    depends = {"Units", "SUVType", "MeasurementUnitsCodeSequence", *route.depends}
    return tuple(text for keyword, text in facts.conflicts if keyword in depends)


def _doubts(facts: SuvFacts, route: _Route) -> tuple[str, ...]:
    """Name contradictions in the header that do not stop the computation."""
    doubts = []
    if route.decays and facts.decay_correction == "NONE" and "DECY" in facts.corrected:
        doubts.append("CorrectedImage says DECY, DecayCorrection says NONE: taken as not corrected")
    if facts.form is PetForm.ENHANCED and facts.attenuation is None:
        doubts.append("AttenuationCorrected is absent: taken as corrected")
    if facts.orphan_private and (route.method.startswith("counts") or route.decays):
        doubts.append("private values whose block names no creator, read by the manufacturer")
    return tuple(doubts)


def _collapsed(values: tuple[float, ...]) -> float | tuple[float, ...]:
    """Return one value where all are the same."""
    first = values[0]
    if all(
        math.isclose(value, first, rel_tol=_SAME, abs_tol=1e-9 * abs(first)) for value in values
    ):
        return first
    return values
