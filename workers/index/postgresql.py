"""PostgreSQL as the index, when more than one machine writes.

Who may write takes one advisory lock, so that there is one writer at a time here too: what was read
in a writing transaction still holds when it writes, and rows are numbered in the order in which
they appear. Whoever holds it and falls silent loses it after `_HELD_SECONDS`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from workers.errors import IndexAway, IndexUnreached, IndexUnusable

_WRITE_LOCK = 7308332045
_HELD_SECONDS = 30
"""So long a writer waits for the lock (as on SQLite), and may do nothing while it holds it."""
_PASSWORD_BYTES = 4096
_ISOLATION = "READ COMMITTED"
"""What a writer reads behind the lock is what was committed before; a snapshot would be older."""

_POOL = {
    "pool_size": 2,  # a thread of a role holds one, some take a second for a moment
    "max_overflow": 18,
    "pool_use_lifo": True,
    "pool_pre_ping": True,  # a server that was restarted meanwhile is no error
}
_CONNECTING: dict[str, int | str] = {  # libpq's words; what the URL says goes before them
    "client_encoding": "UTF8",
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds: a cut cable is noticed while something is sent
}


def postgresql_engine(
    url: URL, password_file: Path | None = None, *, patient: bool = False
) -> Engine:
    """Return an engine of a database of a server; it connects when first used.

    `patient` waits for the write lock without end: for what no deadline fits, such as a migration.
    Raises IndexUnusable where psycopg is missing or the password cannot be read.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise IndexUnusable(
            "index.url asks for PostgreSQL, and psycopg is not installed:"
            " pip install 'petct-ingest[postgres]'"
        )
    if password_file is not None:
        url = url.set(password=_password(password_file))
    given = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    given.setdefault("application_name", _application())
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), connect_args=given, isolation_level=_ISOLATION,
        **_POOL,
    )  # fmt: skip

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: object) -> None:
        _be_understood(connection)

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            connection.exec_driver_sql(_LOCKING if patient else _LIMITED)

    return engine


def _be_understood(connection: Any) -> None:
    """Let a new connection speak as we do, whatever its database or role is set to.

    Raises IndexUnusable where the database cannot hold every text.
    """
    told = connection.info.parameter_status
    if (encoding := told("server_encoding")) != "UTF8":
        connection.close()
        raise IndexUnusable(
            f"the database has the encoding {encoding}, which does not hold every name:"
            " create it with ENCODING 'UTF8'"
        )
    if not told("DateStyle").startswith("ISO"):  # times as text, which we read
        connection.execute("SET datestyle TO ISO")
        connection.commit()


_DURABLE = (  # a server may answer before it is; after that answer an entry leaves the spool
    "CASE current_setting('synchronous_commit')"
    " WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
)
_LOCKING = f"SELECT {_DURABLE}, pg_advisory_xact_lock({_WRITE_LOCK})"
_LIMITED = (  # in one round trip; `true`: until the transaction ends
    f"SELECT {_DURABLE}, set_config('lock_timeout', '{_HELD_SECONDS}s', true),"
    f" set_config('idle_in_transaction_session_timeout', '{_HELD_SECONDS}s', true),"
    f" pg_advisory_xact_lock({_WRITE_LOCK})"
)


def is_away(error: sa.exc.DBAPIError) -> bool:
    """Tell whether the server went away or cannot be reached; nothing is wrong with a statement.

    What the server itself says bears a SQLSTATE, a failed connection none.
    """
    return error.connection_invalidated or (
        isinstance(error, sa.exc.OperationalError) and getattr(error.orig, "sqlstate", "") is None
    )


def index_away(error: sa.exc.DBAPIError) -> IndexAway:
    """Return what to raise for an error that kept an index from being opened or used.

    A server that asked for a password and then let nobody in has a reason that a person must mend.
    """
    attempt = getattr(error.orig, "pgconn", None)
    refused = attempt is not None and (attempt.used_password or attempt.needs_password)
    kind = IndexUnreached if is_away(error) and not refused else IndexAway
    return kind(error.orig or error)


def _application() -> str:
    """Name this process for `pg_stat_activity`: its command, and nothing that stands behind it."""
    words = [word for word in sys.argv[1:2] if word.isalpha()]
    return " ".join(["petct-ingest", *words])


def _password(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            found = file.read(_PASSWORD_BYTES).decode().rstrip("\r\n")
    except OSError as error:
        raise IndexUnusable(f"[index] {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise IndexUnusable("index.password_file holds no text") from None
    if not found:
        raise IndexUnusable("the file index.password_file is empty")
    return found
