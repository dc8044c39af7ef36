"""Bring the index to this version's schema (Alembic, driven from here: no command line needed).

Alembic itself is loaded only where something is migrated: every other process asks one table.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

MIGRATIONS = Path(__file__).parent / "migrations"

_VERSION_TABLE = "alembic_version"


def current_revision(engine: Engine) -> str | None:
    """Return the schema version that the database has, None for an empty one."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(_VERSION_TABLE):
            return None
        version = sa.table(_VERSION_TABLE, sa.column("version_num", sa.Text))
        return connection.execute(sa.select(version.c.version_num)).scalar()


def upgrade(engine: Engine) -> None:
    """Run the missing migrations in one transaction."""
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    configuration.set_main_option("path_separator", "os")
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
