"""What a series description sounds like. Attributes decide; this only says where they differ."""

from __future__ import annotations

import re

from workers.completeness.role_names import Role

_NOT_CORRECTED = re.compile(r"NAC\b|\bNO[ -]?(AC\b|ATT)|W/O ATT|UNCORR|\bNON[ -]?(AC|CORR)")
_CORRECTED = re.compile(r"\bAC\b|CTAC|\bCORR(ECTED)?\b|ATTEN|ATTN|3DAC|WBAC")
_PICTURE = re.compile(r"FUSION|FUSED|STATISTIC|RESULT|SCREEN|CAPTURE|REPORT")
_MIP = re.compile(r"\bMIPS?\b|\bPROJ(ECTIONS?)?\b")
_PLANE = re.compile(r"\bCOR\b|CORONAL|\bSAG\b|SAGITTAL|\bMPR\b|REFORMAT")
_SCOUT = re.compile(r"SCOUT|TOPOGRAM|LOCALI[SZ]ER|SURVIEW|SCANOGRAM")
_MONITOR = re.compile(r"MONITORING|SMART ?PREP|BOLUS|CINE\b|\b4D")
_DYNAMIC = re.compile(r"DYNAMIC|\bDYN\b")
_GATED = re.compile(r"GATED?\b|GATING")


def described_role(description: str, modality: str) -> Role | None:
    """Return the role that the description alone would have given; None where it says nothing."""
    text = description.upper().replace("_", " ")
    rules: tuple[tuple[re.Pattern[str], Role], ...]
    if modality == "PT":
        rules = (
            (_PICTURE, Role.PET_OTHER), (_MIP, Role.PET_MIP), (_PLANE, Role.PET_REFORMATTED),
            (_GATED, Role.PET_GATED), (_DYNAMIC, Role.PET_DYNAMIC),
            (_NOT_CORRECTED, Role.PET_NAC), (_CORRECTED, Role.PET_AC),
        )  # fmt: skip
    elif modality == "CT":
        rules = (
            (_SCOUT, Role.CT_SCOUT), (_MONITOR, Role.CT_DYNAMIC), (_MIP, Role.CT_REFORMATTED),
            (_PLANE, Role.CT_REFORMATTED),
        )  # fmt: skip
    else:
        return None
    return next((role for pattern, role in rules if pattern.search(text)), None)
