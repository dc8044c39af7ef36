"""Two hosts, one PostgreSQL, one archive: a pair is made once, and the newest wish counts."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filing_world import World, encoded, end_of_child, make_world, start_child
from running import wait_until

from config.settings import Settings
from workers.completeness.judging import judge_studies
from workers.index.engine import open_index
from workers.index.tables import pair
from workers.pairing import build, making
from workers.pairing.load import load_pair
from workers.pairing.locking import _KIND, pair_lock
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.parametrize("index_database", ["postgresql"], indirect=True)

STUDY = make_study(PhantomSpec(size="tiny"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A host whose archive holds one study, its pair wanted."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")
    world = make_world(tmp_path / "site")
    parts = [STUDY.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    yield world
    world.close()


@pytest.fixture
def other(world: World, tmp_path: Path) -> Settings:
    """Another host with a root of its own, on the same archive and index."""
    paths = world.settings.paths.model_copy(update={"archive": world.layout.archive})
    settings = world.settings.model_copy(update={"root": tmp_path / "other", "paths": paths})
    settings.layout.make_private()
    assert settings.layout.locks != world.layout.locks
    return settings


class Making:
    """A process on another host that makes the pair, and waits with it half made."""

    def __init__(self, settings: Settings, folder: Path, generation: int) -> None:
        self.begun, self.go, self.came = folder / "begun", folder / "go", folder / "came"
        self._settings, self._generation = settings, generation
        self.pid = start_child(self._make)
        wait_until(self.begun.exists, what="the other host's build")

    def _make(self) -> None:
        real: Callable[..., Any] = making._build

        def slow(*arguments: Any) -> Any:
            self.begun.touch()
            while not self.go.exists():
                time.sleep(0.01)
            return real(*arguments)

        making._build = slow
        index = open_index(self._settings)
        self.came.write_text(make_pair(index, self._settings, 1, self._generation))
        index.close()

    def finish(self) -> str:
        self.go.touch()
        assert end_of_child(self.pid) == 0
        return self.came.read_text()


def make(world: World) -> str:
    (row,) = world.rows(pair)
    assert row.id == 1
    return make_pair(world.index, world.settings, 1, row.generation)


def test_a_pair_that_another_host_makes_is_not_made_here(
    world: World, other: Settings, tmp_path: Path
) -> None:
    world.let_go()
    far = Making(other, tmp_path, 1)
    assert make(world) == "busy"
    assert far.finish() == "ready"
    assert make(world) == "done"
    assert load_pair(world.layout.archive / world.rows(pair)[0].folder).meta.revision == 1


def test_a_pair_whose_maker_is_killed_on_another_host_is_made_here_at_once(
    world: World, other: Settings, tmp_path: Path
) -> None:
    world.let_go()
    far = Making(other, tmp_path, 1)
    assert make(world) == "busy"
    os.kill(far.pid, signal.SIGKILL)
    assert end_of_child(far.pid) == -signal.SIGKILL
    assert wait_until(lambda: (came := make(world)) != "busy" and came) == "ready"


def test_a_maker_whose_lock_was_lost_never_replaces_a_newer_pair(
    world: World, other: Settings, tmp_path: Path
) -> None:
    world.let_go()
    far = Making(other, tmp_path, 1)
    with world.index.write() as connection:  # as where the server was restarted, or the line cut
        lost = sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND classid = :kind AND objsubid = 2"
        )
        assert connection.execute(lost, {"kind": _KIND}).scalars().all() == [True]
        wish = {"override": json.dumps({"weight_kg": 77.0}), "generation": 2, "state": "pending"}
        connection.execute(pair.update().values(wish))
    assert wait_until(lambda: (came := make(world)) != "busy" and came) == "ready"
    assert far.finish() == "stale"
    meta = load_pair(world.layout.archive / world.rows(pair)[0].folder).meta
    assert (meta.revision, meta.suv.weight_kg) == (1, 77.0)
    assert not list((world.layout.archive_private / "tmp").iterdir())


def test_a_lock_on_the_server_is_free_again_when_it_was_given_back(
    world: World, other: Settings
) -> None:
    far = open_index(other)
    with pair_lock(world.index, world.layout, 1) as mine:
        assert mine
        with pair_lock(far, other.layout, 1) as theirs, pair_lock(far, other.layout, 2) as second:
            assert (theirs, second) == (False, True)
    with pair_lock(far, other.layout, 1) as theirs:
        assert theirs
    far.close()
