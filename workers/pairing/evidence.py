"""What a pairing decision is made from, and what it says: the value types of `selection`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from workers.completeness.role_names import RoleVerdict
from workers.completeness.series import Completeness, SeriesState
from workers.completeness.stacks import Stack, stacks_of
from workers.header.facts import InstanceFacts


@dataclass(frozen=True)
class SeriesEvidence:
    """One series as it is known now."""

    series_uid: str
    study_uid: str
    instances: tuple[InstanceFacts, ...]
    role: RoleVerdict
    completeness: Completeness
    quiet: bool
    same_study: bool = True
    """False: a series of another study of the same patient, offered as a CT."""

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """Return the stacks of the series, the largest first."""
        return stacks_of(self.instances)

    @property
    def stack(self) -> Stack | None:
        """Return the main stack of the series."""
        return self.stacks[0] if self.stacks else None

    @property
    def is_open(self) -> bool:
        """Tell whether more of the series may be on its way."""
        return self.completeness.state is SeriesState.RECEIVING and not self.quiet

    @property
    def name(self) -> str:
        """Return a short name for people: the series number, else the end of its UID."""
        number = self.instances[0].series_number
        return f"series {number}" if number is not None else f"series …{self.series_uid[-8:]}"


@dataclass(frozen=True)
class Override:
    """What a person recorded for a study."""

    pet: str | None = None
    ct: str | None = None
    forced: bool = False
    weight_kg: float | None = None
    dose_bq: float | None = None


@dataclass(frozen=True)
class PairingPolicy:
    """The settings that pairing follows."""

    ct_preference: str = "attenuation"
    """ "attenuation" | "diagnostic"."""
    minimum_coverage: float = 0.9
    strict_suv: bool = False
    require_suv: bool = False


class PairState(StrEnum):
    """What becomes of the pair of a study now."""

    NONE = "none"
    """No attenuation-corrected PET or no CT (yet)."""
    WAITING = "waiting"
    READY = "ready"
    HELD = "held"


@dataclass(frozen=True)
class Candidate:
    """A series that was considered, best first."""

    series_uid: str
    rank: int
    reasons: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True)
class PairDecision:
    """What to do with a study, and why, in words for people."""

    state: PairState
    pet: str | None
    ct: str | None
    reasons: tuple[str, ...]
    covered_fraction: float | None
    pet_candidates: tuple[Candidate, ...]
    ct_candidates: tuple[Candidate, ...]
    no_pair: bool
