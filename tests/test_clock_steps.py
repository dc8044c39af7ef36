"""Clocks set by hours, a machine that slept, a worker that was down: nothing is misread."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import World, a_world, encoded, settings_for, small_instances, tiny
from hypothesis import example, given
from hypothesis import strategies as st
from running import wait_until

from config.settings import Settings
from daemon.sweeper import Sweeper
from daemon.watcher.watching import run_watcher
from workers import clock
from workers.completeness.judging import judge_studies
from workers.index.tables import pair, series
from workers.spool.ages import STEP_SECONDS, UNKNOWN, Ages, waiting_times
from workers.spool.batches import BatchSource, BatchWriter

HOUR = 3600.0
NOWHERE = {"url": "unix:///nonexistent.sock"}


# what an entry's time says ------------------------------------------------------------------------

PUBLISH, LOOK, ANEW = ("publish", 0.0), ("look", 0.0), ("start anew", 0.0)

moves = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0.1, 2000)),
        st.tuples(st.just("set"), st.floats(-4 * HOUR, 4 * HOUR)),
        st.sampled_from([PUBLISH, LOOK, ANEW]),
        st.tuples(st.just("file the oldest"), st.just(0.0)),
    ),
    max_size=30,
)


@given(moves)
@example(
    [("publish", 0), ("pass", 480), ("set", -300), ("start anew", 0), ("pass", 400), ("look", 0)]
)
@example(
    [("look", 0), ("publish", 0), ("set", -HOUR), ("look", 0), ("pass", HOUR + 9), ("look", 0)]
)
@example([("look", 0), ("set", HOUR), ("publish", 0), ("look", 0), ("set", -HOUR), ("look", 0)])
def test_no_entry_is_ever_taken_for_younger_than_it_is(steps: list[tuple[str, float]]) -> None:
    now, offset, ages = 1000.0, 1e9, Ages()
    waiting: list[tuple[float, float]] = []  # published by the wall, and truly
    is_set = False  # a look comes every second: no two steps between two of them
    for step, value in steps:
        if step == "pass":
            now += value
        elif step == "set" and not is_set:
            offset, is_set = offset + value, True
        elif step == "publish":
            waiting.append((now + offset, now))
        elif step == "file the oldest" and waiting:
            waiting.pop(0)
        elif step == "start anew":
            ages = Ages()
        elif step == "look":
            ages.look(
                now + offset, now, lambda: max((told for told, _ in waiting), default=UNKNOWN)
            )
            for told, true in waiting:
                assert ages.published(told) <= true


def test_without_a_step_an_entrys_time_is_known_to_the_second() -> None:
    ages = Ages()
    ages.look(5000.0, 100.0, lambda: UNKNOWN)
    for second in range(1, 100):
        ages.look(5000.0 + second + second / 1000, 100.0 + second, lambda: UNKNOWN)  # slewed
    assert 149 - STEP_SECONDS <= ages.published(5050.0) <= 150
    assert ages.published(float("inf")) == float("inf")
    assert ages.published(4999.0) == UNKNOWN  # from before we looked
    assert ages.published(9999.0) == UNKNOWN  # from the future


def test_an_entry_that_is_linked_and_not_committed_counts_as_the_oldest(tmp_path: Path) -> None:
    with a_world(tmp_path / "root") as world:
        assert waiting_times(world.layout) == (float("inf"), UNKNOWN)
        _, two = world.put({"one": b"1", "two": b"2"})
        oldest, newest = waiting_times(world.layout)
        assert time.time() - 60 < oldest <= newest <= time.time()
        os.link(two.where(world.layout), tmp_path / "tree")
        assert waiting_times(world.layout)[0] == UNKNOWN


# the sweeper --------------------------------------------------------------------------------------


class Clocks:
    """Both clocks, moved by hand; what the kernel notes on files is real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        self.set_by = 0.0
        wall, monotonic = clock.wall, clock.monotonic
        monkeypatch.setattr(clock, "wall", lambda: wall() + self.passed + self.set_by)
        monkeypatch.setattr(clock, "monotonic", lambda: monotonic() + self.passed)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis=NOWHERE, completeness={"quiet_seconds": 60}) as one:
        yield one


@pytest.fixture
def slices(tmp_path: Path) -> list[bytes]:
    return small_instances(tmp_path / "made", 4)


def file_all(world: World) -> None:
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)


def is_quiet(world: World) -> bool:
    (row,) = world.rows(series)
    return bool(row.quiet)


def ticks(sweeper: Sweeper, clocks: Clocks, seconds: float, each: float = 10) -> None:
    for _ in range(int(seconds / each)):
        clocks.passed += each
        sweeper.tick(clock.monotonic())


@pytest.mark.parametrize("step", [0, 3 * HOUR, -3 * HOUR, 300, -300, -45, 45])
def test_a_worker_down_for_ten_minutes_makes_nothing_quiet_however_the_clock_is_set(
    world: World, slices: list[bytes], clocks: Clocks, step: float
) -> None:
    world.put({"0": slices[0], "1": slices[1]})
    file_all(world)
    sweeper = Sweeper(world.index, world.settings)
    sweeper.tick(clock.monotonic())
    world.put({"2": slices[2]})  # and the worker is gone
    ticks(sweeper, clocks, 300)
    clocks.set_by = step
    ticks(sweeper, clocks, 300)
    assert not is_quiet(world)
    file_all(world)
    ticks(sweeper, clocks, 50)
    assert not is_quiet(world)
    ticks(sweeper, clocks, 20)
    assert is_quiet(world)


