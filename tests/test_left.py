"""What an error of the system keeps back is named: entries in the spool, pairs not made."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import QueueServer
from filing_world import BadSectors, World, a_world, encoded, small_instances
from running import children_of, petct, running, wait_until

from daemon.looking import look
from daemon.sweeper import Sweeper
from workers import jobs, queues
from workers.completeness.judging import judge_studies
from workers.filing import left
from workers.index.counting import failing_pairs
from workers.index.glance import glance
from workers.index.tables import event, pair
from workers.pairing import making
from workers.pairing.failing import MOST_DEATHS, note_death, note_failure
from workers.pairing.making import memory_words
from workers.phantom.study import PhantomSpec, make_study

NOWHERE = {"url": "unix:///nonexistent.sock"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis=NOWHERE) as one:
        yield one


def troubles(world: World) -> str:
    return "\n".join(look(world.settings).troubles)


def test_an_entry_that_cannot_be_read_is_named_with_its_reason_until_it_is_filed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_instances(tmp_path / "made", 3)
    names = world.put({f"{number}.dcm": content for number, content in enumerate(files)})
    disk = BadSectors(monkeypatch, "1.dcm")
    assert world.file().left == 1
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            world.file([names[1]])
    (one,) = left.left_entries(world.layout)
    assert (one.name, one.reason, one.tries) == (names[1], "Input/output error", 3)
    assert f"{names[1].where(world.layout)} cannot be filed: Input/output error (3 tries" in (
        troubles(world)
    )
    disk.name = ""
    assert world.file_all().filed == 3
    assert left.left_entries(world.layout) == []
    assert "cannot be filed" not in troubles(world)


def test_an_entry_that_a_person_took_away_is_forgotten(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = world.put({"1.dcm": small_instances(tmp_path / "made", 1)[0]})
    BadSectors(monkeypatch, "1.dcm")
    with pytest.raises(OSError, match="Input/output"):
        world.file()
    name.where(world.layout).unlink()
    assert "cannot be filed" not in troubles(world)
    Sweeper(world.index, world.settings)._clean()
    assert not os.listdir(world.layout.spool_private / "left")


def test_notes_of_left_entries_are_bounded_and_never_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "MOST_NAMED", 3)
    names = world.put({str(number): b"x" for number in range(5)})
    for name in names:
        left.note_left(world.layout, name, "why")
    assert len(left.left_entries(world.layout)) == 3
    (world.layout.spool_private / "left" / names[0].identifier).write_text("{torn")
    assert len(left.left_entries(world.layout)) == 2
    for file in (world.layout.spool_private / "left").iterdir():
        file.unlink()
    (world.layout.spool_private / "left").rmdir()
    (world.layout.spool_private / "left").touch()  # no folder can be made
    left.note_left(world.layout, names[0], "why")
    left.forget_left(world.layout, names[0].identifier)
    assert left.left_entries(world.layout) == []


# pairs --------------------------------------------------------------------------------------------


def wanted_pair(world: World) -> Any:
    """A study whose pair is to be made; its row."""
    study = make_study(PhantomSpec(size="tiny"))
    parts = [study.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies)
    (row,) = world.rows(pair)
    assert (row.state, row.generation) == ("pending", 1)
    return row


def failing(world: World) -> list[str]:
    with glance(world.settings) as ask:
        return [one.reason for one in failing_pairs(ask)]


def events(world: World, kind: str) -> int:
    with world.index.read() as connection:
        return len(connection.execute(sa.select(event).where(event.c.kind == kind)).all())


def test_a_pair_that_an_error_of_the_system_prevents_stays_wanted_and_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = wanted_pair(world)
    jobs.configure(world.settings)
    with monkeypatch.context() as patch:

        def broken(*_: Any, **__: Any) -> Any:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/secret/path")

        patch.setattr(making, "_build", broken)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output"):
                jobs.pair_study(1, row.id, row.generation)
    assert failing(world) == ["Input/output error"]
    assert events(world, "pair-failing") == 1, "the same reason is told once"
    assert "cannot be made: Input/output error (since" in troubles(world)
    assert "/secret" not in troubles(world)
    assert jobs.pair_study(1, row.id, row.generation) == "ready"
    assert failing(world) == []
    jobs.configure(world.settings)  # closes the index of before
    jobs._workplaces.clear()


def test_a_pair_over_which_process_after_process_dies_is_held_in_words(world: World) -> None:
    row = wanted_pair(world)
    for number in range(MOST_DEATHS):
        assert world.rows(pair)[0].state == "pending", number
        memory = memory_words(world.index, world.settings, row.id)
        note_death(world.index, row.id, row.generation, "signal SIGKILL", memory)
    (held,) = world.rows(pair)
    assert held.state == "held"
    assert "5 processes died while making it (signal SIGKILL)" in held.reasons
    assert "it takes about 0.3 GB" in held.reasons
    assert "together (pairing.memory_mb)" in held.reasons
    assert (events(world, "pair-maker-died"), events(world, "pair-held")) == (MOST_DEATHS, 1)
    note_death(world.index, row.id, row.generation, "signal SIGKILL")
    assert events(world, "pair-maker-died") == MOST_DEATHS


def test_what_is_told_of_a_generation_that_nobody_wants_is_not_noted(world: World) -> None:
    row = wanted_pair(world)
    note_failure(world.index, row.id, row.generation + 1, "why")
    note_death(world.index, row.id + 1, row.generation, "why")
    assert failing(world) == []


def test_a_killed_job_process_is_told_by_its_worker(valkey: QueueServer, tmp_path: Path) -> None:
    with a_world(tmp_path / "root", redis={"url": valkey.url}) as world:
        row = wanted_pair(world)
        config = tmp_path / "petct.toml"
        config.write_text(f'root = "{world.settings.root}"\n[redis]\nurl = "{valkey.url}"\n')
        with running(petct("work", "pairing", "--config", config), tmp_path / "w") as worker:
            worker.await_output("worker-started", 60)
            lock = world.index.write()
            lock.__enter__()  # the job waits here
            with valkey.connect() as connection:
                queues.enqueue_pairing(connection, row.id, row.generation)
            (horse,) = wait_until(lambda: list(children_of(worker.pid)), 30)  # type: ignore[misc]
            os.kill(horse, signal.SIGKILL)
            worker.await_output("job-process-died")
            lock.__exit__(None, None, None)
            wait_until(lambda: events(world, "pair-maker-died") == 1, 30, "the note of its death")
            wait_until(lambda: world.rows(pair)[0].state == "ready", 60, "the next try")
            assert worker.end() == 0


# the backlog --------------------------------------------------------------------------------------


def test_status_says_how_much_waits_how_long_and_that_nobody_works(
    valkey: QueueServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "root", redis={"url": valkey.url}) as world:
        files = small_instances(tmp_path / "made", 3)
        world.put({"0": files[0], "1": files[1]})
        world.file()
        world.put({"2": files[2]})
        found = look(world.settings)
        assert (found.waiting, found.filed_lately) == (1, 2)
        assert "no filing worker" not in "\n".join(found.troubles)
        monkeypatch.setattr("daemon.looking._LONG_SECONDS", -1.0)
        assert "no filing worker runs: start `petct-ingest run`" in troubles(world)
        with valkey.connect() as connection:
            connection.sadd("rq:workers:filing", "rq:worker:one")
            connection.hset("rq:worker:one", "birth", "now")
        assert "no filing worker" not in troubles(world)
        assert set(found.to_json_object()) == {"instances", "series", "studies", "pairs", "queues"}
