"""What `check` found: every finding counted, the first of each code named. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from workers.checking.codes import MEANINGS, Code, Severity

EXAMPLES = 1000
"""Findings of one code that are named; all are counted."""


class Outcome(StrEnum):
    """What became of a finding."""

    FOUND = "found"  # nothing was to be done about it
    MENDED = "mended"
    LEFT = "left"  # it could not be mended


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    code: Code
    where: str
    """A path relative to its store, or an identifier."""
    detail: str = ""


@dataclass(slots=True)
class _Tally:
    count: int = 0
    mended: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


class Report:
    """Everything that was found: counts of all, names of the first of each code."""

    def __init__(self) -> None:
        self.compared: dict[str, int] = {}
        """How many of what were looked at."""
        self._tallies: dict[Code, _Tally] = {}

    def add(self, finding: Finding, outcome: Outcome = Outcome.FOUND, said: str = "") -> None:
        tally = self._tallies.setdefault(finding.code, _Tally())
        tally.count += 1
        tally.mended += outcome is Outcome.MENDED
        if len(tally.examples) < EXAMPLES:
            detail = "; ".join(filter(None, (finding.detail, said)))
            tally.examples.append(
                {"where": finding.where, "detail": detail, "outcome": str(outcome)}
            )

    def compare(self, what: str, count: int = 1) -> None:
        """Count something that was looked at."""
        self.compared[what] = self.compared.get(what, 0) + count

    def counts(self) -> dict[Code, int]:
        return {code: tally.count for code, tally in self._tallies.items()}

    def mended(self) -> dict[Code, int]:
        return {code: tally.mended for code, tally in self._tallies.items()}

    @property
    def left(self) -> int:
        """How many findings, notes aside, were not mended."""
        return sum(
            tally.count - tally.mended
            for code, tally in self._tallies.items()
            if MEANINGS[code].severity is not Severity.NOTE
        )

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong, or everything that was is mended."""
        return self.left == 0

    def to_json_object(self) -> dict[str, Any]:
        return {
            "clean": self.is_clean,
            "left": self.left,
            "compared": self.compared,
            "findings": [self._words(code) for code in _by_severity(self._tallies)],
        }

    def _words(self, code: Code) -> dict[str, Any]:
        tally, meaning = self._tallies[code], MEANINGS[code]
        return {
            "code": str(code),
            "severity": str(meaning.severity),
            "count": tally.count,
            "mended": tally.mended,
            "words": meaning.words,
            "repair": meaning.repair,
            "examples": tally.examples,
        }


def _by_severity(codes: Iterable[Code]) -> list[Code]:
    order = (Severity.DAMAGE, Severity.DRIFT, Severity.NOTE)
    return sorted(codes, key=lambda code: (order.index(MEANINGS[code].severity), code))
