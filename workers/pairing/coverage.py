"""How much of a PET a CT covers, and whether a CT without a known total already is enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from workers.completeness.stacks import Stack, dot, strays_of
from workers.pairing.evidence import SeriesEvidence

_PARALLEL = 0.9
_ROUNDING_MM = 0.05


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of PET slices that lie within the CT, to half a PET step at each end."""

    fraction: float
    short_low_mm: float
    """How far the CT ends short of the PET's lower end (along the PET's normal)."""
    short_high_mm: float


def coverage_of(pet: Stack | None, ct: Stack | None) -> Coverage | None:
    """Compare the extents of two stacks along the PET's normal; None without geometry."""
    if pet is None or ct is None or abs(dot(pet.normal, ct.normal)) < _PARALLEL:
        return None
    along = [dot(pet.normal, one.position) for one in ct.slices]
    slack = (pet.step or ct.step or 0.0) / 2 + _ROUNDING_MM
    low, high = min(along) - slack, max(along) + slack
    inside = sum(low <= value <= high for value in pet.positions)
    return Coverage(
        inside / len(pet.positions),
        max(0.0, low - pet.positions[0]),
        max(0.0, pet.positions[-1] - high),
    )


def numbers_are_contiguous(ct: SeriesEvidence) -> bool:
    """Check InstanceNumber, where it is monotonic with position: a hole is a slice on its way."""
    stack = ct.stack
    if stack is None or any(one.frame is not None for one in stack.slices):
        return True
    numbers = [ct.instances[one.instance].instance_number for one in stack.slices]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or len(known) < 2:
        return True
    steps = [b - a for a, b in pairwise(known)]
    if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        return True
    return all(abs(step) == 1 for step in steps)


def is_sufficient(ct: SeriesEvidence, coverage: Coverage | None) -> bool:
    """Tell whether a CT may be paired before it is quiet: whole as far as the PET reaches."""
    stack = ct.stack
    if stack is None or coverage is None or coverage.fraction < 1.0:
        return False
    one_each = len(stack.positions) == len(stack.slices)
    strays = strays_of(ct.instances, ct.stacks, localizers=True)
    return not stack.gaps and one_each and not strays and numbers_are_contiguous(ct)
