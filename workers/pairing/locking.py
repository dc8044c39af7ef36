"""Let one process at a time make the pair of a study, on whatever host.

Where the index is a file, all are on one machine: flock. On PostgreSQL the server keeps the lock
as long as the session that took it lives (PostgreSQL manual, 13.3.5). A session can be lost while
a pair is being made; then another may begin, and the generation in the index decides: what is not
wanted any more is thrown away (making.py).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from config.layout import Layout
from workers.errors import IndexAway
from workers.index.engine import MetadataIndex
from workers.index.postgresql import is_away

_KIND = 1885432178
"""The first of the two numbers of our locks on the server; the second one is the pair's."""
_NOTICED = (
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
)
"""The server notices within half a minute that a host is gone, and frees its locks."""


@contextmanager
def pair_lock(index: MetadataIndex, layout: Layout, pair_id: int) -> Iterator[bool]:
    """Hold the lock of a pair; False when somebody else holds it.

    Raises IndexAway where the server that would keep it is away.
    """
    on_server = index.engine.dialect.name == "postgresql"
    with _on_server(index, pair_id) if on_server else _on_disk(layout, pair_id) as alone:
        yield alone


@contextmanager
def _on_disk(layout: Layout, pair_id: int) -> Iterator[bool]:
    with open(layout.locks / f"pair-{pair_id}", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _on_server(index: MetadataIndex, pair_id: int) -> Iterator[bool]:
    key = sa.literal(_KIND, sa.Integer), sa.literal(pair_id % 2**31, sa.Integer)
    try:
        connection = index.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.select(*(sa.func.set_config(*one, False) for one in _NOTICED)))
        alone = bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(*key))).scalar())
    except sa.exc.DBAPIError as error:
        raise (IndexAway(error.orig or error) if is_away(error) else error) from error
    try:
        yield alone
    finally:
        try:
            if alone:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(*key)))
        except sa.exc.DBAPIError:  # the session is lost, and the lock with it
            connection.invalidate()
        connection.close()
