"""Look at the index quickly: on the default SQLite without SQLAlchemy.

Whoever types `status` waits for every import, and SQLAlchemy's takes longer than to count five
million instances.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from config.settings import Settings
from workers.errors import IndexAway, IndexOutdated
from workers.index.counting import Ask
from workers.index.revision import HEAD_REVISION

_BUSY_SECONDS = 30.0


@contextmanager
def glance(settings: Settings) -> Iterator[Ask]:
    """Open the index for one look, in one snapshot.

    Raises IndexAway where it cannot be opened, IndexOutdated where its schema is of another
    version, IndexUnusable where there is none.
    """
    if settings.index.url:
        with _through_sqlalchemy(settings) as ask:
            yield ask
        return
    with closing(_opened(settings)) as connection:

        def ask(statement: str, /, **values: Any) -> list[Any]:
            return connection.execute(statement, values).fetchall()

        yield ask


def _opened(settings: Settings) -> sqlite3.Connection:
    """Open SQLite's file as the engine does; what may write takes the files beside it away again.

    A reader alone would leave them behind, and whoever wants to write next might not be allowed to.
    """
    address = f"{settings.layout.index.as_uri()}?mode=rw"
    connection = None
    try:
        connection = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("BEGIN")
        found = _revision(connection)
    except sqlite3.OperationalError as error:
        if connection is not None:
            connection.close()
        raise IndexAway(error) from error
    if found != HEAD_REVISION:
        connection.close()
        raise IndexOutdated(found, HEAD_REVISION)
    return connection


def _revision(connection: sqlite3.Connection) -> str | None:
    there = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.execute(there).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else None


@contextmanager
def _through_sqlalchemy(settings: Settings) -> Iterator[Ask]:
    from workers.index.engine import asking, open_index

    with closing(open_index(settings)) as index, index.read() as connection:
        yield asking(connection)
