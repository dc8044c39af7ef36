"""`check --repair` mends what can be mended, loses no byte, and ends the same after any kill."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from checked_world import (
    a_filed_file,
    checked,
    codes,
    copy_of,
    examples,
    make_template,
    sql,
    stores,
)
from conftest import QueueServer
from filing_world import (
    SENDER,
    World,
    changed,
    die,
    in_child,
    other_pixels,
    settings_for,
    small_instances,
)
from rq import Queue
from rq.serializers import JSONSerializer
from test_check import (
    AGED,
    ALONE,
    WITH_CHECKSUMS,
    bytes_differ,
    columns_differ,
    count_differs,
    entry_known,
    exchange_unfinished,
    file_without_row,
    journal_line_missing,
    misplaced,
    override_not_in_the_journal,
    pair_cut,
    pair_folder,
    pair_missing,
    pair_of_another_revision,
    pair_with_other_bytes,
    pair_without_picture,
    quarantine_without_arrival,
    quarantine_without_reason,
    size_differs,
    spool_for_all,
    tree_for_all,
)

from workers import queues
from workers.checking.checker import check
from workers.checking.codes import Code
from workers.checking.findings import Report
from workers.checking.scene import Scene
from workers.errors import StoreUnavailable
from workers.filing.releasing import retry_entry
from workers.filing.work import lock_entry
from workers.index.tables import event, pair
from workers.pairing import build
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.spool.batches import EntryName

Plant = Callable[[World], str]

MENDED: tuple[Plant, ...] = (
    file_without_row,
    misplaced,
    count_differs,
    columns_differ,
    quarantine_without_arrival,
    quarantine_without_reason,
    entry_known,
    pair_missing,
    pair_of_another_revision,
    pair_cut,
    pair_without_picture,
    pair_with_other_bytes,
    exchange_unfinished,
    journal_line_missing,
    override_not_in_the_journal,
    tree_for_all,
    spool_for_all,
)
LEFT = tuple(plant for plant in (*ALONE, *WITH_CHECKSUMS, *AGED) if plant not in MENDED)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, module_database: str) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    with copy_of(template, tmp_path) as one:
        yield one


def kept(world: World) -> set[str]:
    """The digest of every file that holds somebody's data: of tree, quarantine and spool."""
    layout = world.layout
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for top in (layout.archive, layout.quarantine, layout.ready)
        for path in top.rglob("*")
        if path.is_file() and path.name not in ("batch.json", "facts.jsonl")
        and path.suffix != ".json"
    }  # fmt: skip


def repaired(world: World) -> Report:
    return checked(world, repair=True, checksums=True)


