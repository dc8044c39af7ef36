"""A PostgreSQL server of the tests, and which database an installation of a test has."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from config.settings import Settings
from workers.index.migrating import upgrade

SQLITE, POSTGRESQL = "sqlite", "postgresql"
BOTH = (SQLITE, POSTGRESQL)

_ROOM_BYTES = 2 << 30
_TEMPLATE = "template_of_tests"
_GIVEN = "PETCT_INGEST_INDEX__URL"
_SETTINGS = {
    "fsync": "off",  # a database is dropped with its test
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "listen_addresses": "",
    "timezone": "Asia/Kathmandu",  # nobody may lean on the server's
}


def server_programs() -> Path | None:
    """Return the folder of the newest server's programs; Debian keeps them from PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _version(path: Path) -> float:
    try:
        return float(path.parent.parent.name)
    except ValueError:
        return 0.0


def _ordering(programs: Path) -> tuple[str, ...]:
    """Let the server order text as people do ("a" before "B"), not by bytes, where it can (15)."""
    told = subprocess.run([programs / "postgres", "--version"], capture_output=True, check=True)
    version = int(told.stdout.split()[2].partition(b".")[0])
    return ("--locale-provider=icu", "--icu-locale=en-US") if version >= 15 else ()


class Server:
    """A cluster in a folder of its own, reached over a socket in it."""

    def __init__(self, folder: Path, programs: Path, **settings: str) -> None:
        self.folder = folder
        self._programs = programs
        self._settings = _SETTINGS | settings
        self._data = folder / "data"
        # the server refuses to run as root
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        self._call("initdb", "--pgdata", self._data, "--username=postgres", "--auth=trust",
                   "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
                   *_ordering(programs))  # fmt: skip

    def _call(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            timeout=60,
            **self._user,
        )
        assert done.returncode == 0, (program, done.stdout, self.log())

    def start(self) -> None:
        words = " ".join(f"-c {key}={value!r}" for key, value in self._settings.items())
        options = f"-k {self.folder} {words}"
        self._call("pg_ctl", "start", "--wait", "--pgdata", self._data,
                   "--log", self.folder / "log", "--options", options)  # fmt: skip

    def stop(self, mode: str = "immediate") -> None:
        """End the server: `immediate` as a kill does, `fast` in order."""
        self._call("pg_ctl", "stop", "--wait", "--pgdata", self._data, "--mode", mode)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def engine(self, database: str) -> Engine:
        """A plain engine, none of ours, that keeps no connection."""
        url = make_url(self.url(database)).set(drivername="postgresql+psycopg")
        return sa.create_engine(url, poolclass=sa.NullPool)

    def tell(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, each by itself."""
        engine = self.engine(database).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def refuse_without_password(self, user: str) -> None:
        """Ask this user for a password from now on."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n" + rules.read_text())
        self.tell("SELECT pg_reload_conf()")

    def make_template(self) -> None:
        """Make a database of our schema, which others are copied from."""
        self.tell(f"CREATE DATABASE {_TEMPLATE}")
        engine = self.engine(_TEMPLATE)
        upgrade(engine)
        engine.dispose()

    def create(self, database: str, template: str = _TEMPLATE) -> str:
        """Make a database with our schema and nothing in it; return its URL."""
        self.tell(f"CREATE DATABASE {database} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(database)

    def drop(self, *databases: str) -> None:
        """Remove databases, whoever is still connected."""
        self.tell(*(f"DROP DATABASE IF EXISTS {one} WITH (FORCE)" for one in databases))


@contextmanager
def serving(programs: Path, **settings: str) -> Iterator[Server]:
    """Run a server."""
    memory = "/dev/shm"  # noqa: S108 - quick, and its name is short enough for a socket's
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES
    place = memory if roomy else None
    with tempfile.TemporaryDirectory(prefix="pg", dir=place) as folder:
        server = Server(Path(folder), programs, **settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Databases:
    """What the installations of one test have for an index: each root its own, made when asked."""

    def __init__(self, server: Server | None) -> None:
        self._server = server
        self._made: dict[str, str] = {}
        self._patch = pytest.MonkeyPatch()

    @property
    def kind(self) -> str:
        return SQLITE if self._server is None else POSTGRESQL

    def url_of(self, root: Path) -> str | None:
        """Return the URL of the index of a root; None for the SQLite that is the default."""
        if self._server is None:
            return None
        name = _name_of(root)
        if name not in self._made:
            self._made[name] = self._server.create(name)
        # for commands, which are given the root alone
        self._patch.setenv(_GIVEN, self._made[name])
        return self._made[name]

    def copy(self, source: Path, target: Path) -> None:
        """Give a root a copy of the database of another, which nobody is connected to."""
        if self._server is not None:
            name = _name_of(target)
            self._made[name] = self._server.create(name, _name_of(source))

    def renew(self, root: Path) -> None:
        """Make the database of a root anew."""
        if self._server is not None:
            self._server.drop(_name_of(root))
            self._server.create(_name_of(root))

    def drop(self) -> None:
        self._patch.undo()
        if self._server is not None and self._made:
            self._server.drop(*self._made)

    def keep(self, root: Path, name: str) -> None:
        """Copy the database of a root that nobody is connected to, to put it back later."""
        if self._server is not None:
            kept = f"{_name_of(root)}_{name}"
            self._server.create(kept, _name_of(root))
            self._made[kept] = ""

    def put_back(self, root: Path, name: str) -> None:
        if self._server is not None:
            self._server.drop(_name_of(root))
            self._server.create(_name_of(root), f"{_name_of(root)}_{name}")


def _name_of(root: Path) -> str:
    return "t" + hashlib.blake2b(os.fsencode(root.absolute()), digest_size=8).hexdigest()


class _Current:
    """Of the test that runs: builders of installations are asked deep inside it."""

    databases = Databases(None)


@contextmanager
def chosen(server: Server | None) -> Iterator[Databases]:
    """Let the installations that are built meanwhile have their index there."""
    before, _Current.databases = _Current.databases, Databases(server)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(_GIVEN, raising=False)  # what others have
        try:
            yield _Current.databases
        finally:
            _Current.databases.drop()
            _Current.databases = before


@contextmanager
def lent() -> Iterator[str]:
    """Let one of the tests that share a database have others too; tell of which kind it is."""
    with pytest.MonkeyPatch.context() as patch:
        if given := os.environ.get(_GIVEN):
            patch.setenv(_GIVEN, given)  # and is so again afterwards
        yield current()


def current() -> str:
    """Return the kind of database that installations have just now."""
    return _Current.databases.kind


def index_of(root: Path) -> dict[str, Any]:
    """Return what the settings of an installation say of its index in this test."""
    url = _Current.databases.url_of(root)
    return {"index": {"url": url}} if url else {}


def ask(settings: Settings, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask or change an index from outside, with `?` for values; nothing before it exists."""
    if settings.index.url is None:
        path = settings.layout.index
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=10)) as file, file:
            return file.execute(statement, values).fetchall()
    words = statement.replace("%", "%%").replace("?", "%s")
    with psycopg.connect(settings.index.url) as connection:
        found = connection.execute(words, values)
        return found.fetchall() if found.description else []


def remove_index(settings: Settings) -> None:
    """Take the index of an installation away, as a person or a disk does who loses it."""
    for path in settings.layout.root.glob("index.sqlite*"):
        path.unlink()
    _Current.databases.renew(settings.root)


def copy(source: Path, target: Path) -> None:
    """Copy the index of a root for another, where it is not a file of the root itself."""
    _Current.databases.copy(source, target)


def keep(root: Path, name: str) -> None:
    """Copy the index of a root, where it is not a file of the root itself."""
    _Current.databases.keep(root, name)


def put_back(root: Path, name: str) -> None:
    """Put a copy back that `keep` made."""
    _Current.databases.put_back(root, name)
