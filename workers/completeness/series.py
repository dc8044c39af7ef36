"""Whether a series is whole: by its own count and positions, else by quiet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from workers.completeness.role_names import Role
from workers.completeness.stacks import Stack, stacks_of, strays_of
from workers.header.facts import InstanceFacts

SHOWN = 3
"""So many positions or numbers are named; the rest is counted."""
_ONE_PLACE = (Role.PET_AC, Role.PET_NAC, Role.PET_REFORMATTED, Role.CT)
"""One image a position."""
_SPACED = (*_ONE_PLACE, Role.PET_DYNAMIC, Role.PET_GATED)
"""Positions without a gap."""


class SeriesState(StrEnum):
    """How far a series is."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    INCONSISTENT = "inconsistent"
    """Quiet (or given up waiting for) and still not whole: held with its reason."""


@dataclass(frozen=True)
class Completeness:
    """The state of a series and the evidence for it, in words.

    `expected` and `received` count slices (frames); parts, where a concatenation is not whole.
    """

    state: SeriesState
    expected: int | None
    received: int
    reasons: tuple[str, ...]


def judge_completeness(
    instances: Sequence[InstanceFacts], role: Role, *, quiet: bool
) -> Completeness:
    """Judge one series by its role.

    PET has a total (NumberOfSlices, PS3.3 C.8.9.1: a maximum) and is complete at once; CT and the
    rest have none and are complete when they are quiet. What is not whole by then is inconsistent.
    """
    unique = list({one.sop_instance_uid: one for one in instances}.values())
    if role.is_pet:
        return _judge_pet(unique, role, quiet)
    if role is Role.CT:
        return _judge_ct(unique, quiet)
    state = SeriesState.COMPLETE if quiet else SeriesState.RECEIVING
    return Completeness(state, None, len(unique), (_quiet_words(len(unique), quiet),))


def _judge_pet(instances: list[InstanceFacts], role: Role, quiet: bool) -> Completeness:
    expected, received, source = _counts(instances)
    faults = _faults(instances, role, stacks_of(instances))
    if expected is None:
        counted = f"PET {received} slices, {source}"
        if not quiet:
            reasons = (f"{counted}: complete when quiet", *faults)
            return Completeness(SeriesState.RECEIVING, None, received, reasons)
        if faults:
            reasons = (", ".join((f"PET {received} slices", *faults)),)
            return Completeness(SeriesState.INCONSISTENT, None, received, reasons)
        reasons = (f"{counted}: gap-free and quiet",)
        return Completeness(SeriesState.COMPLETE, None, received, reasons)
    if received == expected and not faults:
        reasons = (f"{received} of {expected} ({source}), no gap",)
        if role not in _SPACED:
            reasons = (f"{received} of {expected} ({source})",)
        return Completeness(SeriesState.COMPLETE, expected, received, reasons)
    words = [f"PET {received} of {expected}", *faults]
    if received > expected:
        words.append(f"more than {source} allows")
    elif not faults and role in _SPACED:
        words.append("no gap so far" if not quiet else "no gap: slices are missing at an end")
    state = SeriesState.INCONSISTENT if quiet else SeriesState.RECEIVING
    return Completeness(state, expected, received, (", ".join(words),))


def _judge_ct(instances: list[InstanceFacts], quiet: bool) -> Completeness:
    stacks = stacks_of(instances)
    stack = stacks[0] if stacks else None
    received = len(stack.slices) if stack else len(instances)
    faults = _faults(instances, Role.CT, stacks)
    step = f", step {stack.step:.2f} mm" if stack and stack.step else ""
    if not quiet:
        words = f"CT {received} slices so far{step}: no total is known, complete when quiet"
        return Completeness(SeriesState.RECEIVING, None, received, (words, *faults))
    if faults:
        reasons = (", ".join((f"CT {received} slices", *faults)),)
        return Completeness(SeriesState.INCONSISTENT, None, received, reasons)
    reasons = (f"CT {received} slices{step}, gap-free and quiet",)
    return Completeness(SeriesState.COMPLETE, None, received, reasons)