def make_pairs(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")
    return [
        make_pair(world.index, world.settings, row.id, row.generation)
        for row in world.rows(pair)
        if row.state == "pending"
    ]


@pytest.mark.parametrize("plant", MENDED, ids=lambda plant: plant.__name__)
@pytest.mark.both_databases
def test_what_can_be_mended_is_and_a_second_check_is_clean(world: World, plant: Plant) -> None:
    where = plant(world)
    world.let_go()
    before = kept(world)
    report = repaired(world)
    found = report.to_json_object()["findings"]
    assert report.is_clean, found
    assert sum(one["mended"] for one in found) == sum(codes(report).values()) > 0
    assert any(where in example["where"] for one in found for example in one["examples"])
    assert kept(world) >= before, "data was deleted or changed"
    again = stores(world)
    report = repaired(world)
    assert codes(report) == {}
    assert stores(world) == again
    assert not world.waiting()


@pytest.mark.parametrize("plant", LEFT, ids=lambda plant: plant.__name__)
def test_what_cannot_be_mended_is_named_and_not_touched(
    world: World, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(world)
    world.let_go()
    if plant in AGED:
        later = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: later)
    named = codes(checked(world, checksums=True))
    before = stores(world)
    report = repaired(world)
    assert stores(world) == before
    assert codes(report) == named != {}
    assert all(one["mended"] == 0 for one in report.to_json_object()["findings"])


@pytest.mark.parametrize(
    "plant",
    [pair_missing, pair_of_another_revision, pair_cut, pair_with_other_bytes],
    ids=lambda plant: plant.__name__,
)
def test_a_pair_that_was_asked_for_again_is_made(
    world: World, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_pair(pair_folder(world))
    plant(world)
    assert repaired(world).is_clean
    assert make_pairs(world, monkeypatch) == ["ready"]
    after = load_pair(pair_folder(world))
    assert after.meta.ct.sha256 == before.meta.ct.sha256
    assert after.meta.revision == world.rows(pair)[0].revision > before.meta.revision
    assert codes(checked(world, checksums=True)) == {}


def test_an_interrupted_exchange_without_a_folder_is_put_back(world: World) -> None:
    folder = pair_folder(world)
    place = world.layout.archive_private / "tmp" / "pair-1-2-abcdef01.old"
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)
    digest = hashlib.sha256((place / "ct.npy").read_bytes()).hexdigest()
    report = repaired(world)
    assert codes(report) == {Code.EXCHANGE_UNFINISHED: 1}
    assert report.is_clean
    assert hashlib.sha256((folder / "ct.npy").read_bytes()).hexdigest() == digest


def forget(world: World, uid: str) -> None:
    """Let the index forget that it filed this instance."""
    sql(world, "delete from instance where instance_uid = ?", uid)
    sql(world, "delete from arrival where instance_uid = ?", uid)
    sql(world, "update series set instances = (select count(*) from instance "
               "where series_id = series.id)")  # fmt: skip


# files ------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_same_bytes_in_quarantine_give_a_row_its_file_back(world: World) -> None:
    path = a_filed_file(world)
    entry = "0123456789abcdef" * 2
    copy = world.layout.quarantine / f"{entry}.dcm"
    shutil.copy(path, copy)
    (world.layout.quarantine / f"{entry}.json").write_text("{}")
    sql(world, "insert into arrival (entry, instance_uid, source, outcome, size, at) "
               "values (?, ?, 'PACS', 'variant', 1, '')", entry, path.stem)  # fmt: skip
    content = path.read_bytes()
    path.unlink()
    assert examples(checked(world), Code.ROW_WITHOUT_FILE)[0]["detail"].endswith(str(copy))
    report = repaired(world)
    assert codes(report) == {Code.ROW_WITHOUT_FILE: 1}
    assert report.is_clean
    assert path.read_bytes() == copy.read_bytes() == content
    assert codes(checked(world, checksums=True)) == {}


def test_the_same_bytes_in_the_spool_give_a_row_its_file_back(world: World) -> None:
    path = a_filed_file(world)
    content = path.read_bytes()
    path.unlink()
    (entry,) = world.put({"again": content})
    assert repaired(world).is_clean
    assert path.read_bytes() == content
    world.file_all()
    assert world.outcome_of(entry).outcome == "duplicate"
    assert codes(checked(world, checksums=True)) == {}


def test_other_bytes_of_the_same_uid_are_never_linked_back(world: World) -> None:
    path = a_filed_file(world)
    world.put({"again": other_pixels(path.read_bytes())})
    elsewhere = path.with_name("elsewhere.dcm")
    elsewhere.write_bytes(other_pixels(path.read_bytes()))
    path.unlink()
    report = repaired(world)
    assert codes(report) == {Code.ROW_WITHOUT_FILE: 1, Code.STRAY_COPY: 1}
    assert not report.is_clean
    assert not path.exists()


@pytest.mark.both_databases
def test_a_moved_patient_is_moved_back_file_by_file(world: World) -> None:
    path = a_filed_file(world)
    patient = path.parents[6]
    assert patient.parent == world.layout.archive
    files = sorted(world.tree())
    patient.rename(patient.with_name("moved by hand"))
    report = repaired(world)
    assert set(codes(report)) >= {Code.MISPLACED}
    assert report.is_clean or set(codes(report)) & {Code.PAIR_MISSING, Code.PAIR_WITHOUT_ROW}
    assert sorted(world.tree()) == files
    assert Code.MISPLACED not in codes(checked(world, checksums=True))


def test_a_name_that_somebody_linked_elsewhere_too_stays_there(world: World) -> None:
    path = a_filed_file(world)
    elsewhere = path.with_name("elsewhere.dcm")
    outside = world.settings.root / "mine.dcm"
    path.rename(elsewhere)
    os.link(elsewhere, outside)
    assert repaired(world).is_clean
    assert path.exists()
    assert elsewhere.exists()
    assert codes(repaired(world)) == {Code.STRAY_COPY: 1}


@pytest.mark.both_databases
def test_a_file_is_filed_again_under_the_prefix_of_its_source(
    template: Path, tmp_path: Path
) -> None:
    source = {"calling_ae": "PACS", "patient_id_prefix": "site-"}
    with copy_of(template, tmp_path, sources=[source]) as world:
        content = changed(
            small_instances(tmp_path / "small", 1, patient=9)[0], PatientID="P9", StudyID="9"
        )
        world.put({"one": content}, SENDER)
        world.file_all()
        (path,) = [one for one in world.tree() if one.startswith("site-P9/")]
        stem = Path(path).stem
        forget(world, stem)
        before = stores(world)
        report = repaired(world)
        assert codes(report) == {Code.FILE_WITHOUT_ROW: 1, Code.EMPTY_ROWS: 1} or codes(report) == {
            Code.FILE_WITHOUT_ROW: 1
        }
        assert report.is_clean
        assert str(world.path_of(stem).relative_to(world.layout.archive)) == path
        assert {key: before[key] for key in before if key.endswith(".dcm")} == {
            key: value for key, value in stores(world).items() if key.endswith(".dcm")
        }


def test_a_file_that_filing_would_put_elsewhere_is_left(template: Path, tmp_path: Path) -> None:
    """The prefix under which it was filed stands in no setting any more."""
    source = {"calling_ae": "PACS", "patient_id_prefix": "site-"}
    with copy_of(template, tmp_path, sources=[source]) as world:
        content = small_instances(tmp_path / "small", 1, patient=9)[0]
        world.put({"one": content}, SENDER)
        world.file_all()
        (path,) = [one for one in world.tree() if one.startswith("site-")]
        forget(world, Path(path).stem)
        world.settings = settings_for(world.settings.root, redis={"url": "unix:///none.sock"})
        before = stores(world)
        report = repaired(world)
        assert not report.is_clean
        assert "elsewhere" in examples(report, Code.FILE_WITHOUT_ROW)[0]["detail"]
        assert stores(world) == before


@pytest.mark.parametrize("plant", [size_differs, bytes_differ], ids=lambda plant: plant.__name__)
def test_the_good_version_of_a_damaged_file_is_kept_and_can_take_its_place(
    world: World, plant: Plant
) -> None:
    path = a_filed_file(world)
    good = path.read_bytes()
    plant(world)
    damaged = path.read_bytes()
    (entry,) = world.put({"sent again": good})
    world.file_all()
    assert world.outcome_of(entry).outcome == "conflict"
    assert "damaged" in world.outcome_of(entry).reason
    assert world.kept_bytes(entry) == good
    assert path.read_bytes() == damaged
    path.rename(world.settings.root / "damaged.dcm")
    retry_entry(world.index, world.layout, entry.identifier)
    world.file_all()
    assert path.read_bytes() == good
    assert codes(checked(world, checksums=True)) == {}


def test_a_reason_is_not_made_up_where_the_source_is_not_known(
    template: Path, tmp_path: Path
) -> None:
    with copy_of(template, tmp_path, watch=[]) as world:
        quarantine_without_reason(world)
        before = stores(world)
        report = repaired(world)
        assert not report.is_clean
        assert "not known" in examples(report, Code.QUARANTINE_WITHOUT_REASON)[0]["detail"]
        assert stores(world) == before


# what is on its way -----------------------------------------------------------------------------


def linked_and_not_committed(world: World, *, copy: bool) -> tuple[Path, EntryName]:
    """What a worker leaves that was killed between link and commit."""
    path = a_filed_file(world)
    content = path.read_bytes()
    file_without_row(world)
    (entry,) = world.put({"slice": content})
    if not copy:
        path.unlink()
        os.link(entry.where(world.layout), path)
        path.chmod(0o640)
    return path, entry


@pytest.mark.parametrize("copy", [False, True], ids=["linked", "copied"])
def test_what_waits_in_the_spool_is_no_drift_and_a_repair_files_it(
    world: World, copy: bool
) -> None:
    path, entry = linked_and_not_committed(world, copy=copy)
    before = stores(world)
    assert codes(checked(world)) == {}
    assert stores(world) == before
    assert codes(repaired(world)) == {}
    assert world.outcome_of(entry).outcome == "filed"
    assert world.path_of(path.stem) == path
    assert not world.waiting()
    world.check()


def test_an_entry_in_a_workers_hands_is_left_to_it(world: World) -> None:
    path, entry = linked_and_not_committed(world, copy=False)
    held = lock_entry(entry.where(world.layout))
    assert held is not None
    with held:
        assert codes(repaired(world)) == {}
        assert world.waiting() == [entry]
    assert path.exists()


@pytest.mark.both_databases
def test_a_row_committed_after_the_walk_is_no_drift(world: World) -> None:
    """The worker commits and unlinks while the tree is walked."""
    _, entry = linked_and_not_committed(world, copy=False)
    filed: list[int] = []

    def file_meanwhile(what: str, done: int, total: int) -> None:
        if what == "tree and index" and not filed and done == total:
            world.filer().file_entries([entry])
            filed.append(1)

    scene = Scene(world.settings, world.index, progress=file_meanwhile, sleep=lambda _: None)
    assert codes(check(scene)) == {}
    assert filed


def test_an_entry_that_is_unlinked_while_it_is_waited_for_is_no_drift(world: World) -> None:
    entry_known(world)
    (entry,) = world.waiting()
    scene = Scene(world.settings, world.index, sleep=lambda _: entry.where(world.layout).unlink())
    assert codes(check(scene)) == {}


@pytest.mark.parametrize("outcome", ["filed", "quarantined"])
@pytest.mark.both_databases
def test_an_entry_is_never_removed_while_its_bytes_are_not_kept(world: World, outcome: str) -> None:
    entry_known(world)
    (entry,) = world.waiting()
    if outcome == "filed":
        path = a_filed_file(world)
        path.write_bytes(other_pixels(path.read_bytes()))
    else:
        sql(world, "update arrival set outcome = ? where entry = ?", outcome, entry.identifier)
    report = repaired(world)
    assert not report.is_clean
    assert world.waiting() == [entry]


# settled by whom --------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_two_repairs_do_not_meet(world: World) -> None:
    count_differs(world)
    with open(world.layout.locks / "check", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="another check"):
            repaired(world)
        assert codes(checked(world)) == {Code.COUNT_DIFFERS: 1}
    assert repaired(world).is_clean


def test_a_read_only_store_is_a_note_and_never_repaired(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Path, what: str) -> None:
        if what == "quarantine":
            raise StoreUnavailable("mounted read-only. Nothing was touched.")

    monkeypatch.setattr("workers.checking.checker.check_writable", refuse)
    tree_for_all(world)
    before = stores(world)
    assert codes(checked(world)) == {Code.STORE_READ_ONLY: 1, Code.MODE_WIDE: 1}
    with pytest.raises(StoreUnavailable):
        repaired(world)
    assert stores(world) == before


@pytest.mark.both_databases
def test_the_audit_tells_what_was_mended(world: World) -> None:
    count_differs(world)
    misplaced(world)
    repaired(world)
    repaired(world)
    (row,) = [row for row in world.rows(event) if row.kind == "check-repaired"]
    assert '"count-differs": 1' in row.details
    assert '"misplaced": 1' in row.details


def test_foreign_jobs_are_named_and_dropped_ours_stay(
    template: Path, tmp_path: Path, valkey: QueueServer
) -> None:
    with copy_of(template, tmp_path, redis={"url": valkey.url}) as world:
        connection = valkey.connect()
        gone = [EntryName("f0000-gone", "1")]
        waiting = world.put({"slice": b"anything"})
        assert queues.enqueue_filing(connection, gone)
        assert queues.enqueue_filing(connection, waiting)
        Queue("pairing", connection=connection, serializer=JSONSerializer).enqueue_call(
            "os.system", args=("true",)
        )
        report = check(Scene(world.settings, world.index, sleep=lambda _: None))
        assert report.counts() == {Code.QUEUE_FOREIGN: 1, Code.QUEUE_STALE: 1}
        assert not report.is_clean
        assert queues.depths(connection) == {"filing": 2, "pairing": 1}
        assert repaired(world).is_clean
        assert queues.depths(connection) == {"filing": 2, "pairing": 0}
        connection.hset("rq:execution:job:1", mapping={"worker_name": "w"})
        connection.hset("rq:worker:w", mapping={"hostname": os.uname().nodename, "pid": 2**22 + 1})
        connection.zadd("rq:wip:filing", {"job:1": 4e9})
        report = check(Scene(world.settings, world.index, sleep=lambda _: None))
        connection.close()
        assert Code.QUEUE_DEAD in report.counts()
        assert report.is_clean


# killed -----------------------------------------------------------------------------------------

TOGETHER: tuple[Plant, ...] = (
    entry_known,
    misplaced,
    count_differs,
    quarantine_without_reason,
    pair_missing,
    journal_line_missing,
)
EFFECTS = frozenset(
    {"os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.dlsym"}
)


def two_without_row(world: World) -> None:
    for path in [a_filed_file(world, number) for number in (1, 2)]:
        forget(world, path.stem)


def repair_until(world: World, effects: int) -> None:
    """Repair, and die before the effect of this number."""
    done = Counter[str]()

    def count(*_: Any) -> None:
        done["effects"] += 1
        if done["effects"] == effects:
            die()

    def audited(name: str, arguments: tuple[Any, ...]) -> None:
        if name in EFFECTS or (name == "open" and arguments[1] in ("wb", "xb", "ab")):
            count()

    sys.addaudithook(audited)
    sa.event.listen(world.index.engine, "commit", count)
    assert repaired(world).is_clean


@pytest.mark.slow
def test_killed_at_any_effect_a_repair_that_runs_again_ends_the_same(
    template: Path, tmp_path: Path
) -> None:
    with copy_of(template, tmp_path / "planted") as world:
        wanted = {path: hashlib.sha256(data).hexdigest() for path, data in world.tree().items()}
        two_without_row(world)
        for plant in TOGETHER:
            plant(world)
        sql(world, "pragma wal_checkpoint(truncate)")
    planted = tmp_path / "planted" / "root"
    kills = 0
    for number in range(1, 1000):
        with copy_of(planted, tmp_path / str(number)) as world:
            before = kept(world)
            code = in_child(lambda world=world, number=number: repair_until(world, number))  # type: ignore[misc]
            assert code in (0, -9)
            assert kept(world) >= before
            report = repaired(world)
            assert report.is_clean, (number, report.to_json_object())
            assert codes(checked(world, checksums=True)) == {}
            tree = {path: hashlib.sha256(data).hexdigest() for path, data in world.tree().items()}
            assert tree == wanted
            assert not world.waiting()
        shutil.rmtree(tmp_path / str(number))
        if code == 0:
            break
        kills += 1
    assert kills > 20
