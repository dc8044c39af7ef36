"""Filing is killed at every line, and running again always gives the same result.

What a kill leaves is what is on disk at that line. So a whole run is traced, and wherever a line
changed anything on disk a copy is taken: running again from each copy is running again after a kill
at any line. Real SIGKILLs, at lines drawn by lot, prove that the copies are like the real thing.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import databases
import pytest
from conftest import missing
from filing_world import (
    MEMORY,
    World,
    changed,
    die,
    in_child,
    make_world,
    other_pixels,
    recoded,
    small_instances,
    uid_of,
)

from workers.index.tables import instance

PROJECT = Path(__file__).resolve().parent.parent
WATCHED = tuple(
    str(PROJECT / part)
    for part in ("workers/filing", "workers/spool", "workers/durable.py", "workers/rooted.py")
)
ONLY_READING = ("comparing.py", "names.py", "examining.py", "placing.py", "rows.py")
"""Modules whose lines change nothing on disk (before a commit): not looked at one by one."""
KILL_SECONDS = 3.0


class Tracer:
    """Call `at_line` before every line of filing, spool and durable files is run."""

    def __init__(self, at_line: Any) -> None:
        self._at_line = at_line

    def __call__(self, frame: FrameType, _: str, __: Any) -> Any:
        name = frame.f_code.co_filename
        if name.startswith(WATCHED) and not name.endswith(ONLY_READING):
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self._at_line(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        return self._line


@dataclass
class Site:
    """An installation at one place, that is put back to what it was again and again."""

    top: Path
    places: tuple[Path, ...]
    """Its folders, each on a file system of its own."""
    world: World
    filing: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def copy(self, name: str) -> None:
        for place in self.places:  # -a keeps what links to one inode together
            subprocess.run(["cp", "-a", place, place.parent / name], check=True)
        databases.keep(self.world.settings.root, name)

    def restore(self, name: str) -> None:
        self.world.let_go()
        for place in self.places:
            shutil.rmtree(place)
            subprocess.run(["cp", "-a", place.parent / name, place], check=True)
        databases.put_back(self.world.settings.root, name)

    def signature(self) -> list[tuple[str, int, int, int]]:
        found: list[tuple[str, int, int, int]] = []
        folders = [str(place) for place in self.places]
        while folders:
            for item in os.scandir(folders.pop()):
                facts = item.stat(follow_symlinks=False)
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                    found.append((item.path, facts.st_ino, 0, 0))
                elif not item.name.endswith("-shm"):
                    found.append((item.path, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        return sorted(found)

    def run_traced(self, at_line: Any) -> None:
        filer = self.world.filer(**self.filing)
        waiting = self.world.waiting()
        sys.settrace(Tracer(at_line))
        try:
            filer.file_entries(waiting)
        finally:
            sys.settrace(None)

    def take_copies(self) -> dict[str, str]:
        """File once; return the copies of every state on disk, and the line that led there."""
        copies: dict[str, str] = {}
        last: Any = None

        def at_line(line: str) -> None:
            nonlocal last
            self.events.append(line)
            now = self.signature()
            if now != last:
                name = f"copy-{len(copies)}"
                self.copy(name)
                copies[name] = f"event {len(self.events)}, before {line}"
                last = now

        self.run_traced(at_line)
        return copies

    def kill_at(self, event: int) -> None:
        """Really kill a process that files, before its n-th line."""
        self.world.let_go()

        def work() -> None:
            count = 0

            def at_line(_: str) -> None:
                nonlocal count
                if count == event:
                    die()
                count += 1

            self.run_traced(at_line)

        assert in_child(work) == -9, f"not killed at {event}: {self.events[event]}"


def make_site(top: Path, places: tuple[Path, ...], **overrides: Any) -> Site:
    return Site(top, places, make_world(places[0], **overrides))


def contents(world: World) -> set[bytes]:
    """Every file of the system under its final name: in the spool, the tree, the quarantine."""
    waiting = {name.where(world.layout).read_bytes() for name in world.waiting()}
    aside = {path.read_bytes() for path in world.layout.quarantine.glob("*.dcm")}
    return waiting | aside | set(world.tree().values())


def prove(site: Site, wanted: dict[str, bytes], outcomes: dict[str, int]) -> tuple[int, int]:
    """Run again after a kill at any line; return how many states and how many real kills."""
    world = site.world
    world.let_go()
    site.copy("pristine")
    whole = contents(world)

    def run_again(where: str) -> None:
        is_filed_again(site, wanted, outcomes, where)

    copies = site.take_copies()
    run_again("no line")
    kept = contents(world)  # all but duplicates and litter
    for name, where in copies.items():
        site.restore(name)
        assert kept <= contents(world) <= whole, f"lost or half a file when killed at {where}"
        run_again(where)
    return len(copies), really_kill(site, run_again)


def really_kill(site: Site, run_again: Callable[[str], None]) -> int:
    """Kill at lines drawn by lot and run again; return how often."""
    kills = random.Random(20).sample(range(len(site.events)), 100)
    end, killed = time.monotonic() + KILL_SECONDS, 0
    for event in kills:
        if killed >= 10 and time.monotonic() > end:
            break
        site.restore("pristine")
        site.kill_at(event)
        run_again(f"event {event}, {site.events[event]}")
        killed += 1
    return killed


def is_filed_again(
    site: Site, wanted: dict[str, bytes], outcomes: dict[str, int], where: str
) -> None:
    """Run again and assert that all is as if there had been no kill."""
    world = site.world
    try:
        world.file_all(**site.filing)
        world.check()
        assert world.outcomes() == outcomes
        assert {row.instance_uid for row in world.rows(instance)} == set(wanted)
        assert sorted(world.tree().values()) == sorted(wanted.values())
    except AssertionError as error:
        raise AssertionError(f"killed at {where}: {error}") from error


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: hundreds of installations are made and killed there."""
    top = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=top, prefix="pk") as folder:
        yield Path(folder)


