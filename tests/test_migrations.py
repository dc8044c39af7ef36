"""The schema that the migrations make is the schema that the program means."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import POSTGRESQL, index_of
from filing_world import die, end_of_child, in_child, start_child
from sqlalchemy.engine import make_url

from config.settings import Settings, load_settings
from workers.index.engine import engine_of, prepare_index
from workers.index.migrating import MIGRATIONS, upgrade
from workers.index.revision import HEAD_REVISION
from workers.index.tables import metadata


def scripts() -> Config:
    one = Config()
    one.set_main_option("script_location", str(MIGRATIONS))
    one.set_main_option("path_separator", "os")
    return one


def test_the_programs_revision_is_the_last_migration() -> None:
    assert ScriptDirectory.from_config(scripts()).get_heads() == [HEAD_REVISION]


@pytest.mark.both_databases
def test_the_migrations_make_exactly_the_tables_of_the_program(tmp_path: Path) -> None:
    root = tmp_path / "root"
    index = prepare_index(load_settings(root=root, overrides=index_of(root), environ={}))
    try:
        with index.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
            assert sa.inspect(connection).has_table("instance")
    finally:
        index.close()


def test_events_of_the_first_schema_keep_the_entry_that_they_speak_of(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/index.sqlite")
    first = scripts()
    with engine.begin() as connection:
        first.attributes["connection"] = connection
        command.upgrade(first, "0001")
        connection.exec_driver_sql(
            "insert into event (at, kind, details) values ('a', 'dropped', '{\"entry\": \"e1\"}'), "
            "('b', 'wait', '{}')"
        )
    upgrade(engine)
    with engine.begin() as connection:
        found = connection.exec_driver_sql("select kind, entry from event order by id").all()
    assert [tuple(row) for row in found] == [("dropped", "e1"), ("wait", None)]
    engine.dispose()


def test_series_that_are_not_quiet_are_found_without_reading_the_others(tmp_path: Path) -> None:
    """The sweeper asks every other second."""
    root = tmp_path / "root"
    index = prepare_index(load_settings(root=root, overrides=index_of(root), environ={}))
    try:
        with index.engine.connect() as connection:
            for asked in ("last_boot = 'a'", "last_boot != 'a'"):
                words = f"SELECT id FROM series WHERE quiet IS 0 AND {asked}"  # noqa: S608 - above
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}").all()
                assert all("ix_series_open" in row[3] for row in plan), plan
    finally:
        index.close()


# up from every schema that was ever released ------------------------------------------------------

AT = "2026-01-01T00:00:00.000Z"
RELEASED = ("0001", "0002", "0003", "0004", "0005")
ROWS = {
    "study": {"id": 1, "study": "1.2", "patient_ID": "P", "issuer_of_patient_id": "",
              "study_description": "naïve", "two_patients": False, "first_at": AT, "last_at": AT},
    "series": {"id": 2, "study_id": 1, "series": "1.2.3", "series_description": "",
               "modality": "PT", "instances": 1, "source": "s", "role_reasons": "[]",
               "state": "receiving", "state_reasons": "[]", "last_boot": "b",
               "last_monotonic": 0.1, "quiet": False, "first_at": AT, "last_at": AT},
    "folder": {"id": 3, "series_id": 2, "home": "P/A", "digits": "1/2/3/4",
               "accession_number": "A"},
    "instance": {"id": 4, "series_id": 2, "folder_id": 3, "instance_uid": "1.2.3.4",
                 "file_name": "1.2.3.4.dcm", "sop_class_uid": "1", "transfer_syntax_uid": "1",
                 "size": 1 << 40, "sha256": "a", "dataset_sha256": "b", "subseries": "1",
                 "facts": "{}", "filed_at": AT},
    "arrival": {"id": 5, "entry": "e1", "source": "s", "outcome": "filed", "size": 1, "at": AT},
    "pair": {"id": 6, "study_id": 1, "state": "pending", "reasons": "[]", "decision": "{}",
             "generation": 2, "done_generation": 1, "failed_generation": 0, "wanted": "",
             "revision": 1, "begun_boot": "", "begun_monotonic": 0.5},
    "component": {"id": 7, "parent": "", "folded": "p", "name": "P", "value": "P"},
    "event": {"id": 8, "at": AT, "kind": "dropped", "details": '{"entry": "e1"}'},
    "meta": {"key": "archive_id", "value": "c" * 32},
}  # fmt: skip
"""One row of each table, in the columns that each schema has had from the first on."""


@pytest.fixture
def old(tmp_path: Path, index_database: str, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """An installation whose index is an empty database."""
    if index_database == POSTGRESQL:
        server = request.getfixturevalue("postgresql")
        name = f"old{tmp_path.stat().st_ino}"
        server.tell(f"CREATE DATABASE {name}")
        index = {"url": server.url(name)}
    else:
        index = {}
    settings = load_settings(root=tmp_path / "root", overrides={"index": index}, environ={})
    settings.layout.make_private()
    yield settings
    if index_database == POSTGRESQL:
        server.drop(name)


def engine_to(settings: Settings) -> sa.Engine:
    return engine_of(make_url(settings.index_url))


def make_old(settings: Settings, revision: str) -> None:
    """Make the tables of an older version, with a row in each."""
    engine = engine_to(settings)
    with engine.execution_options(writes=True).begin() as connection:
        config = scripts()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        there = sa.MetaData()
        there.reflect(connection)
        for name, row in ROWS.items():
            table = there.tables[name]
            later = {"entry": "e1"} if name == "event" and "entry" in table.c else {}
            connection.execute(table.insert().values(row | later))
    engine.dispose()


def shape_of(settings: Settings) -> dict[str, object]:
    """Every table with its columns, indexes and constraints, and the triggers, as reflected."""
    engine = engine_to(settings)
    with engine.connect() as connection:
        look = sa.inspect(connection)
        found: dict[str, object] = {
            table: {
                "columns": {
                    one["name"]: (str(one["type"]), one["nullable"], one["default"])
                    for one in look.get_columns(table)
                },
                "indexes": sorted((one["name"], one["column_names"], bool(one["unique"]))
                                  for one in look.get_indexes(table)),
                "unique": sorted(one["column_names"] for one in look.get_unique_constraints(table)),
                "foreign": sorted((one["constrained_columns"], one["referred_table"])
                                  for one in look.get_foreign_keys(table)),
                "key": look.get_pk_constraint(table)["constrained_columns"],
            }
            for table in look.get_table_names()
        }  # fmt: skip
        triggers = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
            "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
        }[engine.dialect.name]
        found["triggers"] = sorted(connection.exec_driver_sql(triggers).scalars())
    engine.dispose()
    return found


def assert_nothing_is_lost(settings: Settings) -> None:
    engine = engine_to(settings)
    with engine.connect() as connection:
        for name, row in ROWS.items():
            table = metadata.tables[name]
            wanted = {table.c[column] == value for column, value in row.items()}
            assert len(connection.execute(sa.select(table).where(*wanted)).all()) == 1, name
        told = connection.execute(sa.select(metadata.tables["event"].c.entry)).scalar()
        assert told == "e1"
    engine.dispose()


@pytest.mark.both_databases
@pytest.mark.parametrize("revision", RELEASED)
def test_an_index_of_every_released_schema_is_migrated_with_its_rows(
    old: Settings, tmp_path: Path, revision: str
) -> None:
    make_old(old, revision)
    prepare_index(old).close()
    assert_nothing_is_lost(old)
    fresh = load_settings(
        root=tmp_path / "fresh", overrides=index_of(tmp_path / "fresh"), environ={}
    )
    prepare_index(fresh).close()
    assert shape_of(old) == shape_of(fresh)


@pytest.mark.both_databases
@pytest.mark.parametrize("statement", [5, 15, 25])
def test_a_migration_that_is_killed_is_run_again(old: Settings, statement: int) -> None:
    make_old(old, "0001")
    before = shape_of(old)

    def killed() -> None:
        seen = count()

        def at_statement(*_: object) -> None:
            if next(seen) == statement:
                die()

        sa.event.listen(sa.Engine, "before_cursor_execute", at_statement)
        prepare_index(old).close()

    assert in_child(killed) == -9
    assert shape_of(old) == before
    prepare_index(old).close()
    assert_nothing_is_lost(old)


@pytest.mark.both_databases
def test_two_hosts_that_migrate_at_once_migrate_once(
    old: Settings, tmp_path: Path, index_database: str
) -> None:
    make_old(old, "0001")
    other = old
    if index_database == POSTGRESQL:  # the lock of a root tells another host nothing
        other = old.model_copy(update={"root": tmp_path / "other"})
    children = [start_child(lambda one=one: prepare_index(one).close()) for one in (old, other)]
    assert [end_of_child(child) for child in children] == [0, 0]
    assert_nothing_is_lost(old)
