"""Follow the events of the index in order, and miss none.

One transaction writes at a time, on either database: a row that appears has a larger id than every
row that appeared before.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import event


def newest_event(connection: Connection) -> int:
    """Return the id of the newest event, 0 before the first."""
    return int(connection.execute(sa.select(sa.func.max(event.c.id))).scalar() or 0)
