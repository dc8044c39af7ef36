"""Tell what became of an upload, from the list of its entries and the index."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from config.layout import Layout
from workers.filing.quarantine import original_path
from workers.index.engine import MetadataIndex
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival
from workers.spool.uploads import read_list

_AT_ONCE = 500
_MOST_TOLD = 100


@dataclass(frozen=True, slots=True)
class Became:
    """What became of one upload; the members of its archives count as well."""

    waiting: int
    outcomes: dict[str, int]
    aside: list[dict[str, Any]]
    """The first that were set aside: entry, what, reason, and the path that it came under."""

    @property
    def set_aside(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in SET_ASIDE)

    def to_json_object(self) -> dict[str, Any]:
        """Return the numbers, for programs."""
        return {"waiting": self.waiting, "outcomes": self.outcomes, "set_aside": self.set_aside}


def what_became(index: MetadataIndex, layout: Layout, batch: str) -> Became | None:
    """Look up every entry of an upload; None where it is not known (any more)."""
    entries = read_list(layout, batch)
    if entries is None:
        return None
    outcomes: Counter[str] = Counter()
    aside: list[dict[str, Any]] = []
    for start in range(0, len(entries), _AT_ONCE):
        with index.read() as connection:
            rows = connection.execute(
                sa.select(arrival.c.entry, arrival.c.outcome, arrival.c.code, arrival.c.reason)
                .where(arrival.c.entry.in_(entries[start : start + _AT_ONCE]))
                .order_by(arrival.c.id)
            ).all()
        outcomes.update(row.outcome for row in rows)
        aside += [_told(layout, row) for row in rows if row.outcome in SET_ASIDE][
            : _MOST_TOLD - len(aside)
        ]
    return Became(len(entries) - outcomes.total(), dict(outcomes), aside)


def _told(layout: Layout, row: Any) -> dict[str, Any]:
    return {
        "entry": row.entry,
        "what": row.code or row.outcome,
        "reason": row.reason or "",
        "path": original_path(layout.quarantine, row.entry),
    }
