"""Open the index: SQLite beside the root by default, PostgreSQL by URL.

One transaction writes at a time, on either database: what it read still holds when it writes.
Readers are plain and short, each in one snapshot.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from config.settings import Settings
from workers.errors import IndexOutdated, IndexUnusable
from workers.identity import give_archive_identity, give_identity, write_stores
from workers.index import tables
from workers.index.counting import Ask, Identities, identities
from workers.index.hosts import claim_spool, has_hosts
from workers.index.migrating import current_revision, upgrade
from workers.index.postgresql import index_away, is_away, postgresql_engine
from workers.index.revision import HEAD_REVISION
from workers.index.sqlite import back_up, give_mode, orphans, sqlite_engine


class MetadataIndex:
    """The index of one installation. Open it after fork, one a process; close it."""

    def __init__(self, engine: Engine, spool: str = "") -> None:
        self.engine = engine
        self.spool = spool
        """The name of this host's spool, where hosts have names."""
        self._writing = engine.execution_options(writes=True)
        self._reading = engine
        if engine.dialect.name == "postgresql":
            self._reading = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that may write; committed at the end, rolled back on an error.

        Raises IndexAway when the server is away: before the end, or at it, and then nobody knows
        whether it was done.
        """
        with _telling_away(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a short reading transaction, one snapshot. Raises IndexAway."""
        with _telling_away(), self._reading.begin() as connection:
            yield connection

    def identities(self) -> Identities:
        """Read which stores belong to this index."""
        with self.read() as connection:
            return identities(asking(connection), self.spool)

    def checkpoint(self) -> None:
        """Write SQLite's log back into the file and cut it; nothing on other databases."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _telling_away() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        if is_away(error):
            raise index_away(error) from error
        raise


def prepare_index(settings: Settings) -> MetadataIndex:
    """Create or migrate the index, once, locked and after a backup; then open it.

    A fresh index gives archive and spool their identity (or takes over the one they carry).
    """
    layout = settings.layout
    layout.make_private()
    with open(layout.locks / "migration", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = _engine(settings)
        try:
            if engine.dialect.name == "sqlite":
                give_mode(Path(engine.url.database or ""), layout.file_mode)
            found = _revision(engine)
            if found != HEAD_REVISION:
                if found is not None and engine.dialect.name == "sqlite":
                    back_up(layout.index, found)
                _migrate(settings)
            _know_stores(engine, settings)
            stores = MetadataIndex(engine, settings.spool.name).identities()
            write_stores(layout, stores.archive, stores.spool)
        finally:
            engine.dispose()
    return open_index(settings)


def open_index(settings: Settings) -> MetadataIndex:
    """Open an index that exists. Raises IndexUnusable when it is missing or of another version."""
    url = make_url(settings.index_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise IndexUnusable(
            f"no index at {url.database}: it is made by `petct-ingest run` or `petct-ingest sweep`"
        )
    engine = _engine(settings)
    found = _revision(engine)
    if found != HEAD_REVISION:
        engine.dispose()
        raise IndexOutdated(found, HEAD_REVISION)
    return MetadataIndex(engine, settings.spool.name)


def engine_of(url: URL, password_file: Path | None = None, *, patient: bool = False) -> Engine:
    """Return an engine for a URL; `patient` is for what makes tables anew or takes long.

    Raises IndexUnusable for a database of another kind, and where it cannot be used.
    """
    if url.get_backend_name() == "sqlite":
        return sqlite_engine(url, foreign_keys=not patient)
    if url.get_backend_name() == "postgresql":
        return postgresql_engine(url, password_file, patient=patient)
    raise IndexUnusable(f"index.url must be sqlite or postgresql, not {url.get_backend_name()}")


def _revision(engine: Engine) -> str | None:
    """Read the schema's revision. Raises IndexAway where the database cannot be opened."""
    try:
        return current_revision(engine)
    except sa.exc.OperationalError as error:
        engine.dispose()
        raise index_away(error) from error


def asking(connection: Connection) -> Ask:
    """Let the plain statements of counting.py be asked on a connection of the engine's."""

    def ask(statement: str, /, **values: Any) -> Sequence[Any]:
        return connection.execute(sa.text(statement), values).all()

    return ask


def insert_new(connection: Connection, table: sa.Table, **values: Any) -> bool:
    """Insert a row unless a unique constraint forbids it; tell whether it was inserted."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(table).values(**values).on_conflict_do_nothing()
    statement = statement.execution_options(preserve_rowcount=True)  # -1 on PostgreSQL otherwise
    return bool(connection.execute(statement).rowcount)


def _migrate(settings: Settings) -> None:
    """Run the missing migrations; SQLite changes a table by making it anew, unwatched."""
    engine = _engine(settings, migrating=True)
    try:
        upgrade(engine)
        if engine.dialect.name == "sqlite" and (lost := orphans(engine)):
            raise IndexUnusable(f"the migrated index has {lost} rows without a parent")
    finally:
        engine.dispose()


def _engine(settings: Settings, *, migrating: bool = False) -> Engine:
    given = settings.index.password_file
    password_file = None if given is None else settings.layout.root / given
    return engine_of(make_url(settings.index_url), password_file, patient=migrating)


def _know_stores(engine: Engine, settings: Settings) -> None:
    """Let the index know archive and spool, or a host's name; where it does, wait for no writer."""
    layout = settings.layout
    index = MetadataIndex(engine)
    with index.read() as connection:
        known = set(connection.execute(sa.select(tables.meta.c.key)).scalars())
        has_spool = "spool_id" in known or has_hosts(connection)
    if "archive_id" in known and has_spool and not settings.spool.name:
        return
    with index.write() as connection:
        known = set(connection.execute(sa.select(tables.meta.c.key)).scalars())
        if "archive_id" not in known:
            identity = give_archive_identity(layout)
            connection.execute(tables.meta.insert().values(key="archive_id", value=identity))
        if settings.spool.name:
            claim_spool(connection, settings.spool.name, give_identity(layout.spool))
        elif "spool_id" not in known and not has_hosts(connection):
            identity = give_identity(layout.spool)
            connection.execute(tables.meta.insert().values(key="spool_id", value=identity))
