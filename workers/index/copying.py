"""Copy an index whole into another database, and show that both are the same.

All is read in one snapshot and written in one transaction, which is committed when every row was
read back and is equal: killed anywhere before that, the target is empty, and running again starts
anew. A SQLite file takes its name last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from workers import durable
from workers.errors import CopyDiffers, CopyRefused, IndexAway, IndexOutdated
from workers.index.engine import engine_of
from workers.index.migrating import current_revision, upgrade
from workers.index.postgresql import is_away
from workers.index.revision import HEAD_REVISION
from workers.index.sqlite import give_mode
from workers.index.tables import metadata

_ROWS_AT_ONCE = 5000
_OURS = "petct-ingest%"

Advance = Callable[[str, int, int], None]
"""Told what goes on, how many rows are done, and of how many."""


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """One table that is the same on both sides."""

    name: str
    rows: int
    sha256: str
    """Of all rows in the order of their keys."""


@dataclass(frozen=True, slots=True)
class Side:
    """A database to copy from or to."""

    url: URL
    password_file: Path | None = None
    file_mode: int = 0o600
    """Of a SQLite file that is made."""

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database, None for a server's."""
        return Path(self.url.database or "") if self.is_file else None

    @property
    def is_file(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def engine(self) -> Engine:
        return engine_of(self.url, self.password_file, patient=True)


def copy_index(source: Side, target: Side, advance: Advance) -> list[CopiedTable]:
    """Copy every row of every table; return what was copied, in the order of the tables.

    Raises CopyRefused where the target is not empty or somebody works with a server's database,
    CopyDiffers where the target does not give back what it was given, IndexOutdated where the
    source has the schema of another version, IndexAway where a database cannot be opened.
    """
    with _opened(source) as reading, _made(target) as writing:
        found = current_revision(reading)
        if found != HEAD_REVISION:
            raise IndexOutdated(found, HEAD_REVISION)
        for engine in (reading, writing):
            _refuse_company(engine)
        with _snapshot(reading) as rows, writing.execution_options(writes=True).begin() as into:
            _refuse_rows(into)
            digests = {
                table.name: _copy(table, rows, into, advance) for table in metadata.sorted_tables
            }
            copied = [_compare(table, digests[table.name], into, advance)
                      for table in metadata.sorted_tables]  # fmt: skip
        if writing.dialect.name == "postgresql":
            _tell_planner(writing)
    return copied


@contextmanager
def _opened(side: Side) -> Iterator[Engine]:
    """Open a database; one that is away is told as such."""
    if side.path is not None and not side.path.exists():
        raise CopyRefused(f"there is no index at {side.path}")
    engine = side.engine()
    try:
        yield engine
    except sa.exc.DBAPIError as error:
        if is_away(error):
            raise IndexAway(error.orig or error) from error
        raise
    finally:
        engine.dispose()


@contextmanager
def _made(side: Side) -> Iterator[Engine]:
    """Open the target with our tables in it; a SQLite file has another name until it is whole."""
    if side.path is None:
        with _opened(side) as engine:
            upgrade(engine)
            yield engine
        return
    if side.path.exists():
        raise CopyRefused(f"{side.path} exists: a copy is made where no index is")
    making = side.path.with_name(f"{side.path.name}.copying")
    for left in (making, Path(f"{making}-wal"), Path(f"{making}-shm")):
        left.unlink(missing_ok=True)  # of one that was killed
    give_mode(making, side.file_mode)
    with _opened(Side(side.url.set(database=os.fspath(making)))) as engine:
        upgrade(engine)
        yield engine
    durable.fsync_file(making)
    durable.rename_new(making, side.path)
    durable.fsync_folder(side.path.parent)


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Read all in one snapshot; of SQLite with the write lock, so that nobody adds to it."""
    if engine.dialect.name == "sqlite":
        options: dict[str, Any] = {"writes": True}
    else:
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.execution_options(**options).begin() as connection:
        yield connection


def _refuse_company(engine: Engine) -> None:
    """Refuse a server's database that others of ours work with; SQLite's lock keeps them out."""
    if engine.dialect.name == "sqlite":
        return
    others = sa.text(
        "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND application_name LIKE :ours ORDER BY 1"
    )
    with engine.connect() as connection:
        found = list(connection.execute(others, {"ours": _OURS}).scalars())
    if found:
        raise CopyRefused(f"stop the system first: {', '.join(found)} is connected to the database")


def _refuse_rows(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise CopyRefused(f"the target is not empty: its table {table.name} has rows")


def _copy(table: sa.Table, rows: Connection, into: Connection, advance: Advance) -> list[bytes]:
    """Copy a table; return a digest of each page of it."""
    total = _count(table, rows)
    done, digests = 0, []
    with _writer(table, into) as write:
        for page in _pages(table, rows):
            write(page)
            digests.append(_digest(page))
            done += len(page)
            advance(f"copy {table.name}", done, total)
    if into.dialect.name == "postgresql" and "id" in table.c:
        numbered = sa.text(  # the next row goes on behind the last one
            f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id))"  # noqa: S608
            f" FROM {table.name} HAVING max(id) IS NOT NULL"
        )
        into.execute(numbered)
    return digests


def _compare(
    table: sa.Table, digests: Sequence[bytes], into: Connection, advance: Advance
) -> CopiedTable:
    """Read a table back, and compare it with what was read of the source."""
    total = _count(table, into)
    done, whole = 0, hashlib.sha256()
    pages = _pages(table, into)
    for number, expected in enumerate(digests):
        page = next(pages, [])
        if _digest(page) != expected:
            raise CopyDiffers(
                f"table {table.name}: rows {number * _ROWS_AT_ONCE + 1} to"
                f" {(number + 1) * _ROWS_AT_ONCE} are not what was written; nothing was kept"
            )
        whole.update(expected)
        done += len(page)
        advance(f"compare {table.name}", done, total)
    if next(pages, None) is not None:
        raise CopyDiffers(f"table {table.name} has more rows than were written; nothing was kept")
    return CopiedTable(table.name, done, whole.hexdigest())


def _count(table: sa.Table, connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def _pages(table: sa.Table, connection: Connection) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows in the order of their keys, which is the same on every database."""
    postgresql = connection.dialect.name == "postgresql"
    keys = [
        sa.collate(key, "C") if postgresql and isinstance(key.type, sa.Text) else key
        for key in table.primary_key
    ]
    found = connection.execution_options(stream_results=True).execute(
        sa.select(table).order_by(*keys)
    )
    for page in found.partitions(_ROWS_AT_ONCE):
        yield [tuple(row) for row in page]


def _digest(page: Sequence[tuple[Any, ...]]) -> bytes:
    return hashlib.sha256(repr(page).encode("utf-8", "surrogatepass")).digest()


@contextmanager
def _writer(
    table: sa.Table, into: Connection
) -> Iterator[Callable[[Sequence[tuple[Any, ...]]], None]]:
    """Yield what writes rows: PostgreSQL's COPY, or one statement for many."""
    if into.dialect.name != "postgresql":
        names = [column.name for column in table.c]
        yield lambda page: _insert(table, names, page, into)
        return
    quote = into.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.c)
    driver: Any = into.connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {quote(table.name)} ({columns}) FROM STDIN") as copy,
    ):

        def write(page: Sequence[tuple[Any, ...]]) -> None:
            for row in page:
                copy.write_row(row)

        yield write


def _insert(
    table: sa.Table, names: Sequence[str], page: Sequence[tuple[Any, ...]], into: Connection
) -> None:
    into.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in page])


def _tell_planner(engine: Engine) -> None:
    """Let PostgreSQL count what it now has: without that its first plans are guesses."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("ANALYZE")
