"""Disks that really fill: senders see 0xA700, nothing is lost, and everything goes on by itself."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from conftest import missing
from databases import server_programs, serving
from disks import Disk, small_disk
from filing_world import MEMORY, World, a_world, encoded, small_instances, tiny
from installation import AE_TITLE, Installation, dcmtk
from pydicom.uid import UID
from running import Running, petct, running, wait_until

from daemon import sweeper
from daemon.looking import look
from daemon.room import Room
from workers import queues
from workers.errors import IndexUnusable, StoreUnavailable
from workers.index.engine import open_index

MIB = 1 << 20
LONG = pytest.mark.timeout(180)
WHO = ("receiver", "watcher")
ROLES = "valkey,sweep,receive,watch,filing"


def large_instances(folder: Path, count: int) -> dict[str, Path]:
    """CT instances of half a megabyte, by SOPInstanceUID."""
    folder.mkdir()
    dataset = tiny("CT IMAGES", 0)
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = bytes(512 * 512 * 2)
    stem = str(dataset.SOPInstanceUID)[:50]
    found = {}
    for number in range(count):
        uid = UID(f"{stem}.{number + 1}")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.InstanceNumber = number + 1
        found[str(uid)] = folder / f"{number:03d}.dcm"
        found[str(uid)].write_bytes(encoded(dataset))
    return found


@pytest.fixture
def one(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def reserve(megabytes: int) -> dict[str, str]:
    return {
        "PETCT_INGEST_SPOOL__MINIMUM_FREE_MB": str(megabytes),
        "PETCT_INGEST_SPOOL__MINIMUM_FREE_INODES": "10",
    }


def send(one: Installation, files: list[Path], *options: str) -> Running:
    """Send with storescu to the end; what it said is in the result."""
    command = [dcmtk("storescu"), "-v", *options, "-aec", AE_TITLE, "127.0.0.1", str(one.port)]
    one.sent += 1
    place = one.folder / f"send-{one.sent}"
    with running([*command, *map(str, files)], place, TCP_NODELAY="1") as sender:
        sender.process.wait(60)
    return sender


def answers(sender: Running) -> list[str]:
    return re.findall(r"Received Store Response \((.*)\)", sender.stdout + sender.stderr)


def status_text(one: Installation, **environment: str) -> str:
    with running(petct("status", "--root", one.root), one.folder / "status", **environment) as done:
        assert done.process.wait(60) == 0
    return " ".join(done.stdout.split())


@LONG
def test_a_disk_that_fills_while_others_send_and_drop_costs_nothing(
    one: Installation, tmp_path: Path
) -> None:
    files = large_instances(tmp_path / "made", 40)
    uids, paths = list(files), list(files.values())
    low = reserve(5)
    # everything on one small disk, as most installations are
    with small_disk(one.root, 18) as disk, one.run("--roles", ROLES, **low) as process:
        sender = send(one, paths[:32], "--no-halt")
        said = answers(sender)
        assert len(said) == 32
        assert set(said) == {"Success", "Refused: OutOfResources"}
        taken = said.count("Success")
        assert said == ["Success"] * taken + ["Refused: OutOfResources"] * (32 - taken)
        facts = os.statvfs(disk.place)
        assert facts.f_bavail * facts.f_frsize > 3 * MIB, "the reserve is left"
        wait_until(lambda: one.filed().total() == taken, 60, "what was acknowledged is filed")

        for path in paths[32:34]:
            (one.inbox / path.name).write_bytes(path.read_bytes())
        process.await_output("claims-paused")
        text = status_text(one, **low)
        assert "the archive has" in text
        assert "free space there or lower spool.minimum_free_mb" in text
        assert "the receiver takes nothing (0xA700 to senders): the spool has" in text
        assert "the watched folders are left alone" in text
        assert len(list(one.inbox.iterdir())) == 2

        disk.resize(64)
        wait_until(lambda: one.filed().total() == taken + 2, 60, "the drop goes on by itself")
        again = send(one, paths[taken:])
        assert set(answers(again)) == {"Success"}
        wait_until(lambda: one.filed().total() == len(uids), 60, "all")
        wait_until(lambda: one.ask("select count(*) from instance") == [(len(uids),)], 30)
        one.assert_filed_once(uids)
        kinds = ("intake-refused", "intake-resumes")
        wait_until(lambda: told(one, *kinds) == {(k, w) for k in kinds for w in WHO}, 90)
        assert process.end() == 0
    assert "role-ended" not in process.stderr


def told(one: Installation, *kinds: str) -> set[tuple[str, str]]:
    rows = one.ask("select kind, details from event where kind in (?, ?)", *kinds)
    return {(kind, json.loads(details)["by"]) for kind, details in rows}


@LONG
def test_what_waits_in_a_spool_of_its_own_never_overfills_the_archive(
    one: Installation, tmp_path: Path
) -> None:
    files = large_instances(tmp_path / "made", 24)
    low = reserve(3)
    with small_disk(one.layout.archive, 10) as disk:
        with one.run("--roles", "valkey,sweep,receive", **low) as process:  # and nobody files
            taken = answers(send(one, list(files.values()), "--no-halt")).count("Success")
            assert 8 <= taken <= 16, "7 MiB are free beside the reserve"
            assert process.end() == 0
        with one.run("--roles", "valkey,sweep,filing", **low) as process:
            wait_until(lambda: one.filed().total() == taken, 60, "all that was taken fits")
            facts = os.statvfs(disk.place)
            assert facts.f_bavail * facts.f_frsize > 1 * MIB
            assert "cannot be written" not in process.stderr
            assert process.end() == 0


# a reserve that others have used up ---------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "root" / "archive", 4) as disk:
        yield disk


def put_all(world: World, contents: list[bytes]) -> None:
    world.put({f"{number}.dcm": content for number, content in enumerate(contents)})


def test_an_archive_without_a_byte_leaves_every_entry_in_the_spool(
    tmp_path: Path, archive: Disk
) -> None:
    with a_world(tmp_path / "root", spool={"minimum_free_mb": 0}) as world:
        put_all(world, small_instances(tmp_path / "made", 5))
        archive.fill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="No space left on device"):
                world.file()
        assert len(world.waiting()) == 5
        assert world.counts().filed == 0
        archive.free()
        assert world.file_all().filed == 5
        world.check()


@LONG
def test_a_run_with_a_full_archive_keeps_its_worker_and_goes_on_by_itself(
    one: Installation, tmp_path: Path
) -> None:
    contents = small_instances(tmp_path / "made", 5)
    nothing = reserve(0)
    with (
        small_disk(one.layout.archive, 4) as disk,
        one.run("--roles", ROLES, **nothing) as process,
    ):
        disk.fill()
        for number, content in enumerate(contents):
            (one.inbox / f"{number}.dcm").write_bytes(content)
        process.await_output("store-unavailable")
        wait_until(lambda: one.status()["instances"]["waiting"] == 5, 30)
        disk.free()
        wait_until(lambda: one.filed().total() == 5, 60, "filed by itself")
        assert process.end() == 0
    assert "role-ended" not in process.stderr
    assert "No space left on device" in process.stderr


def test_an_index_whose_disk_is_full_stops_filing_cleanly_and_goes_on(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "index", 4) as disk:
        url = f"sqlite:///{disk.place}/index.sqlite"
        with a_world(tmp_path / "root", index={"url": url}) as world:
            contents = small_instances(tmp_path / "made", 400)
            put_all(world, contents[:1])
            assert world.file_all().filed == 1
            put_all(world, contents[1:])
            disk.fill()
            with pytest.raises(StoreUnavailable, match="database or disk is full"):
                world.file()
            assert len(world.waiting()) == 399
            look(world.settings)  # and nobody fails who only looks
            world.close()
            disk.free()
            disk.resize(64)
            assert world.file_all().filed == 400
            world.check()


def test_a_postgresql_whose_disk_is_full_stops_filing_cleanly_and_goes_on(tmp_path: Path) -> None:
    programs = server_programs()
    if programs is None or not MEMORY.exists():
        missing("a PostgreSQL server")
    with TemporaryDirectory(dir=MEMORY) as folder, small_disk(Path(folder, "disk"), 24) as disk:
        Path(folder).chmod(0o755)
        with serving(programs) as server:  # behind the disk: it sees the mounts of its parent
            if os.getuid() == 0:
                shutil.chown(disk.place, "postgres", "postgres")
            server.make_template()
            server.tell(f"CREATE TABLESPACE small LOCATION '{disk.place}'")
            url = server.create("small")
            server.tell("ALTER DATABASE small SET TABLESPACE small")
            with a_world(tmp_path / "root", index={"url": url}) as world:
                put_all(world, small_instances(tmp_path / "made", 400))
                disk.fill()
                with pytest.raises(StoreUnavailable, match="the database's disk is full"):
                    world.file()
                assert world.waiting()
                disk.free()
                assert world.file_all().filed == 400
                world.check()


def test_the_sweeper_outlives_a_full_index_disk_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_TICK_SECONDS", 0.01)
    with a_world(tmp_path / "root", redis={"url": "unix:///nonexistent.sock"}) as world:
        failures = iter(range(50))
        stop = threading.Event()

        def tick(*_: Any) -> None:
            if next(failures, None) is None:
                stop.set()
                return
            raise sa.exc.OperationalError("…", {}, Exception("database or disk is full"))

        monkeypatch.setattr(sweeper.Sweeper, "tick", tick)
        caplog.set_level("INFO")
        sweeper.run_sweeper(world.settings, stop)
    said = [record.message for record in caplog.records if record.message.startswith("sweep-")]
    assert said == ["sweep-failed", "sweep-goes-on"]


# the queue server's memory ------------------------------------------------------------------------


def flood(connection: redis.Redis) -> None:
    for number in range(1000):
        connection.set(f"flood-{number}", os.urandom(64 << 10))


@LONG
def test_a_flooded_queue_server_is_emptied_and_everything_is_filed(
    one: Installation, tmp_path: Path
) -> None:
    contents = small_instances(tmp_path / "made", 30)
    low = {**reserve(1), "PETCT_INGEST_REDIS__MEMORY_MB": "16"}
    with one.run("--roles", ROLES, **low) as process:
        with queues.connect(one.settings) as connection:
            with pytest.raises(redis.OutOfMemoryError):
                flood(connection)
            assert connection.exists(first := "flood-0"), "nothing is thrown away for more"
            for number, content in enumerate(contents):
                (one.inbox / f"{number}.dcm").write_bytes(content)
            wait_until(lambda: one.filed().total() == 30, 90, "filed in spite of it")
            process.await_output("queue-server-emptied")
            assert not connection.exists(first)
        assert process.end() == 0


def test_status_says_what_it_can_where_the_index_cannot_even_be_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "root", 8) as disk, a_world(tmp_path / "root") as world:
        put_all(world, small_instances(tmp_path / "made", 3))
        world.file_all()
        world.close()  # its last connection takes the files beside the index away
        disk.fill()
        with pytest.raises(IndexUnusable, match="is its disk full"):
            open_index(world.settings)
        troubles = "\n".join(look(world.settings).troubles)
        assert "the index cannot be opened: disk I/O error" in troubles
        assert "the archive has 0 MiB free" in troubles
        assert Room(world.layout, world.settings.spool).refusal(1, 0)
        disk.free()
        assert look(world.settings).counts.filed == 3