def _quiet_words(count: int, quiet: bool) -> str:
    unit = "instance" if count == 1 else "instances"
    return f"{count} {unit}, quiet" if quiet else f"{count} {unit} so far: complete when quiet"


def _counts(instances: list[InstanceFacts]) -> tuple[int | None, int, str]:
    """Return (expected, received, what the total rests on) of a PET series."""
    if any(one.frames for one in instances):
        return _frame_counts(instances)
    received = len(instances)
    totals = {one.number_of_slices for one in instances if one.number_of_slices}
    if not totals:
        return None, received, "no NumberOfSlices"
    first = instances[0]
    kind = first.series_type[0].upper() if first.series_type else ""
    factor, source = 1, "NumberOfSlices"
    if kind == "DYNAMIC":
        if not first.number_of_time_slices:
            return None, received, "SeriesType DYNAMIC without NumberOfTimeSlices"
        factor, source = first.number_of_time_slices, "NumberOfSlices x NumberOfTimeSlices"
    elif kind == "GATED":
        factor = (first.number_of_rr_intervals or 1) * (first.number_of_time_slots or 1)
        source = "NumberOfSlices x R-R intervals x time slots"
    return max(totals) * factor, received, source


def _frame_counts(instances: list[InstanceFacts]) -> tuple[int | None, int, str]:
    """Count frames; parts where a concatenation (PS3.3 C.7.6.16.1) is not whole."""
    frames = sum(len(one.frames) for one in instances)
    promised = sum(one.number_of_frames or len(one.frames) for one in instances)
    parts = {
        one.in_concatenation_number: one for one in instances if one.concatenation_uid is not None
    }
    if parts:
        total = max((one.in_concatenation_total_number or 0) for one in parts.values())
        if not total:
            return None, frames, "a concatenation of unknown length"
        if len(parts) < total:
            return total, len(parts), "parts of the concatenation"
    elif len(instances) > 1:
        return None, frames, f"{len(instances)} multi-frame instances"
    return promised, frames, "NumberOfFrames"


def _faults(
    instances: list[InstanceFacts], role: Role, stacks: tuple[Stack, ...]
) -> tuple[str, ...]:
    """Name what is wrong with the positions and indices of a series, in words."""
    faults: list[str] = []
    if role in _SPACED:
        if not stacks:
            faults.append("no slice has a position")
        else:
            faults += _position_faults(stacks[0], one_place=role in _ONE_PLACE)
            strays = strays_of(instances, stacks, localizers=role is Role.CT)
            if strays:
                faults.append(f"{strays} images of another orientation or without a place")
    index_fault = _index_fault(instances) if role.is_pet else ""
    if index_fault:
        faults.append(index_fault)
    return tuple(faults)


def _position_faults(stack: Stack, *, one_place: bool) -> list[str]:
    faults = []
    if stack.gaps:
        places = [f"{gap.z:.1f}" for gap in stack.gaps[:SHOWN]]
        more = f" and {len(stack.gaps) - SHOWN} more" if len(stack.gaps) > SHOWN else ""
        faults.append(f"gap at z = {', '.join(places)} mm{more}")
    repeated = [group for group in stack.groups if len(group) > 1]
    if one_place and repeated:
        z = repeated[0][0].position[2]
        more = f" and {len(repeated) - 1} more places" if len(repeated) > 1 else ""
        faults.append(f"{len(repeated[0])} different images at z = {z:.1f} mm{more}")
    return faults


def _index_fault(instances: list[InstanceFacts]) -> str:
    """Check ImageIndex (PS3.3 C.8.9.4): where it varies, it covers 1..N once each."""
    indices = [one.image_index for one in instances if one.image_index is not None]
    if len(indices) < len(instances) or len(set(indices)) <= 1:
        return ""
    missing = sorted(set(range(1, max(indices) + 1)) - set(indices))
    if missing:
        named = ", ".join(str(index) for index in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        return f"ImageIndex {named}{more} missing"
    if len(set(indices)) < len(indices):
        return "ImageIndex is not unique"
    return ""
