"""Several hosts and one archive: what they do to each other, and what a share does to them."""

import errno
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import databases
import pytest
from conftest import QueueServer
from disks import small_disk
from filing_world import (
    World,
    a_world,
    encoded,
    end_of_child,
    make_world,
    settings_for,
    small_instances,
    start_child,
)
from redis import Redis
from running import wait_until

from workers import queues
from workers.checking.checker import check
from workers.checking.codes import Code
from workers.checking.lost import settle_lost
from workers.checking.scene import Scene
from workers.checking.suspects import Suspects
from workers.commitment import evidence
from workers.completeness.judging import judge_studies
from workers.errors import StoreUnavailable
from workers.filing.entering import Entrance
from workers.index.engine import prepare_index
from workers.index.tables import instance, pair
from workers.pairing import making
from workers.pairing.exchanging import finish_exchanges
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study
from workers.spool.batches import EntryName

STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
MOST_AT_ONCE = 8


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    index = databases.index_of(folder / "shared") or {
        "index": {"url": f"sqlite:///{folder}/index.sqlite"}
    }
    return {"spool": {"name": name}, "paths": {"archive": folder / "archive"}, **index}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[World]]:
    """Two hosts that receive."""
    worlds = [make_world(tmp_path / f"root-{name}", **settings_of(tmp_path, name)) for name in "ab"]
    yield worlds
    for world in worlds:
        world.close()


def file_at_once(worlds: list[World], go: Path) -> None:
    """Let each host file what waits there, in a process of its own."""

    def file(world: World) -> None:
        world.file([])  # all is loaded and open
        (go.parent / f"ready-{os.getpid()}").touch()
        wait_until(go.exists, 20)
        world.file_all()
        world.close()

    for world in worlds:
        world.close()
    children = [start_child(lambda world=world: file(world)) for world in worlds]  # type: ignore[misc]
    wait_until(lambda: all((go.parent / f"ready-{pid}").exists() for pid in children), 20)
    go.touch()
    assert [end_of_child(pid) for pid in children] == [0, 0]


@pytest.mark.both_databases
@pytest.mark.parametrize("differ", [False, True])
def test_an_instance_that_two_hosts_receive_at_once_is_filed_once(
    tmp_path: Path, two: list[World], differ: bool
) -> None:
    contents = small_instances(tmp_path / "made", MOST_AT_ONCE)
    others = [content[:-1] + bytes([content[-1] ^ 1]) if differ else content
              for content in contents]  # fmt: skip
    for world, files in zip(two, (contents, others), strict=True):
        world.put({str(number): content for number, content in enumerate(files)})
    file_at_once(two, tmp_path / "go")
    outcomes = Counter(two[0].outcomes())
    assert outcomes.pop("filed") == MOST_AT_ONCE
    assert outcomes == {"conflict" if differ else "duplicate": MOST_AT_ONCE}
    assert len(two[0].rows(instance)) == len(two[0].tree()) == MOST_AT_ONCE
    assert set(two[0].tree().values()) <= {*contents, *others}
    for world in two:
        assert world.waiting() == []
        report = check(Scene(world.settings, world.index, checksums=True, sleep=lambda _: None))
        assert report.left == 0, report


@pytest.mark.both_databases
def test_a_host_that_only_pairs_starts_while_another_writes(
    tmp_path: Path, two: list[World]
) -> None:
    settings = settings_for(tmp_path / "root-d", **settings_of(tmp_path, ""))
    with two[0].index.write():
        began = time.monotonic()
        prepare_index(settings).close()
        assert time.monotonic() - began < 20, "who writes may do so for 30 s"


def test_what_a_host_queued_before_it_had_a_name_is_dropped(valkey: QueueServer) -> None:
    connection = valkey.connect()
    entry = EntryName("batch", "one.dcm")
    for spool in ("", "a", "b"):
        assert queues.enqueue_filing(connection, [entry], spool)
    assert queues.enqueue_pairing(connection, 1, 1)
    assert queues.flush_foreign(connection, "") == 0
    assert jobs(connection) == 4
    assert queues.flush_foreign(connection, "a") == 1
    assert queues.depths(connection, "a") == {"filing:a": 1, "pairing": 1, "filing:b": 1}
    assert queues.depths(connection, "")["filing"] == 0
    assert jobs(connection) == 3
    connection.close()


