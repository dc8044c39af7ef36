"""What filing a batch did."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers import clock
from workers.filing.rows import ArrivalRow
from workers.header.facts import InstanceFacts


@dataclass(slots=True)
class FilingReport:
    """What a call of `file_entries` did."""

    outcomes: dict[str, int] = field(default_factory=dict)
    touched_series: set[int] = field(default_factory=set)
    touched_studies: set[int] = field(default_factory=set)
    replaced_in: set[int] = field(default_factory=set)
    """Series in which another file took an instance's place."""
    left: int = 0
    """Entries that were busy, gone, or left for later by an error of the system."""
    more_comes: bool = False
    """Every batch is open still, or has entries that are not filed."""
    seconds: list[float] = field(default_factory=list)
    """How long each entry took from the spool into the index."""

    facts: list[tuple[str, InstanceFacts]] = field(default_factory=list)
    """Of each instance that was filed, as they are and as the index has them."""

    def count(self, row: ArrivalRow) -> None:
        self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
        if row.received_at is not None:
            self.seconds.append(clock.seconds_between(row.received_at, row.at))
