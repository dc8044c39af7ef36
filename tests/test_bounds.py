"""A flood grows nothing in memory beyond a stated bound, and nothing of it is lost."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QueueServer
from filing_world import a_world
from running import wait_until

from config.logs import get_logger
from config.settings import Settings
from config.tables.intake import WatchSettings
from daemon import dispatcher, refilling
from daemon.dispatcher import Dispatcher
from daemon.watcher import folder as folders
from daemon.watcher import hints, settling, troubles
from daemon.watcher.folder import WatchedFolder
from daemon.watcher.hints import Hints
from daemon.watcher.settling import FileState, Settling
from daemon.watcher.troubles import Troubles
from workers.queues import QUEUED_JOBS_LIMIT, depths
from workers.spool.batches import EntryName, waiting_entries


def test_the_names_that_wait_for_a_server_are_bounded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "NAMES_LIMIT", 500)
    away = settings.redis.model_copy(update={"url": "unix:///nonexistent.sock"})
    one = Dispatcher(settings.model_copy(update={"redis": away}))
    try:
        for number in range(5000):
            one.offer(EntryName("a1", f"{number:08d}"))
            assert len(one._names) <= 500
    finally:
        one.close()


def test_the_jobs_that_a_flood_makes_are_bounded(valkey: QueueServer, tmp_path: Path) -> None:
    filing = {"batch_entries": 1}
    with a_world(tmp_path / "root", redis={"url": valkey.url}, filing=filing) as world:
        world.put({str(number): b"x" for number in range(QUEUED_JOBS_LIMIT + 30)})
        one = refilling.QueueFiller(world.index, world.settings)
        with valkey.connect() as connection:
            for seconds in range(0, 3000, 700):
                one.dispatch(connection, float(seconds))
            assert depths(connection)["filing"] == QUEUED_JOBS_LIMIT


def test_the_sweeper_looks_at_a_backlog_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey: QueueServer
) -> None:
    monkeypatch.setattr(refilling, "_MOST_ENTRIES", 10)
    asked: list[int] = []
    monkeypatch.setattr(
        refilling.queues,
        "enqueue_filing",
        lambda _, entries, _spool: asked.append(len(entries)) or True,
    )
    with a_world(tmp_path / "root") as world:
        world.put({str(number): b"x" for number in range(30)})
        with valkey.connect() as connection:
            refilling.QueueFiller(world.index, world.settings).dispatch(connection, 0.0)
    assert sum(asked) == 10


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder


@pytest.fixture
def listening(watched: Path) -> Iterator[Hints]:
    one = Hints(str(watched), lambda _: True)
    one.start()
    yield one
    one.close()


def test_events_that_nobody_takes_wait_in_the_kernel_which_says_what_it_lost(
    watched: Path, listening: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "EVENTS_LIMIT", 1000)
    kernel = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    count = kernel // 2 + 4000  # each file is created and closed
    with listening._lock:  # the library's own thread waits here
        for number in range(count):
            (watched / str(number)).touch()
        waiting = listening._observer.event_queue
        wait_until(lambda: waiting.qsize() >= 1000, 20, "a full queue")
        time.sleep(0.3)
        assert waiting.qsize() < 3000, "a read of the descriptor more at most"
    lost = False
    heard: set[str] = set()

    def all_told() -> bool:
        nonlocal lost
        told = listening.take()
        lost = lost or told.lost
        heard.update(told.files)
        return lost or len(heard) == count

    wait_until(all_told, 60, "every file, or that some were lost")


def test_paths_between_two_looks_are_bounded_and_then_a_scan_is_asked_for(
    watched: Path, listening: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "HINTS_LIMIT", 100)
    for number in range(300):
        (watched / str(number)).touch()
    wait_until(lambda: listening._lost, 20, "word of the loss")
    assert len(listening._files) <= 100
    assert listening.take().lost


def test_a_file_that_changes_at_every_look_leaves_no_trail() -> None:
    one = Settling(300.0)
    for number in range(50_000):
        one.saw(f"file {number % 10}", FileState(1, number, number), float(number) / 100)
        assert len(one._dues) <= 2 * len(one) + settling._DEAD_NOTES + 1
    assert len(one) == 10
    assert one.next_due() is not None
    assert set(one.due(1e9)) == {f"file {number}" for number in range(10)}


def test_files_that_settle_are_bounded_and_the_others_are_found_when_these_are_taken(
    settings: Settings, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PENDING_LIMIT", 40)
    for number in range(200):
        (watched / f"{number}.dcm").write_bytes(b"%d" % number)
    watch = WatchSettings(path=watched, settle_seconds=0.05)
    offered: list[EntryName] = []
    one = WatchedFolder(settings, watch, offered.append)
    stop = threading.Event()
    most = 0

    def turn() -> bool:
        nonlocal most
        one.turn(time.monotonic(), stop)
        most = max(most, len(one._settling))
        if len(offered) < 40:
            (watched / f"late-{len(list(watched.iterdir()))}.dcm").write_bytes(b"late")  # heard
        return not any(watched.iterdir())

    try:
        wait_until(turn, 60, "an empty folder")
    finally:
        one.close()
    assert 30 <= most <= 40
    assert len(offered) == len(list(waiting_entries(settings.layout))) >= 200


def test_told_troubles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troubles, "_KNOWN_LIMIT", 100)
    one: Any = Troubles(get_logger("test"))
    for number in range(1000):
        one.tell(str(number), "event")
        assert len(one._told) <= 100
