"""Count what happened, from the events alone: they are only ever appended, so no count falls.

Now and then what was counted is noted in the index, where a later start goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress

import sqlalchemy as sa

from workers.errors import IndexUnusable
from workers.index.engine import MetadataIndex
from workers.index.following import newest_event
from workers.index.marks import read_mark, write_mark
from workers.index.queries import SET_ASIDE
from workers.index.tables import event

_OF_MANY = ("filed", "adopted", "duplicate")
"""Events that speak of so many `instances`."""

_REFUSED_PEERS = ("association-rejected", "connection-refused", "tls-handshake-failed")
"""Events that speak of `count` peers."""

_OTHERS = ("pair-ready", "pair-held", "pair-failing", "pair-maker-died", "worker-died",
           "expanded", "intake-refused")  # fmt: skip

_COUNTED = (*_OF_MANY, *_REFUSED_PEERS, *_OTHERS, *SET_ASIDE)

_PAGE_ROWS = 5000
_MOST_CODES = 100
_MARK = "event_tally"
_NOTED_EVENTS = 100_000
"""After so many the counts are noted: to read them anew takes a second or so."""


class EventTally:
    """Counts by kind and, of what was set aside, by code; each event is read once."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._after = self._noted = 0

    def update(self, index: MetadataIndex) -> Counter[tuple[str, str]]:
        """Count what is new and return all."""
        with index.read() as connection:
            newest = newest_event(connection)
        if newest < self._after:  # another index stands there: made anew, or from a backup
            self._counts.clear()
            self._after = self._noted = 0
        if not self._after:
            self._go_on(read_mark(index, _MARK), newest)
        while self._after < newest:
            self._after = self._count_page(index, newest)
            if self._after - self._noted >= _NOTED_EVENTS:
                self._note(index)
        return self._counts.copy()

    def _note(self, index: MetadataIndex) -> None:
        """Note what was counted; who cannot write now does with the next events."""
        counts = [[*key, count] for key, count in self._counts.items()]
        noted = {"counted": _COUNTED, "after": self._after, "counts": counts}
        with suppress(IndexUnusable, sa.exc.DBAPIError):
            write_mark(index, _MARK, json.dumps(noted))
        self._noted = self._after

    def _go_on(self, mark: str | None, newest: int) -> None:
        """Go on behind what was noted, where it was counted as this version does."""
        noted = json.loads(mark or "{}")
        if noted.get("counted") == list(_COUNTED) and noted["after"] <= newest:
            self._counts.update({(kind, code): count for kind, code, count in noted["counts"]})
            self._after = self._noted = noted["after"]

    def _count_page(self, index: MetadataIndex, until: int) -> int:
        """Count the next events up to `until`; return the last one that is counted."""
        last = min(until, self._after + _PAGE_ROWS)
        with index.read() as connection:
            rows = connection.execute(
                sa.select(event.c.kind, event.c.details)
                .where(event.c.id > self._after, event.c.id <= last)
                .where(event.c.kind.in_(_COUNTED))
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
