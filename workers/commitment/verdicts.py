"""Decide whether our word can be given for one instance (PS3.4 J.3.3, PS3.3 C.14.1.1).

A peer may delete its copy on our word. So success is said only for an instance that lies in the
tree as it was received, read back whole, and of which no other version was ever acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

EQUAL = frozenset({"filed", "duplicate"})
"""Outcomes of arrivals whose content is that of the filed one."""

PUT_BACK = "retried"
"""A person gave it back to the spool: what became of it stands in an arrival of its own."""


class FailureReason(IntEnum):
    """Failure Reason (0008,1197); 0 is none."""

    NONE = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_CONFLICT = 0x0119
    RESOURCE_LIMITATION = 0x0213


class FileState(StrEnum):
    """What reading a filed instance back gave."""

    INTACT = "intact"
    CHANGED = "changed"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Filed:
    """The instance of a UID that the index knows."""

    sop_class: str
    dataset_sha256: str
    file: FileState


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of one version that was taken, and the digest of its data set as it came."""

    outcome: str
    dataset_sha256: str | None = None
    was_sent: bool = True
    """Whether it came over an association: a dropped file, or one of a repair, is nobody's word."""


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """Everything that is known of one reference."""

    sop_class: str
    """As the peer says."""
    filed: Filed | None = None
    arrivals: tuple[Arrival, ...] = ()
    waits: bool = False
    """Whether a version still lies in the spool, and can be waited for no longer."""
    deidentified: bool = False
    """Whether what this peer sends is filed as something else, under other UIDs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Our word, or why it is not given."""

    reason: FailureReason
    why: str

    @property
    def committed(self) -> bool:
        return self.reason is FailureReason.NONE


def judge_reference(facts: ReferenceFacts) -> Verdict:
    """Judge one reference; failure is always the safe side: the peer keeps its copy."""
    filed = facts.filed
    if facts.deidentified:
        return Verdict(FailureReason.PROCESSING_FAILURE, "what this peer sends is de-identified")
    if facts.waits:
        return Verdict(FailureReason.RESOURCE_LIMITATION, "it could not be filed in time")
    if filed is None and not facts.arrivals:
        return Verdict(FailureReason.NO_SUCH_INSTANCE, "never received")
    if filed is None:
        return Verdict(FailureReason.PROCESSING_FAILURE, "received, but not filed")
    if filed.sop_class != facts.sop_class:
        return Verdict(FailureReason.CLASS_CONFLICT, "filed under another SOP class")
    others = sorted({one.outcome for one in facts.arrivals} - EQUAL - {PUT_BACK})
    if others:
        words = f"another version was received: {', '.join(others)}"
        return Verdict(FailureReason.PROCESSING_FAILURE, words)
    # changed on its way, adopted in place, or the index was rebuilt from the tree: then nobody
    # knows (any more) what was received
    if not any(
        one.was_sent and one.outcome in EQUAL and one.dataset_sha256 == filed.dataset_sha256
        for one in facts.arrivals
    ):
        return Verdict(FailureReason.PROCESSING_FAILURE, "not known to be filed as received")
    if filed.file is not FileState.INTACT:
        words = f"its file in the archive is {filed.file}"
        return Verdict(FailureReason.PROCESSING_FAILURE, words)
    return Verdict(FailureReason.NONE, "filed as received, read back whole")
