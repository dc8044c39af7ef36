"""Entries in whose hands workers die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import (
    World,
    a_world,
    die,
    end_of_child,
    in_child,
    recoded,
    small_instances,
    start_child,
)
from running import wait_until

from workers.filing import meeting, taking
from workers.filing.examining import examine
from workers.filing.poison import Hand

pytestmark = pytest.mark.both_databases

ENTRY, OTHER = "ab" * 16, "cd" * 16


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def test_an_entry_that_kills_three_workers_is_quarantined_and_the_others_are_filed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_instances(tmp_path / "made", 6)
    entries = world.put({str(number): content for number, content in enumerate(files)})

    def deadly(file: Any, name: str, source: Any) -> Any:
        if name == "3":
            die()
        return examine(file, name, source)

    monkeypatch.setattr(taking, "examine", deadly)

    def run() -> None:
        world.file()

    deaths = 0
    while world.waiting():
        world.let_go()
        code = in_child(run)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths <= 3, "it kills for ever"
    assert deaths == 3
    monkeypatch.undo()
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 5, "quarantined": 1}
    assert world.outcome_of(entries[3]).code == "poison"
    assert world.kept_bytes(entries[3]) == files[3]
    assert "3 workers died" in world.reason_of(entries[3])["reason"]


def test_a_worker_that_is_killed_while_it_compares_counts_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    world.put({"first": content})
    world.file_all()
    (entry,) = world.put({"again": recoded(content)})
    monkeypatch.setattr(meeting, "compare_files", lambda *_: die())
    for _ in range(3):
        world.let_go()
        assert in_child(lambda: world.file() and None) == -signal.SIGKILL
    world.file_all()
    world.check()
    assert world.outcome_of(entry).code == "poison"


def hand_of(folder: Path) -> Hand:
    return Hand(folder)


def test_only_what_a_dead_worker_held_is_counted(tmp_path: Path) -> None:
    def held_and_dies() -> None:
        with hand_of(tmp_path) as hand, hand.holding() as hold:
            hold(ENTRY)
            die()

    def idle_and_dies() -> None:
        with hand_of(tmp_path) as hand:
            with hand.holding() as hold:
                hold(OTHER)
            die()

    assert in_child(held_and_dies) == -signal.SIGKILL
    assert in_child(idle_and_dies) == -signal.SIGKILL
    with hand_of(tmp_path) as hand:
        hand.count_the_dead()
        hand.count_the_dead()
        assert (hand.deaths(ENTRY), hand.deaths(OTHER)) == (1, 0)
        hand.forget(ENTRY)
        assert hand.deaths(ENTRY) == 0
    assert list((tmp_path / "hands").iterdir()) == []


def test_a_living_worker_is_not_counted(tmp_path: Path) -> None:
    held = tmp_path / "held"

    def holds() -> None:
        with hand_of(tmp_path) as hand, hand.holding() as hold:
            hold(ENTRY)
            held.touch()
            time.sleep(30)

    child = start_child(holds)
    try:
        wait_until(held.exists)
        with hand_of(tmp_path) as hand:
            hand.count_the_dead()
            assert hand.deaths(ENTRY) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        end_of_child(child)
    with hand_of(tmp_path) as hand:
        hand.count_the_dead()
        assert hand.deaths(ENTRY) == 1


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    def fails() -> None:
        with hand_of(tmp_path) as hand, hand.holding() as hold:
            hold(ENTRY)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with hand_of(tmp_path) as hand:
        hand.count_the_dead()
        assert hand.deaths(ENTRY) == 0


def test_two_that_count_at_once_count_once(tmp_path: Path) -> None:
    def held_and_dies() -> None:
        with hand_of(tmp_path) as hand, hand.holding() as hold:
            hold(ENTRY)
            die()

    for _ in range(10):
        assert in_child(held_and_dies) == -signal.SIGKILL

    def counts() -> None:
        with hand_of(tmp_path) as hand:
            hand.count_the_dead()

    children = [start_child(counts) for _ in range(4)]
    assert [end_of_child(child) for child in children] == [0] * 4
    with hand_of(tmp_path) as hand:
        assert hand.deaths(ENTRY) == 10


@pytest.mark.parametrize(
    "rubbish", [b"", b"short", b"../../../../etc/passwd-000000000", b"\xff" * 40]
)
def test_a_hand_with_rubbish_in_it_is_cleared_away(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "hands").mkdir()
    (tmp_path / "hands" / "1-2").write_bytes(rubbish)
    with hand_of(tmp_path) as hand:
        hand.count_the_dead()
        assert list((tmp_path / "deaths").iterdir()) == []
    assert list((tmp_path / "hands").iterdir()) == []
