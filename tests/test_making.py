"""Pairs are made by processes that die, race and come late: one whole pair stands at every moment.

A re-pairing is run line by line. A reader looks at the pair before each line, in a process whose
making is really killed there, and after the next start has made it good.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from filing_world import (
    MEMORY,
    World,
    die,
    encoded,
    end_of_child,
    in_child,
    make_world,
    start_child,
)

from daemon.sweeper import Sweeper
from workers import durable
from workers.completeness.judging import judge_studies
from workers.completeness.overriding import override_pair
from workers.index.tables import event, pair, study
from workers.pairing import build, load, making
from workers.pairing.evidence import Override
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.both_databases

PROJECT = Path(__file__).resolve().parent.parent
WATCHED = ("pairing/making.py", "pairing/exchanging.py")
STUDY = make_study(PhantomSpec(size="tiny"))
KILL_SECONDS = 6.0


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is nine tenths of a tiny pair's time, and tested elsewhere."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in memory: hundreds of pairs are made and killed there."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="mk") as folder:
        yield Path(folder)


@pytest.fixture
def world(top: Path) -> Iterator[World]:
    """An installation with one study, paired."""
    world = make_world(top / "site")
    parts = [STUDY.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    assert make(world) == "ready"
    yield world
    world.close()


def row_of(world: World) -> Any:
    return world.rows(pair)[0]


def make(world: World) -> str:
    """Make the pair that is wanted."""
    row = row_of(world)
    return make_pair(world.index, world.settings, row.id, row.generation)


def ask_again(world: World, weight_kg: float) -> None:
    """Want the pair with another weight, so with another PET."""
    override_pair(world.index, world.settings, STUDY.study_uid, Override(weight_kg=weight_kg))


def want(world: World, weight_kg: float) -> None:
    """The same without judging the study again, two hundred times."""
    row = row_of(world)
    with world.index.write() as connection:
        connection.execute(
            pair.update().values(
                override=json.dumps({"weight_kg": weight_kg}),
                generation=row.generation + 1,
                state="pending",
            )
        )


def home_of(world: World) -> Path:
    home: Path = world.layout.archive / row_of(world).folder
    return home


def whole(home: Path) -> tuple[int, float]:
    """Read a pair; assert that its files are of one revision; return revision and weight."""
    found = load_pair(home)
    meta = found.meta
    for array, said in ((found.ct, meta.ct), (found.pet, meta.pet)):
        content = Path(str(array.filename)).name, array.tobytes()
        start = array.offset
        assert hashlib.sha256(_header(array, start) + content[1]).hexdigest() == said.sha256
    assert meta.suv.weight_kg is not None
    return meta.revision, meta.suv.weight_kg


def _header(array: Any, size: int) -> bytes:
    """The bytes before the values: taken from the mapping, whatever the path now names."""
    import mmap

    mapped = array._mmap
    assert isinstance(mapped, mmap.mmap)
    return bytes(mapped[:size])


def no_left_overs(world: World) -> None:
    """Sweep as an hour later, and find nothing."""
    tmp = world.layout.archive_private / "tmp"
    past = time.time() - 7200
    for path in tmp.iterdir():
        os.utime(path, (past, past))
    Sweeper(world.index, world.settings)._clean()
    assert os.listdir(tmp) == []
    beside = [path.name for path in home_of(world).parent.iterdir()]
    assert sorted(beside) == ["Auto-Paired", "studies"]


# readers ------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_a_reader_sees_one_revision_whole_while_a_pair_is_made_two_hundred_times(
    world: World,
) -> None:
    home = home_of(world)
    results = world.layout.root / "seen"

    def read() -> None:
        os.nice(5)
        parent, looks, seen = os.getppid(), 0, {}
        while os.getppid() == parent and not (world.layout.root / "enough").exists():
            revision, weight = whole(home)
            assert seen.setdefault(revision, weight) == weight
            assert revision == max(seen), "an older revision came back"
            looks += 1
        results.with_name(f"seen-{os.getpid()}").write_text(json.dumps([looks, seen]))

    world.let_go()
    readers = [start_child(read)]
    try:
        for number in range(200):
            want(world, 50.0 + number % 2)
            assert make(world) == "ready"
    finally:
        (world.layout.root / "enough").touch()
        ends = [end_of_child(pid) for pid in readers]
    assert ends == [0]
    assert row_of(world).revision == 201
    revisions = set()
    for pid in readers:
        looks, seen = json.loads(results.with_name(f"seen-{pid}").read_text())
        assert looks >= 100
        for revision, weight in seen.items():
            assert revision == "1" or weight == 50.0 + int(revision) % 2
        revisions |= set(seen)
    assert len(revisions) > 50
    no_left_overs(world)


# kills --------------------------------------------------------------------------------------------


class Tracer:
    """Call `at_line` before every line of making and exchanging."""

    def __init__(self, at_line: Callable[[str], None]) -> None:
        self._at_line = at_line

    def __call__(self, frame: FrameType, _: str, __: Any) -> Any:
        if frame.f_code.co_filename.endswith(WATCHED):
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self._at_line(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        return self._line


def traced(world: World, at_line: Callable[[str], None]) -> str:
    sys.settrace(Tracer(at_line))
    try:
        return make(world)
    finally:
        sys.settrace(None)


class Killing:
    """One installation that is put back to what it was before a re-pairing, again and again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root: Path = world.layout.root
        ask_again(world, 50.0)
        self.home = home_of(world)
        self.old = whole(self.home)
        self.new = (2, 50.0)
        self.copy("pristine")

    def copy(self, name: str) -> None:
        self.world.let_go()
        subprocess.run(["cp", "-a", self.root, self.root.parent / name], check=True)

    def restore(self, name: str) -> None:
        self.world.let_go()
        shutil.rmtree(self.root)
        subprocess.run(["cp", "-a", self.root.parent / name, self.root], check=True)

    def signature(self) -> list[tuple[str, int, int]]:
        """What lies in the archive and the index, cheaply."""
        found = []
        for place in (self.root / "archive/.petct/tmp", self.home.parent):
            for folder, _, files in os.walk(place):
                if "studies" in folder:
                    continue
                found += [(folder, os.stat(folder).st_ino, 0)]
                found += [(f"{folder}/{name}", os.stat(f"{folder}/{name}").st_ino, 0)
                          for name in files]  # fmt: skip
        for path in self.root.glob("index.sqlite*"):
            if not path.name.endswith("-shm"):
                found.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
        return sorted(found)

    def every_state(self, *, gone: bool) -> tuple[dict[str, str], list[str]]:
        """Make the pair once; copy every state on disk, and look at the pair before every line.

        `gone`: between two renames the pair may be away for a moment.
        """
        copies: dict[str, str] = {}
        lines: list[str] = []
        last: Any = None

        def at_line(line: str) -> None:
            nonlocal last
            lines.append(line)
            now = self.signature()
            if now == last:
                return
            last = now
            if self.home.exists() or not gone:
                assert whole(self.home) in (self.old, self.new), line
            name = f"copy-{len(copies)}"
            subprocess.run(["cp", "-a", self.root, self.root.parent / name], check=True)
            copies[name] = f"{len(lines)}, before {line}"

        assert traced(self.world, at_line) == "ready"
        self.is_made("no line")
        return copies, lines

    def kill_at(self, number: int) -> None:
        """Really kill a process that makes the pair, before its n-th line."""
        self.world.let_go()

        def work() -> None:
            count = 0

            def at_line(_: str) -> None:
                nonlocal count
                if count == number:
                    die()
                count += 1

            traced(self.world, at_line)

        assert in_child(work) == -9

    def run_again(self, where: str) -> None:
        """Start anew, as after a kill, and make what is still wanted."""
        sweeper = Sweeper(self.world.index, self.world.settings)
        sweeper.finish_exchanges()
        assert whole(self.home) in (self.old, self.new), f"killed at {where}"
        assert make(self.world) in ("ready", "done"), f"killed at {where}"
        self.is_made(where)

    def is_made(self, where: str) -> None:
        row = row_of(self.world)
        assert (row.state, row.revision, row.generation) == ("ready", 2, 2), f"killed at {where}"
        assert row.done_generation == 2
        assert whole(self.home) == self.new, f"killed at {where}"
        told = [json.loads(one.details) for one in self.world.rows(event)
                if one.kind == "pair-ready"]  # fmt: skip
        assert [one["revision"] for one in told] == [1, 2], f"killed at {where}"
        no_left_overs(self.world)


