"""The index is copied into another database whole, or not at all."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import Server
from filing_world import (
    World,
    a_world,
    changed,
    die,
    in_child,
    other_pixels,
    recoded,
    settings_for,
    small_instances,
)
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.errors import AlreadyRunning
from workers.completeness.judging import judge_studies
from workers.errors import CopyDiffers, CopyRefused, IndexOutdated
from workers.filing.rows import insert_event
from workers.index.copying import CopiedTable, Side, copy_index
from workers.index.engine import engine_of, open_index
from workers.index.tables import event, instance, metadata, series, study
from workers.measuring import Measures

NAME = "Zoë\\^%_'\"\n\t“γ”"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An index with something in nearly every table, and values that are easily damaged."""
    with a_world(tmp_path / "root") as one:
        files = small_instances(tmp_path / "made", 8, folders=2)
        one.put({str(number): content for number, content in enumerate(files)})
        one.file_all()
        again = {
            "same": recoded(files[0]),
            "other": other_pixels(files[1]),
            "variant": changed(files[2], PatientName="Other^Name"),
            "letter": b"Dear",
        }
        one.put(again)
        report = one.file()
        judge_studies(one.index, one.settings, report.touched_studies, report.touched_series)
        with one.index.write() as connection:
            connection.execute(study.update().values(study_description=NAME))
            connection.execute(
                series.update().values(last_monotonic=0.1 + 0.2, series_number=-(2**31))
            )
            connection.execute(
                instance.update().where(instance.c.id == 1).values(MR_echo_time=1e-310)
            )
            insert_event(connection, "wait", "2026-01-01T00:00:00.000Z")
        one.close()
        yield one


@pytest.fixture
def empty(postgresql: Server, world: World) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = "empty_for_copies"
    postgresql.tell(f"CREATE DATABASE {name}")
    yield postgresql.url(name)
    postgresql.drop(name)


def side(where: str | Path) -> Side:
    url = where if isinstance(where, str) else f"sqlite:///{where}/index.sqlite"
    return Side(make_url(url))


def copy(source: str | Path, target: str | Path, advance: Any = None) -> list[CopiedTable]:
    return copy_index(side(source), side(target), advance or (lambda *_: None))


def contents(where: str | Path) -> dict[str, list[Any]]:
    engine = engine_of(side(where).url)
    with closing(engine.connect()) as connection:
        tables = {
            table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=str)
            for table in metadata.sorted_tables
        }
    engine.dispose()
    return tables


def test_an_index_goes_to_a_server_and_back_without_a_difference(
    world: World, empty: str, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    root = world.settings.root
    there = copy(root, empty, lambda *step: told.append(step))
    assert contents(empty) == contents(root)
    assert {one.name: one.rows for one in there} == {
        name: len(rows) for name, rows in contents(root).items()
    }
    assert {one.rows for one in there} > {0, 1, 8}
    assert ("copy instance", 8, 8) in told
    assert told[-1][1] == told[-1][2]
    (tmp_path / "back").mkdir()
    back = copy(empty, tmp_path / "back")
    assert back == there
    assert contents(tmp_path / "back") == contents(root)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["index.sqlite"]


def test_on_the_copy_filing_goes_on(world: World, empty: str, tmp_path: Path) -> None:
    root = world.settings.root
    before = len(contents(root)["event"])
    copy(root, empty)
    with_copy = World(settings_for(root, index={"url": empty}))
    with_copy.put({"new": small_instances(tmp_path / "more", 9, patient=2)[8]})
    with_copy.file_all()
    with_copy.check()
    assert with_copy.counts().filed == 9
    assert len(with_copy.rows(event)) == before + 1
    assert [row.id for row in with_copy.rows(instance)] == list(range(1, 10))
    with_copy.close()


def test_what_holds_rows_is_not_copied_into(world: World, empty: str, tmp_path: Path) -> None:
    root = world.settings.root
    copy(root, empty)
    with pytest.raises(CopyRefused, match="not empty"):
        copy(root, empty)
    with pytest.raises(CopyRefused, match="exists"):
        copy(empty, root)
    with pytest.raises(CopyRefused, match="no index"):
        copy(tmp_path / "nowhere", empty)


@pytest.mark.parametrize("where", ["copy instance", "copy event", "compare study"])
def test_a_copy_that_is_killed_leaves_nothing_and_is_run_again(
    world: World, empty: str, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").mkdir()
    for target in (empty, tmp_path / "file"):

        def killed(target: str | Path = target) -> None:
            copy(world.settings.root, target, lambda what, *_: die() if what == where else None)

        assert in_child(killed) == -9
        if target != empty:
            assert not (tmp_path / "file/index.sqlite").exists()
        copy(world.settings.root, target)
        assert contents(target) == contents(world.settings.root)


def test_a_value_that_comes_back_otherwise_is_found_and_nothing_is_kept(
    world: World, postgresql: Server
) -> None:
    url = postgresql.create("copies_that_lie")
    postgresql.tell(
        "create function lie() returns trigger language plpgsql as"
        " $$ begin new.last_at := new.last_at || '!'; return new; end $$",
        "create trigger lie before insert on study for each row execute function lie()",
        database="copies_that_lie",
    )
    with pytest.raises(CopyDiffers, match="table study: rows 1 to"):
        copy(world.settings.root, url)
    assert set(map(len, contents(url).values())) == {0}
    postgresql.drop("copies_that_lie")


def test_what_is_at_work_is_not_copied(world: World, empty: str) -> None:
    root = world.settings.root
    runner = CliRunner()
    with open(world.layout.run / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = runner.invoke(app, ["index", "copy", str(root), empty])
        assert isinstance(done.exception, AlreadyRunning)
    measures = Measures(world.layout, "worker")
    measures.flush()
    done = runner.invoke(app, ["index", "copy", str(root), empty])
    assert isinstance(done.exception, AlreadyRunning)
    measures.close()
    copy(root, empty)
    index = open_index(settings_for(root, index={"url": empty}))
    with index.read(), pytest.raises(CopyRefused, match="petct-ingest"):
        copy(empty, root.parent)
    index.close()


def test_an_index_of_another_schema_is_not_copied(world: World, empty: str) -> None:
    with world.index.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
    world.close()
    with pytest.raises(IndexOutdated, match="0003"):
        copy(world.settings.root, empty)


def test_the_command_says_what_was_copied(world: World, empty: str, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["index", "copy", str(world.settings.root), empty, "--json"])
    assert done.exit_code == 0, done.output
    tables = {one["name"]: one for one in json.loads(done.stdout)["tables"]}
    assert tables["instance"]["rows"] == 8
    assert len(tables["instance"]["sha256"]) == 64
    (tmp_path / "back").mkdir()
    done = runner.invoke(app, ["index", "copy", empty, str(tmp_path / "back")])
    assert done.exit_code == 0, done.output
    assert tables["instance"]["sha256"] in done.stdout
    assert "Every row is the same" in done.stdout
