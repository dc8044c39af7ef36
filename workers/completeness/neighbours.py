"""What may wait in the spools of other hosts, told on our own monotonic clock.

No clock of another host is ever compared with ours: what counts is when we saw that a host had told
something new, and how old it said that its oldest entry was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.index.hosts import HostReport

AWAY_SECONDS = 600.0
"""A host that tells nothing for so long is away: nothing is thought to have come in there since it
last told something."""

_UNKNOWN = float("-inf")


@dataclass(frozen=True, slots=True)
class _Known:
    """A host's report, and when it was made: after we looked and did not see it."""

    report: HostReport
    made_after: float
    seen_at: float

    def is_away(self, now: float) -> bool:
        return self.report.stopped or now - self.seen_at >= AWAY_SECONDS

    def waiting_since(self, now: float) -> float:
        """Return since when something that is not filed may wait there."""
        told = float("inf") if self.is_away(now) else self.made_after
        age = self.report.oldest_seconds
        return told if age is None else min(told, self.made_after - age)


class Neighbours:
    """The other hosts of an index, as one of them sees them; times are its monotonic seconds."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._known: dict[str, _Known] = {}
        self._looked = _UNKNOWN

    def look(self, reports: Iterable[HostReport], now: float) -> None:
        """Take notice of what all hosts have told; `now` is from before they were read."""
        found = {}
        for report in reports:
            if report.name == self._own:
                continue
            before = self._known.get(report.name)
            if before is None or before.report.beat != report.beat:
                before = _Known(report, self._looked, now)
            found[report.name] = before
        self._known, self._looked = found, now

    def boots(self, now: float) -> set[str]:
        """Return the boots of hosts that are there: series on their clocks are theirs to judge."""
        return {one.report.boot for one in self._known.values() if not one.is_away(now)}

    def waiting_since(self, now: float) -> float:
        """Return since when something may wait elsewhere that is not filed; infinity for never.

        What came in after a living host's last word is not known, so that is the latest moment
        there. A host that is away counts with what it said it had.
        """
        return min((one.waiting_since(now) for one in self._known.values()), default=float("inf"))

    def away(self, now: float) -> list[HostReport]:
        """Return the hosts that are away though something waits there: series wait for them."""
        return [
            one.report
            for one in self._known.values()
            if one.is_away(now) and one.report.oldest_seconds is not None
        ]
