"""Disks that are read-only, not mounted, or another one: nothing is taken, nothing is filed."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import Disk, small_disk
from filing_world import World, a_world, encoded, settings_for, small_instances
from installation import Installation, dcmtk
from running import running, wait_until

from daemon.looking import look
from daemon.room import Room
from workers.completeness.judging import judge_studies
from workers.errors import StoreUnavailable
from workers.identity import PinnedStores
from workers.index.engine import prepare_index
from workers.index.tables import pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

EASY = {"minimum_free_mb": 1, "minimum_free_inodes": 1}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "root" / "archive") as disk:
        yield disk


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "root" / "spool") as disk:
        yield disk


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes]:
    return small_instances(tmp_path / "made", 3)


def put_all(world: World, contents: list[bytes]) -> None:
    world.put({f"{number}.dcm": content for number, content in enumerate(contents)})


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["archive", "spool"])
def test_a_read_only_disk_takes_nothing_files_nothing_and_is_named(
    tmp_path: Path, contents: list[bytes], name: str
) -> None:
    with (
        small_disk(tmp_path / "root" / name) as disk,
        a_world(tmp_path / "root", spool=EASY) as world,
    ):
        put_all(world, contents)
        room = Room(world.layout, world.settings.spool)
        assert room.refusal(1, 0) is None
        before = everything(disk.place)
        disk.protect()
        assert room.refusal(1, 1) == f"the {name} is mounted read-only"
        with pytest.raises(StoreUnavailable, match=f"the {name} at .* is mounted read-only"):
            world.file()
        assert everything(disk.place) == before
        assert world.counts().filed == 0
        troubles = "\n".join(look(world.settings).troubles)
        assert f"the {name} is mounted read-only; mount it writable" in troubles
        assert f"0xA700 to senders): the {name} is mounted read-only" in troubles
        disk.protect(False)
        assert room.refusal(1, 2) is None
        assert world.file_all().filed == 3
        world.check()


def test_no_pair_is_made_into_a_read_only_archive(tmp_path: Path, archive: Disk) -> None:
    study = make_study(PhantomSpec(size="tiny"))
    with a_world(tmp_path / "root") as world:
        parts = [study.named(name) for name in ("CT IMAGES", "PET AC")]
        world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
        judge_studies(world.index, world.settings, world.file().touched_studies)
        (row,) = world.rows(pair)
        archive.protect()
        with pytest.raises(StoreUnavailable, match="read-only"):
            make_pair(world.index, world.settings, row.id, row.generation)
        assert world.rows(pair)[0].state == "pending"
        archive.protect(False)
        assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"


def test_an_archive_that_is_not_mounted_or_another_one_is_left_alone(
    tmp_path: Path, archive: Disk, contents: list[bytes]
) -> None:
    with a_world(tmp_path / "root", spool=EASY) as world:
        put_all(world, contents)
        room = Room(world.layout, world.settings.spool)
        assert room.refusal(1, 0) is None
        identity = everything(archive.place)
        archive.detach()  # the mount point is left: an empty folder of the disk below
        assert "has no identity file" in str(room.refusal(1, 1))
        with pytest.raises(StoreUnavailable, match="has no identity file"):
            world.file()
        assert os.listdir(archive.place) == []
        with small_disk(archive.place) as other:
            (other.place / ".petct").mkdir()
            (other.place / ".petct" / "id").write_text("f" * 32)
            assert "is another one" in str(room.refusal(1, 2))
            with pytest.raises(StoreUnavailable, match="is another one"):
                world.file()
            assert everything(other.place).keys() == {str(other.place / ".petct" / "id")}
        with small_disk(archive.place) as back:
            for path, content in identity.items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(content)
            assert room.refusal(1, 3) is None
            assert world.file_all().filed == 3
            assert back.place == world.layout.archive
            world.close()


def test_a_wrong_disk_that_is_there_at_the_start_is_known_by_what_the_index_knows(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path / "root", spool=EASY)
    prepare_index(settings).close()
    PinnedStores(settings.layout).check()
    mark = settings.layout.archive / ".petct" / "id"
    right = mark.read_text()
    mark.write_text("f" * 32 + "\n")
    with pytest.raises(StoreUnavailable, match=r"archive at .* is another one"):
        PinnedStores(settings.layout).check()
    assert "is another one" in str(Room(settings.layout, settings.spool).refusal(1, 0))
    prepare_index(settings).close()  # a start gives a wrong disk no right
    assert "is another one" in str(Room(settings.layout, settings.spool).refusal(1, 0))
    mark.write_text(right)
    assert Room(settings.layout, settings.spool).refusal(1, 0) is None


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"archive": "1"}', "\0", "[" * 9999])
def test_without_the_word_of_the_index_the_first_store_that_is_seen_is_meant(
    tmp_path: Path, text: str | None
) -> None:
    settings = settings_for(tmp_path / "root", spool=EASY)
    prepare_index(settings).close()
    settings.layout.stores.unlink()
    if text is not None:
        settings.layout.stores.write_text(text)
    pinned = PinnedStores(settings.layout)
    pinned.check()
    (settings.layout.archive / ".petct" / "id").write_text("f" * 32)
    with pytest.raises(StoreUnavailable, match="is another one"):
        pinned.check()


@pytest.mark.parametrize("step", ["link", "fsync"])
def test_a_disk_that_turns_read_only_in_the_middle_leaves_every_entry(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with a_world(tmp_path / "root", spool=EASY) as world:
        put_all(world, contents)

        def read_only(*_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patch:
            patch.setattr(os, step, read_only)
            with pytest.raises(StoreUnavailable, match="Read-only file system"):
                world.file()
        assert len(world.waiting()) == 3
        assert world.file_all().filed == 3
        world.check()


def test_a_run_waits_for_its_archive_and_goes_on_when_it_is_mounted(
    tmp_path: Path, contents: list[bytes]
) -> None:
    one = Installation(tmp_path)
    with small_disk(one.layout.archive) as disk:
        with a_world(one.root):
            pass
        kept = tmp_path / "kept"
        shutil.copytree(disk.place, kept)
        disk.detach()
    file = tmp_path / "one.dcm"
    file.write_bytes(contents[0])
    send = [dcmtk("storescu"), "-v", "-aec", "ANY", "127.0.0.1", str(one.port), str(file)]
    low = {"PETCT_INGEST_SPOOL__MINIMUM_FREE_MB": "1"}
    with one.run("--roles", "valkey,sweep,receive,watch,filing", **low) as process:
        (one.inbox / "two.dcm").write_bytes(contents[1])
        with running(send, tmp_path / "refused", TCP_NODELAY="1") as sender:
            sender.process.wait(30)
        assert "Refused: OutOfResources" in sender.stdout + sender.stderr
        process.await_output("claims-paused")
        assert (one.inbox / "two.dcm").exists()
        assert os.listdir(one.layout.archive) == []
        # the namespace of mounts is shared with what we started
        with small_disk(one.layout.archive) as disk:
            shutil.copytree(kept, disk.place, dirs_exist_ok=True)
            process.await_output("claims-resumed")
            with running(send, tmp_path / "taken", TCP_NODELAY="1") as sender:
                assert sender.process.wait(30) == 0
            wait_until(lambda: one.filed().total() == 2, 60, "both filed")
            assert not (one.inbox / "two.dcm").exists()
            assert process.end() == 0
