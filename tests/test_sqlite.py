"""SQLite as the index: durable, strict, refused where it would lose data."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from filing_world import World, a_world, settings_for
from test_index import a_study

from workers.errors import IndexUnusable
from workers.index import sqlite
from workers.index.engine import open_index
from workers.index.tables import series, study


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def test_an_index_that_is_not_there_is_not_made_by_opening(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with pytest.raises(IndexUnusable, match="no index"):
        open_index(settings)
    assert not settings.layout.index.exists()


def test_the_database_is_durable_and_strict(world: World) -> None:
    with world.index.read() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000,
    }  # fmt: skip
    with pytest.raises(sa.exc.IntegrityError), world.index.write() as connection:
        connection.execute(series.insert().values(study_id=99, series="1", first_at="", last_at=""))


def test_a_checkpoint_cuts_the_log(world: World) -> None:
    with world.index.write() as connection:
        for number in range(50):
            connection.execute(study.insert().values(a_study(f"1.{number}")))
    log = Path(f"{world.layout.index}-wal")
    assert log.stat().st_size > 0
    world.index.checkpoint()
    assert log.stat().st_size == 0


def test_a_network_file_system_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.close()
    monkeypatch.setattr(sqlite, "file_system", lambda _: "nfs4")
    with pytest.raises(IndexUnusable, match="nfs4"):
        open_index(world.settings)


def test_the_file_system_of_a_folder_is_found(tmp_path: Path) -> None:
    assert sqlite.file_system(Path("/proc/self")) == "proc"
    assert sqlite.file_system(tmp_path)


def test_the_backup_before_a_migration_is_whole(world: World) -> None:
    with world.index.write() as connection:
        connection.execute(study.insert().values(a_study("1.1")))
    sqlite.back_up(world.layout.index, "0001")
    (copy,) = world.layout.root.glob("*.before-migration-from-0001")
    reading = sqlite3.connect(copy)
    assert reading.execute("SELECT study FROM study").fetchall() == [("1.1",)]
    reading.close()