def prove(killing: Killing, *, gone: bool) -> int:
    copies, lines = killing.every_state(gone=gone)
    for name, where in copies.items():
        killing.restore(name)
        killing.run_again(where)
    end, killed = time.monotonic() + KILL_SECONDS, 0
    for number in random.Random(7).sample(range(len(lines)), len(lines)):
        if killed >= 10 and time.monotonic() > end:
            break
        killing.restore("pristine")
        killing.kill_at(number)
        if not gone:
            assert whole(killing.home) in (killing.old, killing.new)
        killing.run_again(f"{number}, {lines[number]}")
        killed += 1
    assert killed >= 10
    return len(copies)


@pytest.mark.sqlite_only
def test_a_making_that_is_killed_at_any_line_leaves_the_old_or_the_new_pair_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 0.0)
    assert prove(Killing(world), gone=False) >= 5


@pytest.mark.sqlite_only
def test_where_names_cannot_be_exchanged_a_kill_between_two_renames_is_made_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(durable, "exchange", lambda *_: False)
    assert prove(Killing(world), gone=True) >= 7


def test_a_first_making_that_is_killed_at_the_exchange_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home_of(world))  # as if nothing had been made yet
    ask_again(world, 50.0)
    world.let_go()
    exchange = making.exchange_folder

    def and_die(building: Path, target: Path, *modes: int) -> None:
        exchange(building, target, *modes)
        die()

    def work() -> None:
        monkeypatch.setattr(making, "exchange_folder", and_die)
        make(world)

    assert in_child(work) == -9
    assert whole(home_of(world)) == (2, 50.0)
    assert row_of(world).revision == 1
    assert make(world) == "ready"
    assert whole(home_of(world)) == (2, 50.0)
    assert row_of(world).revision == 2
    no_left_overs(world)


