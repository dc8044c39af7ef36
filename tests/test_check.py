"""`check` finds and names each drift alone, says nothing else, and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checked_world import (
    Plant,
    a_filed_file,
    checked,
    codes,
    copy_of,
    examples,
    make_template,
    sql,
    stores,
)
from conftest import PROJECT
from filing_world import World, changed, encoded, other_pixels, tiny
from hypothesis import given
from hypothesis import strategies as st
from installation import Installation
from running import petct, wait_until

from workers import durable
from workers.checking.codes import MEANINGS, Code, Severity
from workers.checking.findings import EXAMPLES, Finding, Outcome, Report
from workers.checking.merging import merge
from workers.checking.modes import too_wide
from workers.checking.strays import StrayFacts, judge_stray
from workers.checking.walking import place_key, series_folder, walk
from workers.errors import StoreUnavailable
from workers.filing.journal import NAME as JOURNAL
from workers.phantom.study import write_many


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, module_database: str) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    with copy_of(template, tmp_path) as one:
        yield one


# what is planted: each alone ----------------------------------------------------------------------


def relative(world: World, path: Path) -> str:
    return str(path.relative_to(world.layout.archive))


def row_without_file(world: World) -> str:
    path = a_filed_file(world)
    path.unlink()
    return relative(world, path)


def file_without_row(world: World) -> str:
    path = a_filed_file(world)
    sql(world, "delete from instance where instance_uid = ?", path.stem)
    sql(world, "delete from arrival where instance_uid = ?", path.stem)
    sql(world, "update series set instances = (select count(*) from instance "
               "where series_id = series.id)")  # fmt: skip
    return relative(world, path)


def misplaced(world: World) -> str:
    path = a_filed_file(world)
    elsewhere = path.parent.parent / "99999"
    elsewhere.mkdir(mode=0o750)
    path.rename(elsewhere / path.name)
    return relative(world, elsewhere / path.name)


def stray_copy(world: World) -> str:
    path = a_filed_file(world)
    copy = path.with_name("copy of it.dcm")
    shutil.copy(path, copy)
    return relative(world, copy)


def stranger(world: World) -> str:
    notes = a_filed_file(world).with_name("my notes.txt")
    notes.write_text("call back on Monday")
    return relative(world, notes)


def stranger_at_the_top(world: World) -> str:
    (world.layout.archive / "README").write_text("ours")
    return "README"


def instance_never_filed(world: World) -> str:
    path = a_filed_file(world).with_name("2.25.77.dcm")
    path.write_bytes(changed(encoded(tiny()), SOPInstanceUID="2.25.77"))
    return relative(world, path)


def litter(world: World) -> str:
    path = a_filed_file(world).with_name(".DS_Store")
    path.write_bytes(b"\0\0\0\1Bud1")
    return relative(world, path)


def size_differs(world: World) -> str:
    path = a_filed_file(world)
    with path.open("ab") as file:
        file.write(b"more")
    return relative(world, path)


def bytes_differ(world: World) -> str:
    path = a_filed_file(world)
    content = other_pixels(path.read_bytes())
    with path.open("r+b") as file:
        file.write(content)
    return relative(world, path)


def file_is_a_link(world: World) -> str:
    path = a_filed_file(world)
    outside = world.settings.root / "outside.dcm"
    path.rename(outside)
    path.symlink_to(outside)
    return relative(world, path)


def folder_is_a_link(world: World) -> str:
    folder = a_filed_file(world).parent
    outside = world.settings.root / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    return relative(world, folder)


def patient_is_a_link(world: World) -> str:
    patient = world.layout.archive / relative(world, a_filed_file(world)).split("/")[0]
    outside = world.settings.root / "outside"
    patient.rename(outside)
    patient.symlink_to(outside)
    return patient.name


def a_pipe(world: World) -> str:
    path = a_filed_file(world).with_name("pipe")
    os.mkfifo(path)
    return relative(world, path)


def a_socket(world: World) -> str:
    path = a_filed_file(world).with_name("s")
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket holds 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)
    return relative(world, path)


def count_differs(world: World) -> str:
    uid = sql(world, "select series from series order by id limit 1")[0][0]
    sql(world, "update series set instances = instances + 2 where series = ?", uid)
    return str(uid)


def columns_differ(world: World) -> str:
    uid = a_filed_file(world).stem
    sql(world, "update instance set instance_number = 4711 where instance_uid = ?", uid)
    return uid


def folder_of_another_series(world: World) -> str:
    """A row that says series A and lies in a folder of series B (and its file with it)."""
    path, other = a_filed_file(world), a_filed_file(world, 5)
    assert path.parent != other.parent
    path.rename(other.with_name(path.name))
    sql(world, "update instance set folder_id = (select folder_id from instance where "
               "instance_uid = ?) where instance_uid = ?", other.stem, path.stem)  # fmt: skip
    return path.stem


def arrival_without_instance(world: World) -> str:
    path = a_filed_file(world)
    path.unlink()
    sql(world, "delete from instance where instance_uid = ?", path.stem)
    sql(world, "update series set instances = (select count(*) from instance "
               "where series_id = series.id)")  # fmt: skip
    return path.stem


def empty_rows(world: World) -> str:
    sql(world, "insert into folder (series_id, home, digits, accession_number, adopted) "
               "select id, 'P/A', '1/2/3/4', '', false from series limit 1")  # fmt: skip
    return "P/A/studies/1/2/3/4"


def set_aside(world: World) -> str:
    return str(sql(world, "select entry from arrival where outcome = 'quarantined'")[0][0])


def quarantine_without_arrival(world: World) -> str:
    entry = set_aside(world)
    sql(world, "delete from arrival where entry = ?", entry)
    return entry


def quarantine_without_reason(world: World) -> str:
    entry = set_aside(world)
    (world.layout.quarantine / f"{entry}.json").unlink()
    return entry


def quarantine_without_file(world: World) -> str:
    entry = set_aside(world)
    (world.layout.quarantine / f"{entry}.dcm").unlink()
    return entry


def stranger_in_quarantine(world: World) -> str:
    (world.layout.quarantine / "why.txt").write_text("?")
    return "why.txt"


def incoming_left_over(world: World) -> str:
    (world.layout.incoming / "a1.00000001").write_bytes(b"half")
    return "incoming/a1.00000001"


def entry_known(world: World) -> str:
    path = a_filed_file(world)
    (entry,) = world.put({"slice": path.read_bytes()})
    sql(world, "update arrival set entry = ? where instance_uid = ? and outcome = 'filed'",
        entry.identifier, path.stem)  # fmt: skip
    return entry.identifier


def entry_waiting(world: World) -> str:
    (entry,) = world.put({"slice": b"anything"})
    return entry.identifier


def batch_without_description(world: World) -> str:
    (entry,) = world.put({"slice": b"anything"})
    (world.layout.ready / entry.batch / "batch.json").unlink()
    return entry.batch


def link_in_the_spool(world: World) -> str:
    (entry,) = world.put({"slice": b"anything"})
    path = entry.where(world.layout)
    path.unlink()
    path.symlink_to("/etc/passwd")
    return entry.identifier


def pair_folder(world: World) -> Path:
    return Path(world.layout.archive, sql(world, "select folder from pair")[0][0])


def pair_missing(world: World) -> str:
    folder = pair_folder(world)
    shutil.rmtree(folder)
    return relative(world, folder)


def pair_of_another_revision(world: World) -> str:
    sql(world, "update pair set revision = 7")
    return relative(world, pair_folder(world))


def pair_cut(world: World) -> str:
    os.truncate(pair_folder(world) / "pet.npy", 1000)
    return relative(world, pair_folder(world))


def pair_without_picture(world: World) -> str:
    (pair_folder(world) / "qc.png").unlink()
    return relative(world, pair_folder(world))


def pair_with_other_bytes(world: World) -> str:
    path = pair_folder(world) / "ct.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return relative(world, pair_folder(world))


def pair_without_row(world: World) -> str:
    folder = pair_folder(world)
    copy = folder.with_name("Auto-Paired-12345-67890")
    shutil.copytree(folder, copy)
    return relative(world, copy)


def exchange_unfinished(world: World) -> str:
    """Killed after the old folder was put aside, and before the new one took its place."""
    place = world.layout.archive_private / "tmp" / "pair-1-2-abcdef01.old"
    place.parent.mkdir(exist_ok=True)
    shutil.copytree(pair_folder(world), place)
    return "pair-1-2-abcdef01.old"


def temporary_left_over(world: World) -> str:
    place = world.layout.archive_private / "tmp" / "pair-1-2-abcdef01"
    place.mkdir(parents=True)
    return "pair-1-2-abcdef01"


def journal_line_missing(world: World) -> str:
    path = world.layout.archive_private / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    return str(json.loads(lines[0])["series"])


def override_not_in_the_journal(world: World) -> str:
    sql(world, "update pair set override = ?", json.dumps({"forced": True, "weight_kg": 70.0}))
    return "override"


def journal_torn(world: World) -> str:
    path = world.layout.archive_private / JOURNAL
    whole = len(path.read_bytes().splitlines())
    with path.open("ab") as file:
        file.write(b'{"kind":"source","stu')
    return f"line {whole + 1}"


def tree_for_all(world: World) -> str:
    path = a_filed_file(world)
    path.chmod(0o666)
    return relative(world, path)


def spool_for_all(world: World) -> str:
    world.layout.spool.chmod(0o755)
    return str(world.layout.spool)


def row_to_nowhere(world: World) -> str:
    sql(world, "update series set study_id = 4711 where id = (select max(id) from series)")
    return "series"


ALONE: dict[Plant, set[Code]] = {
    row_without_file: {Code.ROW_WITHOUT_FILE},
    file_without_row: {Code.FILE_WITHOUT_ROW},
    misplaced: {Code.MISPLACED},
    stray_copy: {Code.STRAY_COPY},
    stranger: {Code.STRANGER},
    stranger_at_the_top: {Code.STRANGER},
    instance_never_filed: {Code.STRANGER},
    litter: {Code.LITTER},
    size_differs: {Code.SIZE_DIFFERS},
    file_is_a_link: {Code.NOT_REGULAR},
    folder_is_a_link: {Code.NOT_REGULAR},
    patient_is_a_link: {Code.NOT_REGULAR},
    a_pipe: {Code.NOT_REGULAR},
    a_socket: {Code.NOT_REGULAR},
    count_differs: {Code.COUNT_DIFFERS},
    folder_of_another_series: {Code.COLUMNS_DIFFER},
    arrival_without_instance: {Code.ARRIVAL_WITHOUT_INSTANCE},
    empty_rows: {Code.EMPTY_ROWS},
    quarantine_without_arrival: {Code.QUARANTINE_WITHOUT_ARRIVAL},
    quarantine_without_reason: {Code.QUARANTINE_WITHOUT_REASON},
    quarantine_without_file: {Code.QUARANTINE_WITHOUT_FILE},
    stranger_in_quarantine: {Code.STRANGER},
    entry_known: {Code.ENTRY_KNOWN},
    batch_without_description: {Code.BATCH_WITHOUT_DESCRIPTION},
    link_in_the_spool: {Code.NOT_REGULAR},
    pair_missing: {Code.PAIR_MISSING},
    pair_of_another_revision: {Code.PAIR_DIFFERS},
    pair_cut: {Code.PAIR_DAMAGED},
    pair_without_picture: {Code.PAIR_DAMAGED},
    pair_without_row: {Code.PAIR_WITHOUT_ROW},
    exchange_unfinished: {Code.EXCHANGE_UNFINISHED},
    journal_line_missing: {Code.JOURNAL_LINE_MISSING},
    override_not_in_the_journal: {Code.JOURNAL_LINE_MISSING},
    journal_torn: {Code.JOURNAL_TORN},
    tree_for_all: {Code.MODE_WIDE},
    spool_for_all: {Code.MODE_WIDE},
    row_to_nowhere: {Code.INDEX_DAMAGED},
}

ON_BOTH = tuple(plant for plant in ALONE if plant is not row_to_nowhere)
"""PostgreSQL lets no row point to nowhere."""

WITH_CHECKSUMS: dict[Plant, Code] = {
    bytes_differ: Code.BYTES_DIFFER,
    columns_differ: Code.COLUMNS_DIFFER,
    pair_with_other_bytes: Code.PAIR_DAMAGED,
}

AGED: dict[Plant, Code] = {
    incoming_left_over: Code.INCOMING_LEFT_OVER,
    entry_waiting: Code.ENTRY_WAITING,
    temporary_left_over: Code.TEMPORARY_LEFT_OVER,
}


def found_alone(world: World, plant: Plant, wanted: set[Code], **how: bool) -> Report:
    where = plant(world)
    world.let_go()
    before = stores(world)
    report = checked(world, **how)
    assert stores(world) == before, "check changed something"
    assert set(codes(report)) == wanted
    told = [one["where"] for code in wanted for one in examples(report, code)]
    assert any(where in one for one in told), (where, told)
    severities = {MEANINGS[code].severity for code in wanted}
    assert report.is_clean == (severities == {Severity.NOTE})
    return report


@pytest.mark.parametrize("plant", ON_BOTH, ids=lambda plant: plant.__name__)
@pytest.mark.both_databases
def test_each_drift_is_found_and_named_and_nothing_else(world: World, plant: Plant) -> None:
    found_alone(world, plant, ALONE[plant])


def test_a_row_that_points_to_nowhere_is_found_and_named(world: World) -> None:
    found_alone(world, row_to_nowhere, ALONE[row_to_nowhere])


@pytest.mark.parametrize("plant", WITH_CHECKSUMS, ids=lambda plant: plant.__name__)
@pytest.mark.both_databases
def test_what_only_the_bytes_show_is_found_with_checksums(world: World, plant: Plant) -> None:
    found_alone(world, plant, {WITH_CHECKSUMS[plant]}, checksums=True)
    assert codes(checked(world)) == {}


@pytest.mark.parametrize("plant", AGED, ids=lambda plant: plant.__name__)
def test_what_may_be_in_somebodys_hands_is_told_only_when_it_is_old(
    world: World, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(world)
    assert codes(checked(world)) == {}
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    report = checked(world)
    assert set(codes(report)) == {AGED[plant]}
    assert report.is_clean


def test_what_a_process_holds_locked_is_in_use_however_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming_left_over(world)
    temporary_left_over(world)
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    held = [
        os.open(path, os.O_RDONLY)
        for path in (
            world.layout.incoming / "a1.00000001",
            world.layout.archive_private / "tmp" / "pair-1-2-abcdef01",
        )
    ]
    try:
        assert all(map(durable.try_lock, held))
        assert codes(checked(world)) == {}
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.both_databases
def test_a_world_in_order_is_clean_and_untouched(world: World) -> None:
    before = stores(world)
    for checksums in (False, True):
        for repair in (False, True):
            report = checked(world, checksums=checksums, repair=repair)
            assert codes(report) == {}
            assert report.is_clean
    assert stores(world) == before
    assert report.compared["instances"] == report.compared["files"] == world.counts().filed


def test_every_code_is_planted_somewhere() -> None:
    planted = {code for wanted in ALONE.values() for code in wanted}
    planted |= set(WITH_CHECKSUMS.values()) | set(AGED.values())
    elsewhere = {
        Code.UNREADABLE, Code.STORE_READ_ONLY, Code.QUEUE_FOREIGN, Code.QUEUE_STALE,
        Code.QUEUE_DEAD, Code.QUEUES_UNREACHABLE,
    }  # fmt: skip
    assert planted | elsewhere == set(Code)
    assert set(MEANINGS) == set(Code)


def test_the_page_on_checking_says_of_every_code_what_the_program_says() -> None:
    page = (PROJECT / "docs" / "check.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| `{code}` | {meaning.severity} | {meaning.words} | {meaning.repair} |" in page
    assert page.count("\n| `") == len(MEANINGS) + 3  # and the options


# pure ---------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_two_sorted_streams_give_what_both_have_and_what_one_lacks(
    left: set[int], right: set[int]
) -> None:
    pairs = list(merge(sorted(left), sorted(right), int, int))
    assert {one for one, other in pairs if one is not None and other is not None} == left & right
    assert {one for one, other in pairs if other is None} == left - right
    assert {other for one, other in pairs if one is None} == right - left
    assert len(pairs) == len(left | right)


def test_a_stream_that_goes_back_is_refused() -> None:
    with pytest.raises(ValueError, match="goes back"):
        list(merge([1, 3, 2], [1, 2, 3], int, int))


NAMES = st.text(st.sampled_from("aB-./_%9é\udcff"), min_size=1, max_size=3).filter(
    lambda name: "/" not in name and name not in (".", "..", ".petct")
)


@given(st.sets(st.tuples(NAMES, NAMES, st.lists(NAMES, max_size=3).map(tuple), NAMES), max_size=8))
def test_the_walk_comes_in_the_order_of_the_index(
    places: set[tuple[str, str, tuple[str, ...], str]],
) -> None:
    with tempfile.TemporaryDirectory() as top:
        for patient, accession, digits, name in places:
            folder = Path(top, patient, accession, "studies", *digits)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            except OSError:
                continue  # another place has a file where this one wants a folder
        keys = []
        for folder_path, items in walk(Path(top), lambda _: True, pytest.fail):
            place = series_folder(folder_path)
            if place is not None:
                keys += [place_key(place.home, place.digits, one.name) for one in items]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (StrayFacts(litter=True, readable=False), Code.LITTER),
        (StrayFacts(False, readable=False), Code.STRANGER),
        (StrayFacts(False, True), Code.STRANGER),
        (StrayFacts(False, True, in_place=True), Code.FILE_WITHOUT_ROW),
        (StrayFacts(False, True, known_elsewhere=True), Code.STRAY_COPY),
        (StrayFacts(False, True, True, there_missing=True), Code.STRAY_COPY),
        (StrayFacts(False, True, True, False, same_bytes=True), Code.STRAY_COPY),
        (StrayFacts(False, True, True, True, same_bytes=True), Code.MISPLACED),
    ],
)
def test_what_a_file_without_a_row_is(facts: StrayFacts, code: Code) -> None:
    assert judge_stray(facts) is code


def test_a_report_counts_everything_and_names_the_first() -> None:
    report = Report()
    for number in range(EXAMPLES + 5):
        report.add(Finding(Code.STRANGER, str(number)))
    report.add(Finding(Code.MODE_WIDE, "a"), Outcome.MENDED)
    assert report.is_clean
    report.add(Finding(Code.MODE_WIDE, "b"), Outcome.LEFT, "no")
    words = report.to_json_object()
    assert (words["clean"], words["left"]) == (False, 1)
    assert [one["code"] for one in words["findings"]] == ["mode-wide", "stranger"]
    assert words["findings"][1]["count"] == EXAMPLES + 5
    assert len(words["findings"][1]["examples"]) == EXAMPLES


@pytest.mark.parametrize(
    ("mode", "allowed", "wide"),
    [(0o100640, 0o640, 0), (0o100600, 0o640, 0), (0o100644, 0o640, 4), (0o42750, 0o750, 0),
     (0o40777, 0o750, 0o027), (0o41777, 0o775, 2)],
)  # fmt: skip
def test_only_permissions_beyond_the_settings_are_wide(mode: int, allowed: int, wide: int) -> None:
    assert too_wide(mode, allowed) == wide


# stores -------------------------------------------------------------------------------------------


def lost_identity(world: World) -> Path:
    path = world.layout.archive_private / "id"
    path.unlink()
    return path


def other_identity(world: World) -> Path:
    path = world.layout.spool_private / "id"
    path.write_text("0" * 32)
    return path


def not_mounted(world: World) -> Path:
    world.layout.archive.rename(world.settings.root / "unmounted")
    world.layout.archive.mkdir()
    return world.layout.archive


@pytest.mark.parametrize("spoil", [lost_identity, other_identity, not_mounted])
@pytest.mark.parametrize("repair", [False, True])
def test_a_missing_or_another_store_is_refused_and_nothing_touched(
    world: World, spoil: Callable[[World], Path], repair: bool
) -> None:
    tree_for_all(world)
    spoil(world)
    before = stores(world)
    with pytest.raises(StoreUnavailable, match="Nothing was touched"):
        checked(world, repair=repair)
    assert stores(world) == before


def test_a_folder_that_cannot_be_read_is_told_and_its_rows_are_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_filed_file(world).parent
    really = os.open

    def refusing(path: object, *rest: object, **more: object) -> int:
        if os.fspath(path) == str(folder):  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("workers.checking.walking.os.open", refusing)
    report = checked(world)
    assert set(codes(report)) == {Code.UNREADABLE}
    assert examples(report, Code.UNREADABLE)[0]["where"] == relative(world, folder)


# the command --------------------------------------------------------------------------------------


def run_check(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    command = petct("check", "--root", world.settings.root, *options)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PETCT_INGEST_REDIS__URL": "unix:///nonexistent.sock"},
    )  # fmt: skip


def test_the_command_says_clean_or_names_what_is_not_and_how_it_ends(world: World) -> None:
    done = run_check(world)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "clean"
    assert "queues-unreachable (note)" in done.stdout
    path = row_without_file(world)
    done = run_check(world)
    assert done.returncode == 3
    assert "row-without-file (damage): 1" in done.stdout
    assert path in done.stdout
    found = json.loads(run_check(world, "--json").stdout)
    assert (found["clean"], found["left"], found["repair"]) == (False, 1, False)
    assert [one["code"] for one in found["findings"] if one["severity"] != "note"] == [
        "row-without-file"
    ]
    lost_identity(world)
    done = run_check(world, "--repair")
    assert done.returncode == 2
    assert "Nothing was touched" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_database_that_cannot_be_read_is_one_line_and_exit_2(world: World) -> None:
    world.close()
    path = world.layout.index
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    done = run_check(world)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "index" in done.stderr


# beside a daemon ----------------------------------------------------------------------------------


def test_it_says_clean_while_a_daemon_files_and_a_repair_finds_nothing_to_do(
    tmp_path: Path,
) -> None:
    one = Installation(tmp_path)
    files = list(write_many(tmp_path / "data", 700, folders=7).values())
    looked: list[int] = []
    with one.run(), one.sending(files[:600], "--max-pdu", "131072") as sender:
        shutil.copytree(tmp_path / "data" / "00" / "06", one.layout.inbox / "drop")

        def clean() -> bool:
            how = ("--repair",) if len(looked) % 2 else ("--checksums",)
            command = petct("check", "--root", one.root, "--json", *how)
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, (done.stderr, done.stdout)
            found = json.loads(done.stdout)
            assert found["clean"], found["findings"]
            assert not any(finding["mended"] for finding in found["findings"]), found["findings"]
            looked.append(found["compared"].get("instances", 0))
            return sender.process.poll() is not None and one.arrived() >= 700

        wait_until(clean, 60, "everything filed")
        assert clean()
    assert len(looked) >= 2
    assert looked[-1] == 700
