"""The sweeper: quiet series, lost queues, left-overs; its clock is handed in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QueueServer
from filing_world import World, a_world, encoded, make_world, small_instances
from running import wait_until

import daemon.sweeper as sweeping
from config.settings import Settings
from daemon.sweeper import Sweeper, run_sweeper
from workers import clock, durable, queues
from workers.completeness.judging import judge_studies
from workers.index.tables import pair, series
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.both_databases

NOWHERE = {"url": "unix:///nonexistent.sock"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis=NOWHERE, completeness={"quiet_seconds": 60}) as one:
        yield one


@pytest.fixture
def filed(world: World, tmp_path: Path) -> World:
    """One CT series of four slices, filed and judged just now."""
    files = small_instances(tmp_path / "made", 4)
    world.put({str(number): content for number, content in enumerate(files)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    return world


def the_series(world: World) -> Any:
    (row,) = world.rows(series)
    return row


def after(world: World, seconds: float) -> float:
    return float(the_series(world).last_monotonic) + seconds


def test_a_series_is_judged_quiet_only_after_the_quiet_time(filed: World) -> None:
    sweeper = Sweeper(filed.index, filed.settings)
    sweeper.judge_quiet_series(after(filed, 59))
    assert (the_series(filed).quiet, the_series(filed).state) == (False, "receiving")
    sweeper.judge_quiet_series(after(filed, 60))
    assert (the_series(filed).quiet, the_series(filed).state) == (True, "complete")


def test_another_slice_starts_the_quiet_time_anew(filed: World, tmp_path: Path) -> None:
    first = after(filed, 0)
    extra = small_instances(tmp_path / "more", 5)[4]
    filed.put({"late": extra})
    filed.file()
    assert after(filed, 0) > first
    sweeper = Sweeper(filed.index, filed.settings)
    sweeper.judge_quiet_series(after(filed, 59.9))
    assert not the_series(filed).quiet
    sweeper.judge_quiet_series(after(filed, 60))
    assert the_series(filed).quiet
    filed.put({"later": small_instances(tmp_path / "again", 6)[5]})
    filed.file()
    assert (the_series(filed).quiet, the_series(filed).state) == (False, "receiving")


def test_nothing_becomes_quiet_while_something_older_waits(
    filed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper, wall = Sweeper(filed.index, filed.settings), time.time()
    sweeper.judge_quiet_series(after(filed, 0))
    (entry,) = filed.put({"waits": b"not looked at yet"})
    monkeypatch.setattr(clock, "wall", lambda: wall + 600)
    published = wall + 10  # ten seconds after the last slice
    monkeypatch.setattr(sweeping, "waiting_times", lambda _: (published, published))
    sweeper.judge_quiet_series(after(filed, 600))
    assert not the_series(filed).quiet
    monkeypatch.setattr(sweeping, "waiting_times", lambda _: (published + 100, published + 100))
    sweeper.judge_quiet_series(after(filed, 600))  # it came after the series' time
    assert the_series(filed).quiet
    assert entry.where(filed.layout).exists()


def test_a_boot_starts_the_quiet_time_anew(filed: World) -> None:
    with filed.index.write() as connection:
        connection.execute(series.update().values(last_boot="an earlier boot", last_monotonic=9e9))
    sweeper = Sweeper(filed.index, filed.settings)
    now = clock.monotonic()
    sweeper.judge_quiet_series(now)
    row = the_series(filed)
    assert (row.last_boot, row.last_monotonic, row.quiet) == (clock.boot_id(), now, False)
    sweeper.judge_quiet_series(now + 59)
    assert not the_series(filed).quiet
    sweeper.judge_quiet_series(now + 60.001)
    assert the_series(filed).quiet


def test_a_kill_between_quiet_and_verdict_is_made_good(filed: World) -> None:
    with filed.index.write() as connection:
        connection.execute(series.update().values(quiet=True))
    sweeper = Sweeper(filed.index, filed.settings)
    sweeper.judge_quiet_series(after(filed, 1000))
    assert the_series(filed).state == "receiving"
    sweeper.judge_interrupted()
    assert the_series(filed).state == "complete"
    assert sweeper.judge_interrupted() == []


def phantom_pair(world: World, pet_slices: int = 8, patient: int = 1) -> None:
    made = make_study(PhantomSpec(size="tiny", patient_number=patient))
    pet, ct = made.named("PET AC"), made.named("CT IMAGES")
    files = [encoded(pet.dataset(number)) for number in range(pet_slices)]
    files += [encoded(ct.dataset(number)) for number in range(ct.count)]
    world.put({str(number): content for number, content in enumerate(files)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)


def test_a_verdict_on_a_pair_that_a_kill_prevented_is_made_at_start(world: World) -> None:
    phantom_pair(world)
    with world.index.write() as connection:
        connection.execute(series.update().values(quiet=True, state="complete"))
        connection.execute(
            pair.update().values(generation=0, wanted="", state="pending", pet=None, ct=None)
        )
    wishes = Sweeper(world.index, world.settings).judge_waiting_pairs()
    assert [wish.generation for wish in wishes] == [1]


def test_a_pair_that_waits_longer_than_the_hard_cap_is_held(world: World) -> None:
    phantom_pair(world, pet_slices=5)
    (row,) = world.rows(pair)
    assert row.state == "pending"
    cap = world.settings.completeness.hard_cap_minutes * 60
    with world.index.write() as connection:  # more keeps coming: nothing is ever quiet
        connection.execute(pair.update().values(begun_monotonic=clock.monotonic() - cap + 30))
    sweeper = Sweeper(world.index, world.settings)
    sweeper._judge_capped(clock.monotonic())
    assert world.rows(pair)[0].state == "pending"
    with world.index.write() as connection:
        connection.execute(pair.update().values(begun_monotonic=clock.monotonic() - cap))
    sweeper._judge_capped(clock.monotonic())
    assert world.rows(pair)[0].state == "held"


def test_a_boot_starts_the_hard_cap_anew(world: World) -> None:
    phantom_pair(world, pet_slices=5)
    with world.index.write() as connection:
        connection.execute(pair.update().values(begun_boot="an earlier boot", begun_monotonic=1.0))
    now = clock.monotonic()
    Sweeper(world.index, world.settings)._judge_capped(now)
    (row,) = world.rows(pair)
    assert (row.state, row.begun_boot, row.begun_monotonic) == ("pending", clock.boot_id(), now)


# lost queues --------------------------------------------------------------------------------------


@pytest.fixture
def queued(tmp_path: Path, valkey: QueueServer) -> Iterator[tuple[World, QueueServer]]:
    world = make_world(tmp_path / "root", redis={"url": valkey.url}, filing={"batch_entries": 2})
    yield world, valkey
    world.close()


def test_entries_of_a_lost_queue_are_dispatched_again(
    queued: tuple[World, QueueServer], tmp_path: Path
) -> None:
    world, valkey = queued
    files = small_instances(tmp_path / "made", 5)
    world.put({str(number): content for number, content in enumerate(files)})
    sweeper = Sweeper(world.index, world.settings)
    connection = valkey.connect()
    now = 1000.0
    sweeper.tick(now)
    assert queues.depths(connection)["filing"] == 3
    sweeper.tick(now + 30)
    assert queues.depths(connection)["filing"] == 3, "it was dispatched twice"
    connection.flushall()
    sweeper.tick(now + 60)
    assert queues.depths(connection)["filing"] == 3
    sweeper.tick(now + 60 + 601)  # a queue that has not moved for ten minutes
    assert queues.depths(connection)["filing"] == 6
    connection.close()


def test_an_entry_that_has_just_come_is_left_to_its_dispatcher(
    queued: tuple[World, QueueServer], tmp_path: Path
) -> None:
    world, valkey = queued
    files = small_instances(tmp_path / "made", 1)
    sweeper = Sweeper(world.index, world.settings)
    sweeper.tick(1000.0)
    world.put({"new": files[0]})
    connection = valkey.connect()
    sweeper.tick(1003.0)
    assert queues.depths(connection)["filing"] == 0
    sweeper.tick(1006.0)
    assert queues.depths(connection)["filing"] == 1
    connection.close()


def test_a_queue_server_that_is_away_stops_no_verdict(
    queued: tuple[World, QueueServer], tmp_path: Path
) -> None:
    world, valkey = queued
    files = small_instances(tmp_path / "made", 4)
    world.put({str(number): content for number, content in enumerate(files)})
    world.file()
    valkey.kill()
    world.put({"waits": files[0]})
    sweeper = Sweeper(world.index, world.settings)
    sweeper.tick(after(world, 0) - 1)
    world.file()
    start = after(world, 0)
    for seconds in range(0, 101, 20):
        sweeper.tick(start + seconds)
    assert the_series(world).state == "complete"
    valkey.start()
    world.put({"waits again": files[0]})
    sweeper.tick(after(world, 200))
    sweeper.tick(after(world, 203))
    connection = valkey.connect()
    assert queues.depths(connection)["filing"] == 1
    connection.close()


def test_pairs_of_a_lost_queue_are_asked_for_again(queued: tuple[World, QueueServer]) -> None:
    world, valkey = queued
    phantom_pair(world)
    sweeper = Sweeper(world.index, world.settings)
    sweeper.judge_quiet_series(clock.monotonic() + 1000)
    connection = valkey.connect()
    connection.flushall()
    sweeper.tick(clock.monotonic() + 2000)
    assert queues.depths(connection)["pairing"] == 1
    connection.flushall()
    with world.index.write() as writing:
        writing.execute(pair.update().values(done_generation=pair.c.generation, state="ready"))
    sweeper.tick(clock.monotonic() + 4000)
    assert queues.depths(connection)["pairing"] == 0
    connection.close()


def test_a_pair_whose_maker_is_silent_is_asked_for_while_others_are_made(
    queued: tuple[World, QueueServer],
) -> None:
    world, valkey = queued
    phantom_pair(world)
    phantom_pair(world, patient=2)
    sweeper = Sweeper(world.index, world.settings)
    sweeper.judge_quiet_series(clock.monotonic() + 1000)
    connection = valkey.connect()
    connection.flushall()
    start = clock.monotonic() + 2000
    sweeper.tick(start)
    both = queues.pairs_with_a_job(connection)
    assert len(both) == 2
    for worker in ("lives", "silent"):
        job = connection.lpop("rq:queue:pairing").decode()
        connection.zadd("rq:wip:pairing", {f"{job}:run": 1})
        connection.hset(f"rq:execution:{job}:run", "worker_name", worker)
    connection.hset("rq:worker:lives", mapping={"hostname": "elsewhere", "pid": 1})
    (made,) = queues.pairs_with_a_job(connection)
    sweeper.tick(start + 5)
    assert queues.pairs_with_a_job(connection) == both
    (job,) = connection.lrange("rq:queue:pairing", 0, -1)
    assert queues.pair_of(connection.hget(b"rq:job:" + job, "data")) == (both - {made}).pop()
    connection.close()


# left-overs ---------------------------------------------------------------------------------------


def test_only_stale_left_overs_are_removed(world: World, tmp_path: Path) -> None:
    layout = world.layout
    (layout.archive_private / "tmp").mkdir()
    places = [layout.incoming, layout.archive_private / "tmp"]
    for place in places:
        for name in ("old", "new", "held"):
            (place / name).write_bytes(b"x")
        (place / "old-folder").mkdir()
        (place / "old-folder" / "inside").write_bytes(b"x")
        for name in ("old", "held", "old-folder"):
            os.utime(place / name, (1000, 1000))
    torn = layout.quarantine / ".abc.tmp"
    torn.write_bytes(b"x")
    os.utime(torn, (1000, 1000))
    (entry,) = world.put({"letter": b"Dear colleague"})
    world.file()
    os.utime(layout.quarantine / f"{entry.identifier}.json", (1000, 1000))
    held = [(place / "held").open("rb") for place in places]
    assert all(durable.try_lock(file.fileno()) for file in held)
    Sweeper(world.index, world.settings).tick(1000.0)
    for place in places:
        assert sorted(os.listdir(place)) == ["held", "new"]
    assert sorted(os.listdir(layout.quarantine)) == [
        f"{entry.identifier}.dcm",
        f"{entry.identifier}.json",
    ]
    for file in held:
        file.close()


def test_empty_batches_are_removed_and_full_ones_kept(world: World) -> None:
    (entry,) = world.put({"one": b"x"})
    empty = world.layout.ready / "f0000000000001-00000000"
    empty.mkdir()
    (empty / "batch.json").write_text("{}")
    Sweeper(world.index, world.settings).tick(1000.0)
    assert os.listdir(world.layout.ready) == [entry.batch]


# the role -----------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_the_sweeper_makes_the_index_sweeps_and_stops(tmp_path: Path, settings: Settings) -> None:
    changed = settings.model_copy(
        update={"redis": settings.redis.model_copy(update={"url": NOWHERE["url"]})}
    )
    stop = threading.Event()
    thread = threading.Thread(target=run_sweeper, args=(changed, stop))
    thread.start()
    wait_until(changed.layout.index.exists)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("store", ["archive", "spool"])
def test_nothing_is_removed_from_a_store_that_is_another(world: World, store: str) -> None:
    old = world.layout.incoming / "old"
    old.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    (getattr(world.layout, store) / ".petct" / "id").write_text("f" * 32)
    Sweeper(world.index, world.settings).tick(1000.0)
    assert old.exists()
