"""Follow the events of the index in order, and miss none.

SQLite gives an id when its one writer inserts. PostgreSQL gives it earlier than the transaction
ends, so a smaller id may appear after a larger one: there, whoever follows stays a while behind.
"""

from __future__ import annotations

from collections import deque

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import event

HOLD_SECONDS = 30.0
"""No transaction of ours on PostgreSQL lasts longer."""


class Horizon:
    """Up to which event nothing more will appear; `now` is monotonic seconds."""

    def __init__(self, hold_seconds: float) -> None:
        self._hold_seconds = hold_seconds
        self._seen: deque[tuple[float, int]] = deque()
        self._settled = 0

    @classmethod
    def of(cls, dialect: str) -> Horizon:
        """Return the horizon of a kind of database."""
        return cls(0.0 if dialect == "sqlite" else HOLD_SECONDS)

    def settled(self, newest: int, now: float) -> int:
        """Note the newest id there is; return the newest that was there long enough ago."""
        self._seen.append((now, newest))
        while self._seen and now - self._seen[0][0] >= self._hold_seconds:
            self._settled = self._seen.popleft()[1]
        return self._settled


def newest_event(connection: Connection) -> int:
    """Return the id of the newest event, 0 before the first."""
    return int(connection.execute(sa.select(sa.func.max(event.c.id))).scalar() or 0)