@pytest.mark.parametrize("step", [3 * HOUR, -3 * HOUR, -300])
def test_a_sweeper_that_was_down_too_does_not_believe_what_it_finds(
    world: World, slices: list[bytes], clocks: Clocks, step: float
) -> None:
    world.put({"0": slices[0]})
    file_all(world)
    world.put({"1": slices[1]})
    clocks.passed, clocks.set_by = 600, step
    sweeper = Sweeper(world.index, world.settings)
    ticks(sweeper, clocks, 1200)
    assert not is_quiet(world)
    file_all(world)
    ticks(sweeper, clocks, 70)
    assert is_quiet(world)


@pytest.mark.parametrize("step", [3 * HOUR, -3 * HOUR])
def test_a_step_alone_neither_hastens_nor_delays_a_quiet_series(
    world: World, slices: list[bytes], clocks: Clocks, step: float
) -> None:
    world.put({"0": slices[0]})
    file_all(world)
    sweeper = Sweeper(world.index, world.settings)
    sweeper.tick(clock.monotonic())
    clocks.set_by = step
    ticks(sweeper, clocks, 50)
    assert not is_quiet(world)
    ticks(sweeper, clocks, 20)
    assert is_quiet(world)


def test_a_machine_that_slept_for_a_night_finds_nothing_quiet_and_nothing_capped(
    world: World, clocks: Clocks
) -> None:
    world.put({"0": encoded(tiny("PET AC", 0)), "1": encoded(tiny("PET AC", 1))})
    file_all(world)
    sweeper = Sweeper(world.index, world.settings)
    ticks(sweeper, clocks, 40)
    (before,) = world.rows(pair)
    clocks.passed += 9 * HOUR
    sweeper.tick(clock.monotonic())
    (after,) = world.rows(pair)
    assert not is_quiet(world)
    assert (before.state, after.state) == ("pending", "pending")
    assert after.begun_monotonic == pytest.approx(before.begun_monotonic + 9 * HOUR, abs=20)
    ticks(sweeper, clocks, 50)
    assert not is_quiet(world)
    ticks(sweeper, clocks, 20)
    assert is_quiet(world)


def test_a_restart_after_ten_minutes_gives_senders_the_quiet_time_to_call_again(
    world: World, slices: list[bytes], clocks: Clocks
) -> None:
    world.put({"0": slices[0]})
    file_all(world)
    clocks.passed += 600
    sweeper = Sweeper(world.index, world.settings)
    ticks(sweeper, clocks, 60)
    assert not is_quiet(world)
    ticks(sweeper, clocks, 20)
    assert is_quiet(world)


# temporary files ----------------------------------------------------------------------------------


def test_what_is_being_written_outlives_a_step_of_hours(world: World, clocks: Clocks) -> None:
    sweeper = Sweeper(world.index, world.settings)
    clocks.set_by = 5 * HOUR

    def chunks() -> Iterator[bytes]:
        yield b"first"
        sweeper._clean()
        yield b"second"

    with BatchWriter(world.layout, BatchSource(kind="association")) as batch:
        entry = batch.publish(chunks())
        assert entry.where(world.layout).read_bytes() == b"firstsecond"
        left = world.layout.incoming / "left-by-a-kill"
        left.touch()
        sweeper._clean()
        assert not left.exists(), "it would prove nothing"


def test_a_clock_set_back_removes_nothing_early_and_the_left_over_goes_in_time(
    world: World, clocks: Clocks
) -> None:
    sweeper = Sweeper(world.index, world.settings)
    left = world.layout.incoming / "left-by-a-kill"
    left.touch()
    clocks.set_by = -5 * HOUR
    sweeper._clean()
    assert left.exists()
    clocks.passed = 6 * HOUR + 1
    sweeper._clean()
    assert not left.exists()


def test_a_copy_that_a_step_takes_away_before_its_link_is_made_again(
    tmp_path: Path, elsewhere: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "root", paths={"archive": elsewhere / "archive"}) as world:
        world.put({"one": small_instances(tmp_path / "made", 1)[0]})
        sweeper = Sweeper(world.index, world.settings)
        link, swept = os.link, []

        def sweep_first(source: Any, target: Any, **options: Any) -> None:
            if str(source).endswith(".tmp") and not swept:
                clocks.set_by = 5 * HOUR
                sweeper._clean()
                swept.append(source)
            link(source, target, **options)

        monkeypatch.setattr(os, "link", sweep_first)
        try:
            world.file()
        except FileNotFoundError:
            pass  # the copy was gone: the entry is still in the spool
        assert swept
        assert world.file_all().filed == 1
        world.check()


# the watcher --------------------------------------------------------------------------------------


def test_files_are_claimed_once_while_the_wall_clock_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = [{"path": tmp_path / "moved", "settle_seconds": 0.1},
             {"path": tmp_path / "copied", "mode": "copy", "settle_seconds": 0.1}]  # fmt: skip
    settings: Settings = settings_for(
        tmp_path / "root", redis=NOWHERE, watch=watch, spool={"minimum_free_mb": 1}
    )
    for folder in ("moved", "copied"):
        (tmp_path / folder).mkdir()
    with a_world(
        tmp_path / "root", redis=NOWHERE, watch=watch, spool={"minimum_free_mb": 1}
    ) as world:
        real, jumps = time.time, iter(range(10**6))
        monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 5 * HOUR)
        stop = threading.Event()
        thread = threading.Thread(target=run_watcher, args=(settings, stop))
        thread.start()
        try:
            for number in range(10):
                for folder in ("moved", "copied"):
                    path = tmp_path / folder / f"{number}.dcm"
                    path.write_bytes(b"%d" % number)
                    then = real() + (number - 5) * HOUR
                    os.utime(path, (then, then))
            wait_until(lambda: len(world.waiting()) >= 20, 30, "all claimed")
            time.sleep(0.5)  # a second claim would come within the next turns
            assert len(world.waiting()) == 20
        finally:
            stop.set()
            thread.join(20)
