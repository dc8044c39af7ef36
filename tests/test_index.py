"""The index on either database: opened once made, one writer at a time, snapshots, lists."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filing_world import World, a_world, end_of_child, settings_for, small_instances, start_child

from workers.errors import IndexUnusable
from workers.filing.rows import insert_event
from workers.identity import read_identity
from workers.index.counting import count_all
from workers.index.engine import insert_new, open_index, prepare_index
from workers.index.glance import glance
from workers.index.queries import list_set_aside, list_studies
from workers.index.tables import event, meta, metadata, study

pytestmark = pytest.mark.both_databases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def a_study(uid: str) -> dict[str, Any]:
    return {"study": uid, "patient_ID": "P", "first_at": "a", "last_at": "a"}


def test_a_fresh_index_gives_the_stores_their_identity_and_a_second_call_keeps_it(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path / "root")
    given = []
    for _ in range(2):
        index = prepare_index(settings)
        given.append(index.identities())
        index.close()
    assert given[0] == given[1]
    assert read_identity(settings.layout.archive) == given[0].archive
    assert read_identity(settings.layout.spool) == given[0].spool


def test_an_index_that_is_there_gives_no_identity_to_an_empty_mount_point(world: World) -> None:
    (world.layout.archive / ".petct" / "id").unlink()
    world.close()
    prepare_index(world.settings).close()
    assert read_identity(world.layout.archive) is None


def test_a_fresh_index_takes_over_the_identity_that_the_archive_carries(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "root")
    private = settings.layout.archive / ".petct"
    private.mkdir(parents=True)
    (private / "id").write_text("c" * 32 + "\n")
    index = prepare_index(settings)
    assert index.identities().archive == "c" * 32
    index.close()


def test_an_index_of_another_version_is_refused(world: World) -> None:
    with world.index.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    world.close()
    with pytest.raises(IndexUnusable, match="9999"):
        open_index(world.settings)


def test_two_processes_that_prepare_at_once_make_one_index(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "root")
    children = [start_child(lambda: prepare_index(settings).close()) for _ in range(3)]
    assert [end_of_child(child) for child in children] == [0] * 3
    index = open_index(settings)
    with index.read() as connection:
        assert len(connection.execute(sa.select(meta)).all()) == 2
    index.close()


def test_a_writer_reads_and_then_writes_although_another_wrote_in_between(world: World) -> None:
    """A deferred transaction would fail at once with SQLITE_BUSY_SNAPSHOT."""
    order: list[str] = []

    def other() -> None:
        with world.index.write() as connection:
            order.append("other")
            connection.execute(study.insert().values(a_study("2.2")))

    with world.index.write() as connection:
        assert connection.execute(sa.select(study)).all() == []
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)  # the other one must be given the chance to break in
        order.append("mine")
        connection.execute(study.insert().values(a_study("1.1")))
    thread.join()
    assert order == ["mine", "other"]
    assert len(world.rows(study)) == 2


def test_a_reader_sees_one_snapshot(world: World) -> None:
    with world.index.read() as reading:
        assert reading.execute(sa.select(sa.func.count()).select_from(study)).scalar() == 0
        with world.index.write() as writing:
            writing.execute(study.insert().values(a_study("1.1")))
        assert reading.execute(sa.select(sa.func.count()).select_from(study)).scalar() == 0
    assert len(world.rows(study)) == 1


def test_what_fails_is_rolled_back_whole(world: World) -> None:
    with pytest.raises(sa.exc.IntegrityError), world.index.write() as connection:
        connection.execute(study.insert(), [a_study("1.1"), a_study("1.2"), a_study("1.1")])
    assert world.rows(study) == []


def test_insert_new_says_whether_a_row_was_new(world: World) -> None:
    with world.index.write() as connection:
        assert insert_new(connection, study, **a_study("1.1"))
        assert not insert_new(connection, study, **a_study("1.1"))
    assert len(world.rows(study)) == 1


@pytest.mark.parametrize("url", ["mysql://x/y", "oracle://x"])
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(IndexUnusable, match="sqlite or postgresql"):
        open_index(settings_for(tmp_path, index={"url": url}))


# what the faces ask -------------------------------------------------------------------------------


def test_counts_and_lists_tell_what_was_filed(world: World, tmp_path: Path) -> None:
    files = small_instances(tmp_path / "made", 6, folders=2)
    world.put({str(number): content for number, content in enumerate(files)})
    world.put({"again": files[0], "letter": b"Dear", ".DS_Store": b"x"})
    world.file_all()
    counts = world.counts()
    assert (counts.filed, counts.duplicates, counts.quarantined, counts.skipped) == (6, 1, 1, 1)
    assert (counts.studies, counts.series) == (1, {"receiving": 2})
    assert counts.pairs == {"ready": 0, "held": 0, "pending": 0}
    with world.index.read() as connection:
        (one,) = list_studies(connection)
        assert [member["instances"] for member in one["series"]] == [3, 3]
        assert one["pair"] is None
        assert list_studies(connection, state="held") == []
        assert list_studies(connection, limit=0) == []
        (aside,) = list_set_aside(connection)
        assert aside["code"] == "not-dicom"
    with glance(world.settings) as ask:  # the default index without SQLAlchemy
        assert count_all(ask) == counts


def test_events_are_only_ever_appended() -> None:
    from workers import filing

    assert event.name in metadata.tables
    folder = Path(filing.__file__ or "").parent.parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert "event.update(" not in text, path
        assert "event.delete(" not in text, path


@pytest.mark.parametrize("statement", ["update event set kind = 'x'", "delete from event"])
def test_the_database_refuses_to_change_an_event(world: World, statement: str) -> None:
    with world.index.write() as connection:
        insert_event(connection, "wait", "2026-01-01T00:00:00.000Z")
    with (
        pytest.raises(sa.exc.DatabaseError, match="only ever appended"),
        world.index.write() as connection,
    ):
        connection.exec_driver_sql(statement)
    assert [row.kind for row in world.rows(event)] == ["wait"]
