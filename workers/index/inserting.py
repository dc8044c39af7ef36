"""Insert many rows at once, those that are new."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_MOST_VALUES = 32_000
"""SQLite takes 32,766 in one statement."""


def insert_new_rows(
    connection: Connection, table: sa.Table, rows: Sequence[dict[str, Any]], key: sa.Column[Any]
) -> set[Any]:
    """Insert rows unless a unique constraint forbids one; return the keys of the new ones.

    All rows have the same columns; those that they lack are null, or what the schema says.
    """
    if not rows:
        return set()
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        statement = insert(table).on_conflict_do_nothing().returning(key)
        return set(connection.execute(statement, list(rows)).scalars())
    # SQLAlchemy looks at each value of each row, which takes twice what SQLite does with them
    names = tuple(rows[0])
    new: set[Any] = set()
    most = _MOST_VALUES // len(names)
    for first in range(0, len(rows), most):
        some = rows[first : first + most]
        values = tuple(row[name] for row in some for name in names)
        text = _statement(table.name, names, key.name, len(some))
        new.update(connection.exec_driver_sql(text, values).scalars())
    return new


@lru_cache(maxsize=256)
def _statement(table: str, names: tuple[str, ...], key: str, rows: int) -> str:
    columns = ", ".join(f'"{name}"' for name in names)
    row = f"({', '.join('?' * len(names))})"
    return (
        f'INSERT INTO "{table}" ({columns}) VALUES {", ".join([row] * rows)} '  # noqa: S608 - ours
        f'ON CONFLICT DO NOTHING RETURNING "{key}"'
    )