def between_two_renames(world: World) -> Path:
    """Leave the pair as a kill between two renames does."""
    old: Path = world.layout.archive_private / "tmp" / f"pair-{row_of(world).id}-1-aaaa.old"
    os.rename(home_of(world), old)
    past = time.time() - 7200  # it was made long ago: the sweep must not take it for left over
    os.utime(old, (past, past))
    return old


def test_a_pair_that_is_away_is_put_back_while_the_sweeper_runs(world: World) -> None:
    before = whole(home_of(world))
    old = between_two_renames(world)
    Sweeper(world.index, world.settings)._clean()
    assert whole(home_of(world)) == before
    assert not old.exists()


def test_a_pair_whose_exchange_goes_on_is_left_alone(world: World) -> None:
    old = between_two_renames(world)
    with making.pair_lock(world.index, world.layout, row_of(world).id):
        Sweeper(world.index, world.settings)._clean()
        assert old.exists()
        assert not home_of(world).exists()


def test_an_old_pair_of_another_study_is_never_put_in_a_studys_place(world: World) -> None:
    old = between_two_renames(world)
    raw = json.loads((old / "pair.json").read_text())
    (old / "pair.json").write_text(json.dumps({**raw, "study": "1.2.3"}))
    Sweeper(world.index, world.settings)._clean()
    assert not home_of(world).exists()


# races --------------------------------------------------------------------------------------------


def test_of_two_processes_that_are_to_make_one_pair_one_makes_it(world: World) -> None:
    ask_again(world, 50.0)
    generation = row_of(world).generation
    world.let_go()
    said = world.layout.root / "said"
    said.mkdir()
    start = world.layout.root / "start"

    def work() -> None:
        while not start.exists():
            time.sleep(0.001)
        (said / str(os.getpid())).write_text(make_pair(world.index, world.settings, 1, generation))

    children = [start_child(work) for _ in range(3)]
    start.touch()
    assert [end_of_child(pid) for pid in children] == [0, 0, 0]
    results = sorted(path.read_text() for path in said.iterdir())
    assert results.count("ready") == 1
    assert set(results) <= {"ready", "busy", "done"}
    assert (row_of(world).revision, whole(home_of(world))) == (2, (2, 50.0))
    no_left_overs(world)


def while_it_is_built(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Let something happen when the arrays are built and not yet in their place."""
    real = making._build

    def built_and_then(*arguments: Any) -> Any:
        summary = real(*arguments)
        monkeypatch.setattr(making, "_build", real)
        action()
        return summary

    monkeypatch.setattr(making, "_build", built_and_then)


def test_what_is_built_while_something_newer_is_wanted_never_takes_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(home_of(world))
    ask_again(world, 50.0)
    while_it_is_built(monkeypatch, lambda: ask_again(world, 60.0))
    assert make(world) == "stale"
    assert whole(home_of(world)) == before
    assert (row_of(world).state, row_of(world).revision) == ("pending", 1)
    assert make(world) == "ready"
    assert whole(home_of(world)) == (2, 60.0)
    assert make_pair(world.index, world.settings, 1, 2) == "done"  # the older job comes late
    assert whole(home_of(world)) == (2, 60.0)
    no_left_overs(world)


def test_a_study_that_is_held_while_its_pair_is_built_stays_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(home_of(world))
    ask_again(world, 50.0)

    def hold() -> None:
        with world.index.write() as connection:
            connection.execute(study.update().values(two_patients=True))
        assert judge_studies(world.index, world.settings, [1]) == []

    while_it_is_built(monkeypatch, hold)
    assert make(world) == "stale"
    assert (row_of(world).state, row_of(world).revision) == ("held", 1)
    assert whole(home_of(world)) == before


def test_a_refusal_is_told_once_and_the_old_pair_stands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(home_of(world))
    ask_again(world, 50.0)
    victim = next(world.layout.archive.rglob("*.dcm"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-500])
    assert make(world) == "held"
    reasons = json.loads(row_of(world).reasons)
    assert (row_of(world).state, len(reasons)) == ("held", 1)
    assert whole(home_of(world)) == before
    assert judge_studies(world.index, world.settings, [1]) == []
    assert json.loads(row_of(world).reasons) == reasons  # judging again does not forget why
    assert make(world) == "done"
    victim.write_bytes(content)
    ask_again(world, 51.0)
    assert make(world) == "ready"
    assert whole(home_of(world)) == (2, 51.0)