def fill(world: World, folder: Path) -> dict[str, bytes]:
    """File three instances, then spool a batch with everything in it; return what must be kept."""
    old = small_instances(folder / "old", 3)
    new = small_instances(folder / "new", 4, folders=2, patient=2)
    world.put({f"{number}": content for number, content in enumerate(old)})
    world.file_all()
    world.put(
        {
            "a/new0": new[0],
            "a/new1": new[1],
            "b/new2": new[2],
            "b/new3": new[3],
            "b/twice": recoded(new[3]),
            "duplicate": recoded(old[0]),
            "variant": changed(old[1], PatientName="Other^Name"),
            "conflict": other_pixels(old[2]),
            "letter.txt": b"Dear colleague",
            ".DS_Store": b"\0\0\0\1Bud1",
        }
    )
    return {uid_of(content): content for content in (*old, *new)}


EVERYTHING = {
    "filed": 7, "duplicate": 2, "variant": 1, "conflict": 1, "quarantined": 1, "skipped": 1,
}  # fmt: skip


def test_filing_that_is_killed_at_any_line_files_everything_exactly_once(fast: Path) -> None:
    site = make_site(fast, (fast / "site",))
    wanted = fill(site.world, fast)
    states, kills = prove(site, wanted, EVERYTHING)
    site.world.close()
    assert states > 50
    assert kills >= 10


@pytest.mark.parametrize("index_database", ["postgresql"], indirect=True)
def test_filing_into_a_server_that_is_killed_files_everything_exactly_once(fast: Path) -> None:
    """A transaction of a server's cannot be copied half done, so here all kills are real."""
    site = make_site(fast, (fast / "site",))
    wanted = fill(site.world, fast)
    site.world.let_go()
    site.copy("pristine")
    site.run_traced(site.events.append)
    is_filed_again(site, wanted, EVERYTHING, "no line")
    kills = really_kill(site, lambda where: is_filed_again(site, wanted, EVERYTHING, where))
    site.world.close()
    assert kills >= 10


def test_filing_to_another_file_system_is_killed_at_any_line(tmp_path: Path) -> None:
    if not MEMORY.is_dir():
        missing("no /dev/shm")
    if os.stat(MEMORY).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("the temporary folder lies on /dev/shm's file system")
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="pk") as name:
        top = Path(name)
        places = (top / "site", tmp_path / "spool")
        site = make_site(top, places, paths={"spool": str(places[1])})
        new = small_instances(top / "new", 2)
        site.world.put({"old": new[0]})
        site.world.file_all()
        site.world.put({"new": new[1], "twice": new[1], "conflict": other_pixels(new[0])})
        wanted = {uid_of(content): content for content in new}
        states, _ = prove(site, wanted, {"filed": 2, "duplicate": 1, "conflict": 1})
        site.world.close()
    assert states > 30


@pytest.mark.parametrize("aside", ["beside", "on another file system"])
def test_a_replacement_that_is_killed_at_any_line_is_finished(
    fast: Path, tmp_path: Path, aside: str
) -> None:
    places: tuple[Path, ...] = (fast / "site",)
    if aside != "beside":
        if fast.stat().st_dev == tmp_path.stat().st_dev:
            missing("no second file system")
        places = (fast / "site", tmp_path / "aside")
    site = make_site(fast, places, paths={"quarantine": str(places[-1])} if places[1:] else {})
    site.filing = {"duplicates": "replace"}
    old = small_instances(fast / "old", 2)
    site.world.put({str(number): content for number, content in enumerate(old)})
    site.world.file_all()
    newer = changed(old[0], PatientName="Other^Name")
    site.world.put({"newer": newer, "same": recoded(old[1])})
    wanted = {uid_of(newer): newer, uid_of(old[1]): old[1]}
    states, _ = prove(site, wanted, {"filed": 2, "replaced": 1, "duplicate": 1})
    site.world.close()
    assert states > 15
