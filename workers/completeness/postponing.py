"""Whether a study must be judged after each batch, or may wait for the rest. Pure.

To judge reads every instance of a study, so doing it after each batch would make a study's cost
grow with the square of its size. While more is coming, a verdict that cannot change waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.completeness.role_names import Role

FRESH_SECONDS = 5.0
"""A study that grows is judged so often at least, for those who look on."""


@dataclass(frozen=True, slots=True)
class GrownSeries:
    """A series that got new instances, as the index has it; its verdict is an earlier one."""

    modality: str
    role: str | None
    instances: int
    expected: int | None
    two_patients: bool
    """Its study arrived under two PatientIDs."""
    beside_whole_pet: bool = False
    """Its study has a complete PET: as soon as a CT reaches over it, they are a pair."""


def may_wait(grown: Iterable[GrownSeries], *, more_comes: bool, judged_ago: float | None) -> bool:
    """Tell whether a study whose series grew may be judged later.

    `judged_ago` are the seconds since it was judged last, None where nobody knows; `more_comes`:
    its batch is open or not filed yet. What was put off is judged with a later batch, or when
    quiet.
    """
    if not more_comes or judged_ago is None or judged_ago >= FRESH_SECONDS:
        return False
    return not any(_may_be_whole(one) for one in grown)


def _may_be_whole(one: GrownSeries) -> bool:
    """Tell whether what arrived may have changed more than the count.

    Only a PET says how many it will be; all others are complete when they are quiet (series.py),
    but a CT is enough for a PET that waits for it as soon as it reaches over it (coverage.py).
    """
    if one.role is None or one.two_patients:
        return True
    if one.modality != "PT":
        return one.modality == "CT" and one.beside_whole_pet
    return not Role(one.role).is_pet or one.expected is None or one.instances >= one.expected
