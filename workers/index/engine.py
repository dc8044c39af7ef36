"""Open the index: SQLite beside the root by default, PostgreSQL by URL.

Whoever may write takes the write lock at once (`BEGIN IMMEDIATE`): a deferred transaction that
reads and then writes fails on SQLite with SQLITE_BUSY_SNAPSHOT as soon as somebody else wrote in
between. Readers are plain and short.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from config.settings import Settings
from workers import durable
from workers.errors import IndexAway, IndexOutdated, IndexUnusable
from workers.identity import give_archive_identity, give_identity, write_stores
from workers.index import tables
from workers.index.counting import Ask, Identities, identities
from workers.index.migrating import current_revision, upgrade
from workers.index.revision import HEAD_REVISION

_BUSY_MILLISECONDS = 30_000
_CACHE_KIB = 8 << 10
"""Of a connection to SQLite: the inner pages of an index of millions of instances."""
_LOG_PAGES = 8000
"""After so many (of 4 KiB) SQLite writes its log back: each time it waits for the disk twice."""
_NETWORK_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph", "glusterfs")


class MetadataIndex:
    """The index of one installation. Open it after fork, one a process; close it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that may write; committed at the end, rolled back on an error."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a short reading transaction, one snapshot."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def identities(self) -> Identities:
        """Read which stores belong to this index."""
        with self.read() as connection:
            return identities(asking(connection))

    def checkpoint(self) -> None:
        """Write SQLite's log back into the file and cut it; nothing on other databases."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.engine.dispose()


def prepare_index(settings: Settings) -> MetadataIndex:
    """Create or migrate the index, once, locked and after a backup; then open it.

    A fresh index gives archive and spool their identity (or takes over the one they carry).
    """
    layout = settings.layout
    layout.make_private()
    with open(layout.locks / "migration", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = _engine(settings)
        if engine.dialect.name == "sqlite":
            _give_mode(Path(engine.url.database or ""), layout.file_mode)
        found = _revision(engine)
        if found != HEAD_REVISION:
            if found is not None and engine.dialect.name == "sqlite":
                _back_up(layout.index, found)
            _migrate(settings)
        _know_stores(engine, settings)
        stores = MetadataIndex(engine).identities()
        write_stores(layout, stores.archive, stores.spool)
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
    return MetadataIndex(engine)


def _revision(engine: Engine) -> str | None:
    """Read the schema's revision. Raises IndexAway where the database cannot be opened."""
    try:
        return current_revision(engine)
    except sa.exc.OperationalError as error:
        engine.dispose()
        raise IndexAway(error.orig or error) from error


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
    return bool(connection.execute(statement).rowcount)


def insert_new_rows(
    connection: Connection, table: sa.Table, rows: list[dict[str, Any]], key: sa.Column[Any]
) -> set[Any]:
    """Insert rows unless a unique constraint forbids one; return the keys of the new ones."""
    if not rows:
        return set()
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(table).on_conflict_do_nothing().returning(key)
    return set(connection.execute(statement, rows).scalars())


def _migrate(settings: Settings) -> None:
    """Run the missing migrations; SQLite changes a table by making it anew, unwatched."""
    engine = _engine(settings, foreign_keys=False)
    try:
        upgrade(engine)
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if orphans:
                raise IndexUnusable(f"the migrated index has {len(orphans)} rows without a parent")
    finally:
        engine.dispose()


def _engine(settings: Settings, *, foreign_keys: bool = True) -> Engine:
    url = make_url(settings.index_url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, foreign_keys=foreign_keys)
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    raise IndexUnusable(f"index.url must be sqlite or postgresql, not {url.get_backend_name()}")


def _sqlite_engine(url: URL, *, foreign_keys: bool) -> Engine:
    path = Path(url.database or "")
    kind = _file_system(path.parent)
    if kind in _NETWORK_SYSTEMS:
        raise IndexUnusable(
            f"{path} lies on {kind}: SQLite loses data there; use a local disk or PostgreSQL"
        )
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_MILLISECONDS / 1000})

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin event below starts transactions
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _give_mode(path: Path, mode: int) -> None:
    """Let a database be read by whom the settings say, before SQLite makes it.

    By name: closing a descriptor of ours would end the locks that SQLite holds.
    """
    if not path.exists():
        os.close(durable.create_new(path))  # an empty file is an empty database
    for one in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with suppress(FileNotFoundError):  # SQLite makes these like the file itself
            one.chmod(mode)


def _back_up(path: Path, revision: str) -> None:
    """Copy the whole database beside itself through SQLite's own backup."""
    target = path.with_name(f"{path.name}.before-migration-from-{revision}")
    _give_mode(target, stat.S_IMODE(path.stat().st_mode))
    with (
        sqlite3.connect(path) as source,
        sqlite3.connect(target) as copy,
    ):
        source.backup(copy)
    source.close()
    copy.close()


def _know_stores(engine: Engine, settings: Settings) -> None:
    layout = settings.layout
    with MetadataIndex(engine).write() as connection:
        known = set(connection.execute(sa.select(tables.meta.c.key)).scalars())
        if "archive_id" not in known:
            identity = give_archive_identity(layout)
            connection.execute(tables.meta.insert().values(key="archive_id", value=identity))
        if "spool_id" not in known:
            identity = give_identity(layout.spool)
            connection.execute(tables.meta.insert().values(key="spool_id", value=identity))


def _file_system(folder: Path) -> str:
    """Name the file system that a folder lies on, from the longest mount point above it."""
    best, kind = "", ""
    here = os.path.realpath(folder)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point = before.split(" ")[4].replace("\\040", " ")
            inside = here == point or here.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, after.split(" ")[0]
    return kind
