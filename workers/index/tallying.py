"""Count what happened, from the events alone: they are only ever appended, so no count falls."""

from __future__ import annotations

import json
from collections import Counter

import sqlalchemy as sa

from workers.index.engine import MetadataIndex
from workers.index.following import newest_event
from workers.index.queries import SET_ASIDE
from workers.index.tables import event

_OF_MANY = ("filed", "adopted", "duplicate")
"""Events that speak of so many `instances`."""

_REFUSED_PEERS = ("association-rejected", "connection-refused", "tls-handshake-failed")
"""Events that speak of `count` peers."""

_OTHERS = ("pair-ready", "pair-held", "pair-failing", "pair-maker-died", "worker-died",
           "expanded", "intake-refused")  # fmt: skip

_PAGE_ROWS = 5000
_MOST_CODES = 100


class EventTally:
    """Counts by kind and, of what was set aside, by code; each event is read once."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._after = 0

    def update(self, index: MetadataIndex) -> Counter[tuple[str, str]]:
        """Count what is new and return all."""
        with index.read() as connection:
            newest = newest_event(connection)
        if newest < self._after:  # another index stands there: made anew, or from a backup
            self._counts.clear()
            self._after = 0
        while self._after < newest:
            self._after = self._count_page(index, newest)
        return self._counts.copy()

    def _count_page(self, index: MetadataIndex, until: int) -> int:
        """Count the next events up to `until`; return the last one that is counted."""
        last = min(until, self._after + _PAGE_ROWS)
        with index.read() as connection:
            rows = connection.execute(
                sa.select(event.c.kind, event.c.details)
                .where(event.c.id > self._after, event.c.id <= last)
                .where(event.c.kind.in_((*_OF_MANY, *_REFUSED_PEERS, *_OTHERS, *SET_ASIDE)))
            ).all()
        for kind, details in rows:
            if kind in _OF_MANY:
                self._counts[kind, ""] += int(json.loads(details).get("instances", 0))
            elif kind in _REFUSED_PEERS:
                self._counts[kind, ""] += int(json.loads(details).get("count", 1))
            elif kind in SET_ASIDE:
                self._counts[kind, self._code(json.loads(details).get("code"))] += 1
            else:
                self._counts[kind, ""] += 1
        return last

    def _code(self, code: object) -> str:
        """Return a code of ours; a database that others wrote into makes no endless list."""
        words = str(code or "none")
        known = {label for _, label in self._counts}
        return words if words in known or len(known) < _MOST_CODES else "other"
