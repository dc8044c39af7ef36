"""The schema that the migrations make is the schema that the program means."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from config.settings import load_settings
from workers.index.engine import prepare_index
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


def test_the_migrations_make_exactly_the_tables_of_the_program(tmp_path: Path) -> None:
    index = prepare_index(load_settings(root=tmp_path / "root", environ={}))
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
    index = prepare_index(load_settings(root=tmp_path / "root", environ={}))
    try:
        with index.engine.connect() as connection:
            for asked in ("last_boot = 'a'", "last_boot != 'a'"):
                words = f"SELECT id FROM series WHERE quiet IS 0 AND {asked}"  # noqa: S608 - above
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}").all()
                assert all("ix_series_open" in row[3] for row in plan), plan
    finally:
        index.close()
