"""Room for what comes in: the mark, its hysteresis, and what waits for the archive."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filing_world import a_world, small_instances
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Settings
from daemon import room as rooms
from daemon.looking import look
from daemon.room import Room, refusals
from workers.durable import FreeSpace
from workers.spool.notes import NoteWriter, take_notes
from workers.watermark import Reserve, StoreRoom, judge_room

MIB = 1 << 20
RESERVE = Reserve(1000 * MIB, 1000, 1.25)


def store(mib: float, inodes: int | None = 10**6, **more: Any) -> StoreRoom:
    return StoreRoom("archive", FreeSpace(int(mib * MIB), inodes), **more)


@pytest.mark.parametrize(
    ("mib", "low", "size", "refused", "low_after"),
    [
        (1000, False, 0, False, False),
        (999, False, 0, True, True),
        (1249, True, 0, True, True),  # it was low, and is not restored
        (1250, True, 0, False, False),
        (1249, False, 0, False, False),
        (1010, False, 11 * MIB, True, False),  # too large alone: the way stays open
        (1010, False, 10 * MIB, False, False),
        (0, False, 0, True, True),
    ],
)
def test_the_mark_and_its_hysteresis(
    mib: float, low: bool, size: int, refused: bool, low_after: bool
) -> None:
    verdict = judge_room([store(mib)], RESERVE, low=low, size=size)
    assert (verdict.reason is not None, verdict.low) == (refused, low_after)


def test_inodes_count_as_bytes_do_and_only_where_they_are_counted() -> None:
    assert "inodes" in str(judge_room([store(5000, 999)], RESERVE, low=False).reason)
    assert judge_room([store(5000, 1249)], RESERVE, low=True).low
    assert judge_room([store(5000, 1250)], RESERVE, low=True).reason is None
    assert judge_room([store(5000, None)], RESERVE, low=True).reason is None


def test_every_store_must_have_room_and_the_first_that_has_none_is_named() -> None:
    spool = StoreRoom("spool", FreeSpace(5000 * MIB, None))
    assert judge_room([spool, store(5000)], RESERVE, low=False).reason is None
    reason = judge_room([spool, store(500)], RESERVE, low=False).reason
    assert reason == "the archive has 500 MiB free, 1000 MiB are kept in reserve"


def test_what_waits_in_the_spool_counts_against_the_archive() -> None:
    assert judge_room([store(3000, owed_bytes=2000 * MIB)], RESERVE, low=False).reason is None
    reason = judge_room([store(3000, owed_bytes=2001 * MIB)], RESERVE, low=False).reason
    assert "999 MiB free beside 2001 MiB that wait for it" in str(reason)
    assert judge_room([store(3000, 5000, owed_entries=4001)], RESERVE, low=False).reason


def test_read_only_is_no_matter_of_room() -> None:
    verdict = judge_room([store(9999, read_only=True)], RESERVE, low=False)
    assert (verdict.low, verdict.reason) == (False, "the archive is mounted read-only")


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=40))
def test_between_refusing_and_taking_again_lies_the_whole_way_up(levels: list[int]) -> None:
    low = False
    taken = []
    for level in levels:
        verdict = judge_room([store(level)], RESERVE, low=low)
        low = verdict.low
        taken.append(verdict.reason is None)
    for (before, was), (after, now) in pairwise(zip(levels, taken, strict=True)):
        if was and not now:
            assert after < 1000
        if now and not was:
            assert after >= 1250 > before


# measured -----------------------------------------------------------------------------------------


class Disks:
    """What statvfs says of spool and archive, in the test's hand; counts who asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
        self.free = {"spool": 10_000 * MIB, "archive": 10_000 * MIB}
        self.used = 1_000_000 * MIB
        self.asked = 0
        monkeypatch.setattr(rooms, "measure", self._measure)

    def _measure(self, name: str, folder: Path) -> tuple[StoreRoom, tuple[int, int]]:
        self.asked += 1
        return StoreRoom(name, FreeSpace(self.free[name], None)), (self.used, 0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    spool = settings.spool.model_copy(update={"minimum_free_mb": 1000})
    return settings.model_copy(update={"spool": spool})


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Disks:
    return Disks(monkeypatch, settings)


@pytest.mark.parametrize("full", ["spool", "archive"])
def test_the_room_of_both_stores_decides_and_the_turns_are_told(
    settings: Settings, disks: Disks, full: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    notes = NoteWriter(settings.layout, "receiver")
    room = Room(settings.layout, settings.spool, note=notes.note)
    assert room.refusal(1, 0) is None
    for now, level, taken in ((1, 999, 0), (2, 1100, 0), (3, 998, 0), (4, 1250, 1), (5, 1001, 1)):
        disks.free[full] = level * MIB
        reason = room.refusal(1, now)
        assert (reason is None) == bool(taken), (now, reason)
        assert (refusals(settings.layout).get("receiver") is None) == bool(taken)
        assert taken or f"the {full} has" in str(reason)
    notes.close()
    assert [record.message for record in caplog.records if "intake-" in record.message] == [
        "intake-refused",
        "intake-resumes",
    ]
    told = [(note.kind, note.count, note.details["by"]) for note in take_notes(settings.layout)]
    assert sorted(told) == [("intake-refused", 1, "receiver"), ("intake-resumes", 1, "receiver")]


def test_one_instance_too_large_is_refused_and_no_turn(
    settings: Settings, disks: Disks, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(settings.layout, settings.spool)
    assert room.refusal(9_001 * MIB, 0)
    assert room.refusal(9_000 * MIB, 0) is None
    assert not [record for record in caplog.records if "intake-" in record.message]


def test_a_thousand_writes_a_second_measure_each_store_five_times(
    settings: Settings, disks: Disks
) -> None:
    room = Room(settings.layout, settings.spool)
    for number in range(1000):
        assert room.refusal(1000, number / 1000) is None
    assert 8 <= disks.asked <= 12


def test_what_was_taken_since_the_last_look_counts(settings: Settings, disks: Disks) -> None:
    room = Room(settings.layout, settings.spool)
    assert room.refusal(0, 0) is None
    for _ in range(9):
        room.took(1000 * MIB)
        assert room.refusal(0, 0.1) is None
    room.took(1)
    assert "999 MiB free" in str(room.refusal(0, 0.1))
    assert room.refusal(0, 0.3) is None  # measured anew: somebody has made room


def test_what_waits_is_counted_only_on_two_disks_and_only_where_it_could_matter(
    settings: Settings, disks: Disks, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    counts: list[Path] = []

    def count(folder: Path) -> tuple[int, int]:
        counts.append(folder)
        return 8_900 * MIB, 3

    monkeypatch.setattr(rooms, "_count", count)
    room = Room(settings.layout, settings.spool)
    assert room.refusal(1, 0) is None
    assert not counts  # one disk: a link needs no room
    archive = settings.layout.archive
    archive.rename(archive.with_name("old"))
    (elsewhere / ".petct").mkdir()
    (elsewhere / ".petct" / "id").write_bytes((archive.parent / "old/.petct/id").read_bytes())
    archive.symlink_to(elsewhere)
    disks.used = 8_700 * MIB
    assert room.refusal(1, 1) is None
    assert not counts  # not even all that the spool's disk holds would fill the archive
    disks.used = 9_999 * MIB
    assert room.refusal(1, 2) is None
    assert len(counts) == 1
    disks.free["archive"] = 9_899 * MIB
    assert "that wait for it" in str(room.refusal(1, 3))
    assert len(counts) == 2, "it is counted again as soon as that costs little"


def test_the_count_is_that_of_the_entries(tmp_path: Path) -> None:
    with a_world(tmp_path / "root") as world:
        files = small_instances(tmp_path / "made", 3)
        before = rooms._count(world.layout.ready)
        world.put({f"a/{number}": content for number, content in enumerate(files)})
        size, entries = rooms._count(world.layout.ready)
        assert before == (0, 0)
        assert entries == 4  # and the description of the batch
        assert sum(map(len, files)) <= size <= sum(map(len, files)) + 1000


def test_status_says_why_an_intake_takes_nothing_and_what_to_do(tmp_path: Path) -> None:
    with a_world(tmp_path / "root", spool={"minimum_free_mb": 1 << 40}) as world:
        room = Room(world.layout, world.settings.spool, "watcher")
        assert room.refusal(0, 0)
        troubles = "\n".join(look(world.settings).troubles)
    assert f"{world.layout.archive}: the archive has" in troubles
    assert "free space there or lower spool.minimum_free_mb" in troubles
    assert "the watched folders are left alone: the spool has" in troubles


def test_the_word_of_an_intake_that_has_ended_counts_no_more(settings: Settings) -> None:
    state = settings.layout.run / "refusing-receiver"
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    state.write_text(f"{dead}\nthe spool is full\n")
    assert refusals(settings.layout) == {}
    state.write_text(f"{os.getpid()}\nthe spool is full\n")
    assert refusals(settings.layout) == {"receiver": "the spool is full"}
    Room(settings.layout, settings.spool.model_copy(update={"minimum_free_mb": 1})).refusal(0, 0)
    assert not state.exists()
