"""Filing: several workers at once, a system that fails, and what lies in the tree already."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import missing
from databases import remove_index
from filing_world import (
    FOLDER,
    MEMORY,
    SENDER,
    World,
    a_world,
    changed,
    end_of_child,
    in_child,
    make_world,
    other_pixels,
    recoded,
    small_instances,
    start_child,
    uid_of,
)
from rq.timeouts import JobTimeoutException

from workers import durable
from workers.errors import StoreUnavailable
from workers.filing import committing, examining, meeting, quarantine, taking
from workers.filing.protocol import Filer
from workers.header.facts import InstanceFacts
from workers.index.engine import open_index
from workers.index.tables import arrival, event, folder, instance, series, study
from workers.spool.batches import EntryName

pytestmark = pytest.mark.both_databases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


# several workers ----------------------------------------------------------------------------------


def file_at_once(world: World, shares: list[list[EntryName]], **filing: Any) -> None:
    """Let processes file their shares, all starting at the same moment."""
    world.let_go()
    changed_settings = world.settings.model_copy(
        update={"filing": world.settings.filing.model_copy(update=filing)}
    )
    at = time.monotonic() + 0.4

    def worker(entries: list[EntryName]) -> Callable[[], None]:
        def work() -> None:
            index = open_index(changed_settings)
            filer = Filer(index, changed_settings)
            time.sleep(max(0.0, at - time.monotonic()))
            filer.file_entries(entries)

        return work

    children = [start_child(worker(share)) for share in shares]
    assert [end_of_child(child) for child in children] == [0] * len(shares)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_with_the_same_entries_file_each_once(
    world: World, tmp_path: Path, workers: int
) -> None:
    files = small_instances(tmp_path / "made", 40, folders=4)
    entries = world.put({str(number): content for number, content in enumerate(files)})
    file_at_once(world, [entries] * workers)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 40}
    assert sorted(world.tree().values()) == sorted(files)


def test_workers_with_equal_instances_file_one_and_count_the_others_as_duplicates(
    world: World, tmp_path: Path
) -> None:
    files = small_instances(tmp_path / "made", 30, folders=3)
    shares = [
        world.put({str(number): content for number, content in enumerate(files)}) for _ in range(3)
    ]
    file_at_once(world, shares)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 30, "duplicate": 60}


def test_workers_with_the_same_instances_in_other_encodings_file_one(
    world: World, tmp_path: Path
) -> None:
    files = small_instances(tmp_path / "made", 20, folders=2)
    shares = [
        world.put({str(number): content for number, content in enumerate(files)}),
        world.put({str(number): recoded(content) for number, content in enumerate(files)}),
    ]
    file_at_once(world, shares)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 20, "duplicate": 20}


def test_workers_with_the_same_instances_under_other_accessions_leave_no_stray_file(
    world: World, tmp_path: Path
) -> None:
    files = small_instances(tmp_path / "made", 20, folders=2)
    shares = [
        world.put(
            {
                str(number): changed(content, AccessionNumber=accession)
                for number, content in enumerate(files)
            }
        )
        for accession in ("A1", "A2", "A3")
    ]
    file_at_once(world, shares)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 20, "variant": 40}


def test_workers_on_two_file_systems_leave_no_stray_copy(tmp_path: Path) -> None:
    if not MEMORY.is_dir() or os.stat(MEMORY).st_dev == os.stat(tmp_path).st_dev:
        missing("no second file system")
    archive = MEMORY / f"archive-{os.getpid()}"
    try:
        with a_world(tmp_path / "root", paths={"archive": str(archive)}) as world:
            files = small_instances(tmp_path / "made", 20, folders=2)
            shares = [
                world.put(
                    {
                        str(number): changed(content, AccessionNumber=accession)
                        for number, content in enumerate(files)
                    }
                )
                for accession in ("A1", "A2")
            ]
            file_at_once(world, shares)
            world.file_all()
            world.check()
            assert world.outcomes() == {"filed": 20, "variant": 20}
    finally:
        shutil.rmtree(archive, ignore_errors=True)


def test_workers_that_replace_the_same_instance_lose_no_version(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = quarantine.set_aside

    def slow(*arguments: Any) -> Path:  # so that the workers really meet
        target = original(*arguments)
        time.sleep(0.02)
        return target

    monkeypatch.setattr(quarantine, "set_aside", slow)
    first = small_instances(tmp_path / "made", 10)
    world.put({str(number): content for number, content in enumerate(first)})
    world.file_all()
    versions = {
        name: [changed(content, PatientName=name) for content in first] for name in ("B", "C", "D")
    }
    shares = [
        world.put({str(number): content for number, content in enumerate(files)})
        for files in versions.values()
    ]
    file_at_once(world, shares, duplicates="replace")
    world.file_all(duplicates="replace")
    world.check()
    assert world.outcomes() == {"filed": 10, "replaced": 30}
    kept = [*world.tree().values()]
    kept += [path.read_bytes() for path in world.layout.quarantine.glob("*.dcm")]
    assert Counter(kept) == Counter([*first, *versions["B"], *versions["C"], *versions["D"]])


def test_a_copy_left_by_a_run_that_lost_the_race_is_removed(world: World, tmp_path: Path) -> None:
    """On two file systems a copy shares no inode with its entry."""
    (content,) = small_instances(tmp_path / "made", 1)
    mine = changed(content, AccessionNumber="MINE")
    world.put({"mine": changed(mine, SOPInstanceUID="2.25.1")})
    world.put({"other": content})
    world.file_all()  # gives the series both folders
    stray = world.path_of("2.25.1").with_name(f"{uid_of(content)}.dcm")
    stray.write_bytes(mine)
    world.put({"mine": mine})
    world.file_all()
    assert not stray.exists()
    world.check()


# a system that fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["link", "fsync", "mkdir", "replace"])
def test_an_error_of_the_disk_leaves_the_entry_for_the_next_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    files = small_instances(tmp_path / "made", 2)
    world.put({"new": files[0], "bad": b"no DICOM"})
    original = getattr(os, call)

    def failing(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)
    with contextlib.suppress(OSError, StoreUnavailable):  # where nothing at all could be filed
        world.file()
    left = {name.path for name in world.waiting()}
    assert left == {"new", "bad"} if call == "fsync" else left
    monkeypatch.setattr(os, call, original)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1, "quarantined": 1}


def test_one_entry_that_fails_does_not_hold_up_the_others(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_instances(tmp_path / "made", 5)
    entries = world.put({str(number): content for number, content in enumerate(files)})
    original = examining.read_open_header

    def failing(file: Any) -> Any:
        if file.name and os.fstat(file.fileno()).st_ino == inode:
            raise KeyError("a mistake of ours")
        return original(file)

    inode = os.stat(entries[2].where(world.layout)).st_ino
    monkeypatch.setattr(examining, "read_open_header", failing)
    report = world.file()
    assert (report.outcomes, report.left) == ({"filed": 4}, 1)
    assert world.waiting() == [entries[2]]
    monkeypatch.setattr(examining, "read_open_header", original)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 5}


def test_what_was_rolled_back_is_not_reported(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_instances(tmp_path / "made", 3)
    world.put({str(number): content for number, content in enumerate(files)})
    original = committing.insert_event
    calls = []

    def failing(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise sa.exc.OperationalError("INSERT", {}, OSError("disk I/O error"))
        original(*arguments, **options)

    monkeypatch.setattr(committing, "insert_event", failing)
    report = world.file()
    assert report.outcomes == {"filed": 3}
    world.check()
    assert world.outcomes() == {"filed": 3}


@pytest.mark.parametrize(
    ("module", "function"),
    [(taking, "examine"), (meeting, "compare_files"), (committing, "insert_arrivals")],
    ids=["examine", "compare", "insert"],
)
def test_a_job_that_runs_out_of_time_leaves_its_entries(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
) -> None:
    files = small_instances(tmp_path / "made", 3)
    world.put({"first": files[0]})
    world.file_all()
    world.put({"1": files[1], "2": files[2], "again": recoded(files[0])})
    original = getattr(module, function)

    def late(*_: Any, **__: Any) -> Any:
        raise JobTimeoutException

    monkeypatch.setattr(module, function, late)
    with pytest.raises(JobTimeoutException):
        world.file()
    assert len(world.waiting()) == 3
    assert world.outcomes() == {"filed": 1}
    monkeypatch.setattr(module, function, original)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 3, "duplicate": 1}


def test_a_disk_that_fills_while_a_copy_is_made_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """write(2) takes a part without an error, as a filling disk does; here a size limit does it."""
    with a_world(tmp_path / "root") as world:
        (content,) = small_instances(tmp_path / "made", 1)
        world.put({"new": content})
        world.let_go()

        def no_links(*_: Any, **__: Any) -> None:
            raise OSError(errno.EXDEV, "two file systems")

        original = durable.copy_new

        def limited(*arguments: Any) -> None:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            try:
                original(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        def work() -> None:
            real_link = os.link
            os.link = lambda a, b, **kw: (  # type: ignore[assignment]
                no_links() if "spool" in str(a) else real_link(a, b, **kw)
            )
            durable.copy_new = limited
            with pytest.raises(OSError) as caught:
                world.file()
            assert caught.value.errno == errno.EFBIG

        assert in_child(work) == 0
        assert world.tree() == {}
        world.file_all()
        world.check()
        assert list(world.tree().values()) == [content]


# stores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["archive", "spool"])
@pytest.mark.parametrize("found", ["gone", "another"])
def test_a_store_that_is_not_ours_is_not_touched(
    world: World, tmp_path: Path, store: str, found: str
) -> None:
    world.put({"new": small_instances(tmp_path / "made", 1)[0]})
    identity = getattr(world.layout, store) / ".petct" / "id"
    before = identity.read_bytes()
    if found == "gone":
        identity.unlink()
    else:
        identity.write_text("0" * 32)
    with pytest.raises(StoreUnavailable, match=store):
        world.file()
    assert world.tree() == {}
    assert len(world.waiting()) == 1
    assert world.outcomes() == {}
    identity.write_bytes(before)
    world.file_all()
    assert world.outcomes() == {"filed": 1}


def test_an_archive_whose_path_has_dots_in_it_is_filed_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "elsewhere" / ".." / "root"
    with a_world(root) as world:
        world.put({"new": small_instances(tmp_path / "made", 1)[0]})
        world.file_all()
        assert world.outcomes() == {"filed": 1}


# what lies in the tree already --------------------------------------------------------------------


def lose_index(world: World) -> World:
    """Delete the index; the archive keeps its identity."""
    world.close()
    remove_index(world.settings)
    return make_world(world.settings.root)


def test_equal_bytes_that_no_row_knows_are_adopted(world: World, tmp_path: Path) -> None:
    files = small_instances(tmp_path / "made", 3)
    world.put({str(number): content for number, content in enumerate(files)})
    world.file_all()
    again = lose_index(world)
    again.put({"same": files[0], "recoded": recoded(files[1]), "other": other_pixels(files[2])})
    again.file_all()
    assert again.outcomes() == {"filed": 2, "conflict": 1}
    assert sorted(again.tree().values()) == sorted(files)
    rows = again.rows(instance)
    assert {row.instance_uid for row in rows} == {uid_of(content) for content in files[:2]}
    for row in rows:  # the row describes the file that is there, not the one that came
        path = again.path_of(row.instance_uid)
        assert durable.sha256_of(path) == row.sha256
    again.close()


def test_a_file_that_vanished_from_the_tree_is_restored_by_its_duplicate(
    world: World, tmp_path: Path
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    world.put({"first": content})
    world.file_all()
    world.path_of(uid_of(content)).unlink()
    other_meta = content.replace(b"PETCT_PHANTOM", b"ANOTHER_MAKER")
    assert other_meta != content
    world.put({"again": other_meta})
    world.file_all()
    world.check()  # the row has the digest of the file that is there now
    assert world.outcomes() == {"filed": 1, "duplicate": 1}


@pytest.mark.parametrize("damage", [b"", b"\0" * 700, None])
def test_a_damaged_file_in_the_tree_stops_nobody(
    world: World, tmp_path: Path, damage: bytes | None
) -> None:
    files = small_instances(tmp_path / "made", 2)
    world.put({"first": files[0]})
    world.file_all()
    kept = world.path_of(uid_of(files[0]))
    damaged = kept.read_bytes()[:600] if damage is None else damage
    kept.unlink()
    kept.write_bytes(damaged)
    world.put({"again": recoded(files[0]), "new": files[1]})
    world.file_all()
    assert world.outcomes() == {"filed": 2, "conflict": 1}
    assert kept.read_bytes() == damaged


def test_a_batch_without_its_description_is_filed_all_the_same(
    world: World, tmp_path: Path
) -> None:
    files = small_instances(tmp_path / "made", 2)
    for number, words in enumerate((None, "{")):
        (entry,) = world.put({"new": files[number]})
        description = world.layout.ready / entry.batch / "batch.json"
        if words is None:
            description.unlink()
        else:
            description.write_text(words)
    world.file_all()
    assert world.outcomes() == {"filed": 2}
    assert world.waiting() == []


# rows ---------------------------------------------------------------------------------------------


def test_every_instance_has_its_facts_arrival_and_event(world: World, tmp_path: Path) -> None:
    files = small_instances(tmp_path / "made", 4, folders=2)
    world.put({str(i): content for i, content in enumerate(files)}, SENDER)
    report = world.file()
    world.check()
    assert report.touched_series == {row.id for row in world.rows(series)}
    assert report.touched_studies == {row.id for row in world.rows(study)}
    for row in world.rows(instance):
        facts = InstanceFacts.from_json(row.facts)
        assert facts.sop_instance_uid == row.instance_uid
        assert facts.modality == "CT"
    assert {row.source for row in world.rows(arrival)} == {SENDER.key}
    events = [row for row in world.rows(event) if row.kind == "filed"]
    assert sum(int(row.details.partition(":")[2].rstrip("}")) for row in events) == 4
    assert len(world.rows(folder)) == 2


def test_a_source_may_set_a_prefix_for_its_patients(tmp_path: Path) -> None:
    sources = [{"folder": FOLDER.folder, "patient_id_prefix": "north-"}]
    with a_world(tmp_path / "root", sources=sources) as world:
        (content,) = small_instances(tmp_path / "made", 1)
        world.put({"one": content})
        other = changed(content, SOPInstanceUID="2.25.7", StudyInstanceUID="2.25.8")
        world.put({"two": other}, SENDER)
        world.file_all()
        world.check()
        tops = {path.split("/")[0] for path in world.tree()}
        assert len(tops) == 2
        assert {top.removeprefix("north-") for top in tops} == {
            top for top in tops if not top.startswith("north-")
        }


def test_a_reason_in_quarantine_is_withdrawn_where_the_next_run_judges_otherwise(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    (entry,) = world.put({"one": content})
    reason = quarantine.Reason(
        entry.identifier, "quarantined", "x", "of a run that was killed", "", {}, "one", 1
    )
    quarantine.set_aside(world.layout.quarantine, entry.where(world.layout), reason)
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 1}


# order --------------------------------------------------------------------------------------------


def test_names_are_durable_before_the_commit_and_the_commit_comes_before_the_unlink(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the names of folders that a run made which was killed before it made them durable."""
    files = small_instances(tmp_path / "made", 2)
    world.put({"first": changed(files[0], SOPInstanceUID="2.25.1")})
    world.file_all()
    (row,) = world.rows(folder)
    made = world.layout.archive / row.home / "studies" / row.digits
    shutil.rmtree(world.layout.archive / row.home)
    made.mkdir(parents=True)
    with world.index.write() as connection:
        connection.execute(instance.delete())
        connection.execute(series.update().values(instances=0))
    (entry,) = world.put({"second": files[1]})
    calls: list[str] = []
    fsync, link, unlink = os.fsync, os.link, os.unlink

    def record(kind: str, path: Any) -> None:
        calls.append(f"{kind} {os.path.relpath(path, world.layout.root)}")

    monkeypatch.setattr(
        os, "fsync", lambda fd: (record("fsync", os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1]
    )

    def link_and_tell(a: Any, b: str, *, dst_dir_fd: int, **how: Any) -> None:
        record("link", f"{os.readlink(f'/proc/self/fd/{dst_dir_fd}')}/{b}")
        link(a, b, dst_dir_fd=dst_dir_fd, **how)

    monkeypatch.setattr(os, "link", link_and_tell)
    monkeypatch.setattr(os, "unlink", lambda a, **kw: (record("unlink", a), unlink(a, **kw))[1])
    sa.event.listen(world.index.engine, "commit", lambda _: calls.append("commit"))
    world.file()
    monkeypatch.undo()
    target = os.path.relpath(made, world.layout.root)
    linked = calls.index(f"link {target}/{uid_of(files[1])}.dcm")
    spool = os.path.relpath(entry.where(world.layout), world.layout.root)
    unlinked = calls.index(f"unlink {spool}")
    durable_from = calls.index(f"fsync {target}", linked)
    last_commit = max(n for n, call in enumerate(calls[:unlinked]) if call == "commit")
    assert linked < durable_from < last_commit < unlinked
    between = calls[linked:last_commit]
    parents = [target.rsplit("/", depth)[0] for depth in range(1, target.count("/") + 1)]
    assert "archive" in parents
    for parent in parents:
        assert f"fsync {parent}" in between, f"the names in {parent} are not durable"