def jobs(connection: Redis) -> int:
    return len(connection.keys("rq:job:*"))  # type: ignore[arg-type]


# an archive that goes while it is worked on -------------------------------------------------------


def test_an_archive_that_is_unmounted_over_a_batch_costs_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "root" / "archive"
    with small_disk(archive) as disk, a_world(tmp_path / "root") as world:
        files = small_instances(tmp_path / "made", 3)
        world.put({str(number): content for number, content in enumerate(files)})
        link = Entrance.link

        def late(*given: Any) -> Any:
            disk.detach()  # the names are given below the mount point
            return link(*given)

        with monkeypatch.context() as patch:
            patch.setattr(Entrance, "link", late)
            with pytest.raises(StoreUnavailable, match="has no identity file"):
                world.file()
        assert len(world.waiting()) == 3
        assert world.outcomes() == {}


def test_no_pair_is_laid_below_an_archive_that_was_unmounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "root" / "archive"
    with small_disk(archive) as disk, a_world(tmp_path / "root") as world:
        row = a_wanted_pair(world)
        build = making._build

        def late(*given: Any) -> Any:
            made = build(*given)
            disk.detach()
            return made

        monkeypatch.setattr(making, "_build", late)
        with pytest.raises(StoreUnavailable, match="has no identity file"):
            make_pair(world.index, world.settings, row.id, row.generation)
        assert os.listdir(archive) == []
        assert world.rows(pair)[0].state == "pending"


def test_files_of_an_archive_that_is_not_there_are_not_called_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "root" / "archive") as disk, a_world(tmp_path / "root") as world:
        world.put({"0": small_instances(tmp_path / "made", 1)[0]})
        world.file()
        (row,) = world.rows(instance)
        scene = Scene(world.settings, world.index, repair=True)
        disk.detach()
        with pytest.raises(StoreUnavailable, match="has no identity file"):
            check(scene)
        with Suspects() as suspects:  # it went behind the look at the stores
            suspects.add_lost(row.id, "gone.dcm")
            with pytest.raises(StoreUnavailable, match="has no identity file"):
                settle_lost(scene, suspects)
        assert not scene.report.counts().get(Code.ROW_WITHOUT_FILE)
        assert os.listdir(disk.place) == []


def a_wanted_pair(world: World) -> Any:
    study = make_study(PhantomSpec(size="tiny"))
    parts = [study.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    judge_studies(world.index, world.settings, world.file().touched_studies)
    return world.rows(pair)[0]


# handles that are stale (NFS) ---------------------------------------------------------------------


def failing_once(real: Any, name: str) -> Any:
    """Let the first call about a name meet a stale handle."""
    left = [STALE]

    def call(path: Any, *given: Any, **named: Any) -> Any:
        if str(path).endswith(name) and left:
            raise left.pop()
        return real(path, *given, **named)

    return call


def test_a_stale_handle_is_tried_again_and_condemns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "root") as world:
        row = a_wanted_pair(world)
        some = world.rows(instance)[0]
        file = f"{some.instance_uid}.dcm"
        # a pair is made at the next try
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", failing_once(Path.read_bytes, file))
            with pytest.raises(OSError, match="Stale"):
                make_pair(world.index, world.settings, row.id, row.generation)
        assert world.rows(pair)[0].state == "pending"
        # a reader waits out what another host exchanges
        assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
        home = world.layout.archive / world.rows(pair)[0].folder
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", failing_once(os.open, "ct.npy"))
            assert load_pair(home).meta.revision == 1
        # an old pair that cannot be read just now may be the only one
        old = world.layout.archive_private / "tmp" / f"pair-{row.id}-1-x.old"
        old.parent.mkdir(exist_ok=True)
        home.rename(old)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", failing_once(Path.read_bytes, "pair.json"))
            assert finish_exchanges(world.index, world.layout) == 0
            assert finish_exchanges(world.index, world.layout) == 1
        assert load_pair(home).meta.revision == 1
        # and nobody is told that an instance is lost
        (filed,) = evidence.filed_rows(world.index, [some.instance_uid]).values()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", failing_once(os.open, file))
            with pytest.raises(OSError, match="Stale"):
                evidence.read_back(world.layout.archive, filed)
            assert evidence.read_back(world.layout.archive, filed) == evidence.FileState.INTACT
