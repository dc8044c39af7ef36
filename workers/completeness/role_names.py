"""The roles that a series can have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a series is to the pair."""

    PET_AC = "pet_ac"
    PET_NAC = "pet_nac"
    PET_MIP = "pet_mip"
    PET_REFORMATTED = "pet_reformatted"
    PET_DYNAMIC = "pet_dynamic"
    PET_GATED = "pet_gated"
    PET_OTHER = "pet_other"
    CT = "ct"
    CT_SCOUT = "ct_scout"
    CT_REFORMATTED = "ct_reformatted"
    CT_DYNAMIC = "ct_dynamic"
    MR = "mr"
    RTSTRUCT = "rtstruct"
    RTPLAN = "rtplan"
    RTDOSE = "rtdose"
    SEG = "seg"
    REG = "reg"
    SR = "sr"
    PDF = "pdf"
    SC = "sc"
    OTHER = "other"

    @property
    def is_pet(self) -> bool:
        """Tell whether the series says it is PET."""
        return self.value.startswith("pet_")

    @property
    def is_ct(self) -> bool:
        """Tell whether the series is some CT."""
        return self.value == "ct" or self.value.startswith("ct_")


@dataclass(frozen=True)
class RoleVerdict:
    """The role of a series and the evidence for it, in words."""

    role: Role
    reasons: tuple[str, ...]
