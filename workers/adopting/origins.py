"""Where the series of an archive came from, as its journal tells: DICOM cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workers.filing.journal import read_facts
from workers.filing.labels import Labels

ADOPTED = "adopted"
"""The source of what nobody sent; in `series.last_boot`: to be judged when the tree is read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a series first came from, and the labels of its path."""

    source: str = ADOPTED
    labels: Labels = field(default_factory=Labels)


def origins_of(output: Path) -> dict[tuple[str, str], Origin]:
    """Return the origin of each (study, series) that the journal in `<output>/.petct` tells of."""
    return {
        (fact["study"], fact["series"]): Origin(
            str(fact.get("source", ADOPTED)),
            Labels(str(fact.get("subject", "")), str(fact.get("session", ""))),
        )
        for fact in read_facts(output)
        if fact.get("kind") == "source"
        and isinstance(fact.get("study"), str)
        and isinstance(fact.get("series"), str)
    }
