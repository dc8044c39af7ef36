"""Why a pair is held, as one word of a short list: for metrics and for messages without patients.

The sentences of a reason may quote a header (a kernel, a series number); these words do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class HeldReason(StrEnum):
    """What is in a pair's way."""

    NOT_ARRIVED = "not-arrived"
    INCOMPLETE = "incomplete"
    TWO_PATIENTS = "two-patients"
    FRAME = "frame-of-reference"
    COVERAGE = "coverage"
    ORIENTATION = "orientation"
    SUV = "suv"
    CHOICE = "choice"
    FILES_MISSING = "files-missing"
    LINK = "link-in-the-tree"
    MAKER_DIED = "maker-died"
    REFUSED = "refused"


HELD_WORDS: Mapping[HeldReason, str] = MappingProxyType(
    {
        HeldReason.NOT_ARRIVED: "not everything came in time",
        HeldReason.INCOMPLETE: "slices are missing or double",
        HeldReason.TWO_PATIENTS: "the study arrived under two PatientIDs",
        HeldReason.FRAME: "PET and CT have no common frame of reference",
        HeldReason.COVERAGE: "the CT does not cover the PET",
        HeldReason.ORIENTATION: "the CT is not parallel to the PET",
        HeldReason.SUV: "SUV is required and cannot be computed",
        HeldReason.CHOICE: "the series that was chosen cannot be used",
        HeldReason.FILES_MISSING: "files are missing in the tree",
        HeldReason.LINK: "a symbolic link stands in the tree",
        HeldReason.MAKER_DIED: "the process that makes it died again and again",
        HeldReason.REFUSED: "the arrays cannot be made from these series",
    }
)

_PATTERNS = (
    (HeldReason.NOT_ARRIVED, r"still not whole after the hard cap"),
    (HeldReason.INCOMPLETE, r"send the missing slices"),
    (HeldReason.TWO_PATIENTS, r"^the study arrived under two PatientIDs"),
    (HeldReason.FRAME, r"^the FrameOfReferenceUID of the CT"),
    (HeldReason.ORIENTATION, r"^the CT .* is not parallel to the PET"),
    (HeldReason.COVERAGE, r"^the CT .* covers "),
    (HeldReason.SUV, r"^SUV is required and refused"),
    (HeldReason.CHOICE, r"^the chosen (PET|CT) "),
    (HeldReason.FILES_MISSING, r"of the index missing in the tree"),
    (HeldReason.LINK, r"^a symbolic link stands in the tree"),
    (HeldReason.MAKER_DIED, r"processes died while making it"),
)


def held_reason(sentence: str) -> HeldReason:
    """Return which of the list a sentence of `pair.reasons` is; what is none of it: refused."""
    for reason, pattern in _PATTERNS:
        if re.search(pattern, sentence):
            return reason
    return HeldReason.REFUSED
