"""Which PET and CT of a study make its pair, and whether now: pure, with reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workers.completeness.ct_role import FEW_SLICES
from workers.completeness.role_names import Role
from workers.completeness.series import SeriesState
from workers.completeness.stacks import volume_instances
from workers.pairing.evidence import (
    Candidate,
    Override,
    PairDecision,
    PairingPolicy,
    PairState,
    SeriesEvidence,
)
from workers.pairing.ranking import (
    RankedCt,
    ct_reasons,
    percent,
    pet_reasons,
    rank_cts,
    rank_pets,
)
from workers.pairing.suv import SuvStatus, judge_suv

__all__ = [
    "Candidate",
    "Override",
    "PairDecision",
    "PairState",
    "PairingPolicy",
    "SeriesEvidence",
    "decide_pair",
]

OTHER_STUDY_SECONDS = 86_400.0
"""A CT of another study must lie within a day of the PET."""


@dataclass(frozen=True)
class _Situation:
    """The inputs of one decision."""

    series: tuple[SeriesEvidence, ...]
    override: Override
    policy: PairingPolicy
    study_quiet: bool
    capped: bool

    @property
    def settled(self) -> bool:
        """Tell whether nothing more is waited for."""
        return self.study_quiet or self.capped or self.override.forced


@dataclass(frozen=True)
class _Choice:
    """The PET or the CT, or why there is none (yet)."""

    series: SeriesEvidence | None
    candidates: tuple[Candidate, ...]
    state: PairState = PairState.READY
    reasons: tuple[str, ...] = ()
    ranked: RankedCt | None = None


def decide_pair(
    series: Sequence[SeriesEvidence],
    override: Override | None,
    policy: PairingPolicy,
    *,
    study_quiet: bool,
    capped: bool,
    conflicting_patients: bool = False,
) -> PairDecision:
    """Decide the pair of one study.

    `series` are all series of the study seen so far, and CTs of other studies of the same patient
    (`same_study=False`). `study_quiet`: nothing arrived for the quiet time; `capped`: waiting took
    longer than the hard cap. A forced override pairs what it names, whatever speaks against it.
    """
    situation = _Situation(tuple(series), override or Override(), policy, study_quiet, capped)
    if conflicting_patients and not situation.override.forced:
        reason = (
            "the study arrived under two PatientIDs: correct one of them at its source and send the"
            " study again, or force the pair"
        )
        return PairDecision(PairState.HELD, None, None, (reason,), None, (), (), no_pair=False)
    pet = _choose_pet(situation)
    if pet.series is None:
        return _decision(situation, pet, None)
    ct = _choose_ct(situation, pet.series)
    if ct.state is PairState.NONE:
        return _decision(situation, replace(pet, state=PairState.READY), ct)
    if pet.state is not PairState.READY and not _may_go_ahead(pet, ct):
        return _decision(situation, pet, ct)
    return _decision(situation, pet, _checked(situation, pet.series, ct))


def _decision(situation: _Situation, pet: _Choice, ct: _Choice | None) -> PairDecision:
    last = (
        ct if ct is not None and (pet.state is PairState.READY or _may_go_ahead(pet, ct)) else pet
    )
    ranked = ct.ranked if ct is not None else None
    named = last.state in (PairState.READY, PairState.HELD)
    return PairDecision(
        state=last.state,
        pet=pet.series.series_uid if pet.series is not None else None,
        ct=ct.series.series_uid if named and ct is not None and ct.series is not None else None,
        reasons=last.reasons,
        covered_fraction=ranked.coverage.fraction if ranked and ranked.coverage else None,
        pet_candidates=pet.candidates,
        ct_candidates=ct.candidates if ct is not None else (),
        no_pair=last.state is PairState.NONE and situation.study_quiet,
    )


def _may_go_ahead(pet: _Choice, ct: _Choice) -> bool:
    """Pair before every other series is judged: only with a CT that the PET itself references."""
    waits_for_others = pet.state is PairState.WAITING and pet.series is not None
    return (
        waits_for_others
        and pet.series is not None
        and pet.series.completeness.state is SeriesState.COMPLETE
        and ct.state is PairState.READY
        and ct.ranked is not None
        and bool(ct.ranked.reference)
    )


def _choose_pet(situation: _Situation) -> _Choice:
    wanted = situation.override.pet
    mine = [one for one in situation.series if one.same_study]
    if wanted is not None:
        pool = [one for one in mine if one.series_uid == wanted and one.role.role.is_pet]
    else:
        pool = [one for one in mine if one.role.role is Role.PET_AC]
    if not pool:
        return _no_pet(situation, wanted)
    ranked = rank_pets(pool)
    judged = [one for one in ranked if not one.is_open]
    still_open = [one for one in ranked if one.is_open]
    if situation.override.forced:
        best: SeriesEvidence | None = ranked[0]
    else:
        best = judged[0] if judged else None
    candidates = tuple(
        Candidate(one.series_uid, number, pet_reasons(one), chosen=one is best)
        for number, one in enumerate(ranked, start=1)
    )
    if best is None:
        return _unfinished(situation, candidates, ranked[0], "PET")
    if situation.override.forced:
        return _Choice(best, candidates)
    if still_open and not situation.settled:
        names = ", ".join(one.name for one in still_open)
        reason = f"waiting for another PET, {names}: {still_open[0].completeness.reasons[0]}"
        return _Choice(best, candidates, PairState.WAITING, (reason,))
    if best.completeness.state is not SeriesState.COMPLETE:
        reason = _broken(best, "PET")
        return _Choice(best, candidates, PairState.HELD, (reason,))
    return _Choice(best, candidates)


def _no_pet(situation: _Situation, wanted: str | None) -> _Choice:
    if wanted is not None:
        reason = f"the chosen PET …{wanted[-8:]} is not in the study, or is no PET: choose another"
        return _Choice(None, (), PairState.HELD, (reason,))
    pets = [one for one in situation.series if one.same_study and one.role.role.is_pet]
    if not pets:
        return _Choice(None, (), PairState.NONE, ("no PET in the study",))
    reasons = [f"{one.name} is {one.role.role}: {one.role.reasons[0]}" for one in pets]
    return _Choice(
        None, (), PairState.NONE, ("no attenuation-corrected PET volume in the study", *reasons)
    )


def _choose_ct(situation: _Situation, pet: SeriesEvidence) -> _Choice:
    wanted = situation.override.ct
    if wanted is not None:
        pool = [one for one in situation.series if one.series_uid == wanted and one.role.role.is_ct]
    else:
        pool = [one for one in situation.series if one.role.role is Role.CT]
    policy = situation.policy
    ranked = [
        one
        for one in rank_cts(pet, pool, policy.ct_preference, policy.minimum_coverage)
        if (one.series.same_study or _may_be_borrowed(one))
        and (wanted or not _is_scrap(one, policy.minimum_coverage))
    ]
    if not ranked:
        return _no_ct(situation, wanted)
    usable = [one for one in ranked if _is_usable(one)]
    if situation.override.forced:
        usable = ranked
    best = usable[0] if usable else None
    candidates = tuple(
        Candidate(one.series.series_uid, number, ct_reasons(one), chosen=one is best)
        for number, one in enumerate(ranked, start=1)
    )
    still_open = [one for one in ranked if one.series.is_open and not one.sufficient]
    if best is None:
        if still_open and not situation.study_quiet:
            return _unfinished(situation, candidates, still_open[0].series, "CT")
        reason = _broken(ranked[0].series, "CT")
        return _Choice(ranked[0].series, candidates, PairState.HELD, (reason,), ranked[0])
    blocked = still_open and not situation.settled
    if best.reference and not any(one.reference for one in still_open):
        blocked = False
    if blocked:
        names = ", ".join(one.series.name for one in still_open)
        reason = f"waiting for another CT, {names}: {still_open[0].series.completeness.reasons[0]}"
        return _Choice(best.series, candidates, PairState.WAITING, (reason,), best)
    passed_over = ranked[: ranked.index(best)]
    reasons = tuple(
        f"{one.series.name} would come first but is not whole: {one.series.completeness.reasons[0]}"
        for one in passed_over
    )
    return _Choice(best.series, candidates, PairState.READY, reasons, best)


def _is_usable(one: RankedCt) -> bool:
    """Tell whether a CT is whole: complete, or enough for this PET although it is not quiet."""
    state = one.series.completeness.state
    return state is SeriesState.COMPLETE or (state is SeriesState.RECEIVING and one.sufficient)


def _is_scrap(one: RankedCt, minimum: float) -> bool:
    """Tell whether a judged CT is only a few slices that do not reach (a bolus premonitoring)."""
    stack = one.series.stack
    few = stack is None or len(stack.positions) <= FEW_SLICES
    return few and one.fraction < minimum and not one.series.is_open


def _may_be_borrowed(one: RankedCt) -> bool:
    """A CT of another study: same frame of reference, and within a day."""
    return one.same_frame and one.seconds_apart <= OTHER_STUDY_SECONDS


def _no_ct(situation: _Situation, wanted: str | None) -> _Choice:
    if wanted is not None:
        reason = f"the chosen CT …{wanted[-8:]} is not there, or is no CT: choose another"
        return _Choice(None, (), PairState.HELD, (reason,))
    cts = [one for one in situation.series if one.role.role.is_ct and one.same_study]
    reasons = [
        f"{one.name} is {one.role.role}: {one.role.reasons[0]}"
        if one.role.role is not Role.CT
        else f"{one.name} is only {len(one.instances)} slices"
        for one in cts
    ]
    return _Choice(None, (), PairState.NONE, ("no CT volume for the PET", *reasons))


def _unfinished(
    situation: _Situation, candidates: tuple[Candidate, ...], one: SeriesEvidence, what: str
) -> _Choice:
    """The only candidates are still arriving: wait, or hold after the hard cap."""
    state = one.completeness.reasons[0] if one.completeness.reasons else f"{what} still arriving"
    if situation.capped:
        reason = f"{state}: still not whole after the hard cap; send the rest, or force the pair"
        return _Choice(one, candidates, PairState.HELD, (reason,))
    return _Choice(one, candidates, PairState.WAITING, (state,))


def _broken(one: SeriesEvidence, what: str) -> str:
    """Say what is not whole and what would resolve it."""
    state = one.completeness.reasons[0] if one.completeness.reasons else f"{what} is not whole"
    return (
        f"{state} ({one.name}): send the missing slices, force the pair, or choose another {what}"
    )


def _checked(situation: _Situation, pet: SeriesEvidence, ct: _Choice) -> _Choice:
    """Hold what could be paired but should not be: frame, coverage, SUV."""
    one = ct.ranked
    if ct.state is not PairState.READY or one is None or ct.series is None:
        return ct
    told = situation.override
    why = [*ct.reasons]
    if told.forced:
        why.append("forced by a recorded override")
        why += [f"overruled: {objection}" for objection in _objections(situation, pet, one)]
    else:
        objections = _objections(situation, pet, one)
        if objections:
            return _Choice(ct.series, ct.candidates, PairState.HELD, tuple(objections), one)
        if told.pet or told.ct:
            why.append("chosen by a recorded override")
    why += [*ct_reasons(one)]
    return _Choice(ct.series, ct.candidates, PairState.READY, tuple(why), one)


def _objections(situation: _Situation, pet: SeriesEvidence, one: RankedCt) -> list[str]:
    """Name what stands against a pair, each with what would resolve it."""
    policy, told = situation.policy, situation.override
    found = []
    for series, what in ((pet, "PET"), (one.series, "CT")):
        enough = one.sufficient and series is one.series
        if series.completeness.state is not SeriesState.COMPLETE and not enough:
            found.append(_broken(series, what))
    if not one.same_frame:
        frames = {
            pet.instances[0].frame_of_reference_uid,
            one.series.instances[0].frame_of_reference_uid,
        }
        words = "is not given" if None in frames or "" in frames else "is another"
        found.append(
            f"the FrameOfReferenceUID of the CT ({one.series.name}) {words}: PET and CT may not be"
            " aligned; choose another CT, or force the pair"
        )
    if one.coverage is None:
        found.append(f"the CT ({one.series.name}) is not parallel to the PET: choose another CT")
    elif one.fraction < policy.minimum_coverage:
        found.append(
            f"the CT ({one.series.name}) covers {percent(one.fraction)} of the PET"
            f" ({_short(one)}): send the rest of the CT, choose another, or force the pair"
        )
    if policy.require_suv:
        verdict = judge_suv(
            volume_instances(pet.instances),
            strict=policy.strict_suv,
            weight_kg=told.weight_kg,
            dose_bq=told.dose_bq,
        )
        if verdict.status is SuvStatus.REFUSED:
            found.append(
                f"SUV is required and refused: {'; '.join(verdict.reasons)}; record the missing"
                " weight or dose, or force the pair"
            )
    return found


def _short(one: RankedCt) -> str:
    if one.coverage is None:
        return ""
    ends = []
    if one.coverage.short_low_mm > 0:
        ends.append(f"{one.coverage.short_low_mm:.0f} mm short at the lower end")
    if one.coverage.short_high_mm > 0:
        ends.append(f"{one.coverage.short_high_mm:.0f} mm short at the upper end")
    return ", ".join(ends)
