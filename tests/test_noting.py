"""Notes become events, each once, whatever is killed or runs twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import World, a_world

from daemon.sweeper import Sweeper
from workers import clock
from workers.index import noting
from workers.index.noting import record_notes
from workers.index.tables import event
from workers.spool.notes import NoteWriter

pytestmark = pytest.mark.both_databases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis={"url": "unix:///nonexistent.sock"}) as one:
        yield one


def leave_notes(world: World, count: int = 3) -> None:
    writer = NoteWriter(world.layout, "receiver")
    for number in range(count):
        writer.note("association-rejected", f"AE{number}>US@10.0.0.7", reason=3)
    writer.close()


def told(world: World) -> list[Any]:
    return [row for row in world.rows(event) if row.note is not None]


def test_the_sweeper_makes_events_of_notes_and_removes_them(world: World) -> None:
    leave_notes(world)
    Sweeper(world.index, world.settings).tick(clock.monotonic())
    assert sorted(row.source for row in told(world)) == [f"AE{n}>US@10.0.0.7" for n in range(3)]
    assert {(row.kind, row.details) for row in told(world)} == {
        ("association-rejected", '{"reason": 3}')
    }
    assert list(world.layout.notes.iterdir()) == []


def test_a_kill_between_commit_and_removal_writes_no_event_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_notes(world)
    with monkeypatch.context() as patched:
        patched.setattr(noting, "remove_notes", lambda *_: None)
        assert record_notes(world.index, world.layout) == 3
    assert record_notes(world.index, world.layout) == 0
    assert len(told(world)) == 3
    assert list(world.layout.notes.iterdir()) == []


def test_a_note_stays_when_the_index_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_notes(world)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(noting, "insert_new_rows", full)
        with pytest.raises(OSError, match="No space"):
            record_notes(world.index, world.layout)
    assert record_notes(world.index, world.layout) == 3


def test_a_count_of_equal_notes_stands_in_the_event(world: World) -> None:
    writer = NoteWriter(world.layout, "receiver")
    for _ in range(40):
        writer.note("association-rejected", "AE>US@10.0.0.7")
    writer.close()
    record_notes(world.index, world.layout)
    details = [json.loads(row.details) for row in told(world)]
    assert sum(one.get("count", 1) for one in details) == 40
