"""A small installation in which everything is in order: filed, paired, set aside, journaled."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import databases
import pytest
from filing_world import (
    FOLDER,
    SENDER,
    World,
    encoded,
    make_world,
    other_pixels,
    settings_for,
    small_instances,
)

from daemon.sweeper import Sweeper
from workers import clock
from workers.checking.checker import check
from workers.checking.codes import Code
from workers.checking.findings import Report
from workers.checking.scene import Scene
from workers.index.tables import pair
from workers.jobs import Workplace, file_now
from workers.pairing import build
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

NO_SERVER = {"url": "unix:///nonexistent.sock"}
SPEC = PhantomSpec(size="tiny")


def make_template(folder: Path) -> Path:
    """File and pair a tiny study, and set a conflict and a text aside; return the root."""
    world = make_world(folder / "root", redis=NO_SERVER)
    place = Workplace(world.settings)
    try:
        small = small_instances(folder / "small", 6, folders=2)
        file_now(place, world.put(dict(enumerated(small)), SENDER))
        study = make_study(SPEC)
        files = [
            encoded(study.named(name).dataset(number))
            for name, count in (("PET AC", 8), ("PET NAC", 8), ("CT IMAGES", 12))
            for number in range(count)
        ]
        file_now(place, world.put(dict(enumerated(files))))
        aside = {"again": small[0], "other": other_pixels(small[1]), "letter": b"Dear colleague"}
        file_now(place, world.put(aside))
        Sweeper(world.index, world.settings).judge_quiet_series(clock.monotonic() + 1000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "draw_pair", lambda *_: b"a picture")
            for row in world.rows(pair):
                assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
        world.file_all()
        world.check()
    finally:
        place.close()
        world.close()
    if world.layout.index.exists():
        world.layout.index.chmod(world.layout.file_mode)  # as the umask of our processes does
    return Path(world.settings.root)


def enumerated(contents: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for number, content in enumerate(contents):
        yield f"{number:05d}", content


@contextmanager
def copy_of(template: Path, folder: Path, **overrides: Any) -> Iterator[World]:
    """A copy of an installation that a test may spoil."""
    root = folder / "root"
    shutil.copytree(template, root, symlinks=True)
    databases.copy(template, root)
    ours = {"redis": NO_SERVER, "watch": [{"path": FOLDER.folder}]}
    world = World(settings_for(root, **{**ours, **overrides}))
    try:
        yield world
    finally:
        world.close()


def checked(world: World, **how: Any) -> Report:
    """Run a check, without waiting for anybody."""
    return check(Scene(world.settings, world.index, sleep=lambda _: None, **how))


def codes(report: Report) -> dict[Code, int]:
    """What was found; that no queue server runs is not told."""
    counts = report.counts()
    counts.pop(Code.QUEUES_UNREACHABLE, None)
    return counts


def examples(report: Report, code: Code) -> list[dict[str, str]]:
    return next(one["examples"] for one in report.to_json_object()["findings"]
                if one["code"] == code)  # fmt: skip


def stores(world: World) -> dict[str, tuple[Any, ...]]:
    """Bytes, inode, mtime and mode of everything in archive, quarantine and spool."""
    found: dict[str, tuple[Any, ...]] = {}
    layout = world.layout
    for top in (layout.archive, layout.quarantine, layout.spool):
        for folder, folders, names in os.walk(top):
            for name in (*names, *folders):
                path = Path(folder, name)
                facts = os.lstat(path)
                digest = ""
                if path.is_file() and not path.is_symlink():
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path)] = (digest, facts.st_ino, facts.st_mtime_ns, facts.st_mode)
                else:
                    found[str(path)] = (facts.st_mode,)
    return found


def sql(world: World, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask or change the index from outside, as nobody should."""
    return databases.ask(world.settings, statement, *values)


def a_filed_file(world: World, number: int = 0) -> Path:
    """One of the small instances that no pair is made of."""
    uid = sql(world, "select instance_uid from arrival where outcome = 'filed' and source like "
                     "'PACS%' order by id limit 1 offset ?", number)[0][0]  # fmt: skip
    return world.path_of(uid)


Plant = Callable[[World], str]
"""Spoils one thing and returns what the finding must name."""
