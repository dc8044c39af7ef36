"""SQLite as the index: how it is opened, and copied before it is changed.

Whoever may write takes the write lock at once (`BEGIN IMMEDIATE`): a deferred transaction that
reads and then writes fails with SQLITE_BUSY_SNAPSHOT as soon as somebody else wrote in between.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from workers import durable
from workers.errors import IndexUnusable

_BUSY_MILLISECONDS = 30_000
_CACHE_KIB = 8 << 10
"""Of a connection: the inner pages of an index of millions of instances."""
_LOG_PAGES = 8000
"""After so many (of 4 KiB) SQLite writes its log back: each time it waits for the disk twice."""
_NETWORK_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph", "glusterfs")


def sqlite_engine(url: URL, *, foreign_keys: bool = True) -> Engine:
    """Return an engine of a database file. Raises IndexUnusable on a network file system."""
    path = Path(url.database or "")
    kind = file_system(path.parent)
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


def give_mode(path: Path, mode: int) -> None:
    """Let a database be read by whom the settings say, before SQLite makes it.

    By name: closing a descriptor of ours would end the locks that SQLite holds.
    """
    if not path.exists():
        os.close(durable.create_new(path))  # an empty file is an empty database
    for one in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with suppress(FileNotFoundError):  # SQLite makes these like the file itself
            one.chmod(mode)


def back_up(path: Path, revision: str) -> None:
    """Copy the whole database beside itself through SQLite's own backup."""
    target = path.with_name(f"{path.name}.before-migration-from-{revision}")
    give_mode(target, stat.S_IMODE(path.stat().st_mode))
    with (
        sqlite3.connect(path) as source,
        sqlite3.connect(target) as copy,
    ):
        source.backup(copy)
    source.close()
    copy.close()


def orphans(engine: Engine) -> int:
    """Count the rows whose parent is not there."""
    with engine.connect() as connection:
        return len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())


def file_system(folder: Path) -> str:
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
