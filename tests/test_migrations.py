"""The schema that the migrations make is the schema that the program means."""

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from config.settings import load_settings
from workers.index.engine import prepare_index
from workers.index.migrating import HEAD_REVISION, MIGRATIONS
from workers.index.tables import metadata


def test_the_programs_revision_is_the_last_migration() -> None:
    scripts = Config()
    scripts.set_main_option("script_location", str(MIGRATIONS))
    scripts.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(scripts).get_heads() == [HEAD_REVISION]


def test_the_migrations_make_exactly_the_tables_of_the_program(tmp_path: Path) -> None:
    index = prepare_index(load_settings(root=tmp_path / "root", environ={}))
    try:
        with index.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
            assert sa.inspect(connection).has_table("instance")
    finally:
        index.close()
