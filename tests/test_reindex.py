"""A delivery is adopted where it lies; a lost index is made anew from the tree."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import remove_index
from filing_world import (
    FOLDER,
    SENDER,
    World,
    a_world,
    changed,
    encoded,
    other_pixels,
    settings_for,
    tiny,
    uid_of,
)
from pydicom.uid import generate_uid
from running import Running, petct, wait_until

from workers.adopting.finishing import judge_adopted, take_over_pairs, wished_pairs
from workers.adopting.reindexing import ReindexReport, reindex
from workers.adopting.walking import Leaf, walk_tree
from workers.completeness.judging import judge_studies
from workers.errors import StoreUnavailable
from workers.export.dictionary import dictionary_rows
from workers.filing.examining import examine
from workers.index.engine import prepare_index
from workers.index.tables import folder, instance, pair, series, study
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study


def deliver(to: Path, *numbers: int, seed: int = 5, only: tuple[str, ...] = ()) -> int:
    """Lay phantom studies out as a vendor does: other digits than ours, other file names."""
    lots, count = random.Random(seed), 0

    def digits() -> str:
        return f"{lots.randrange(10**5):05d}/{lots.randrange(10**5):05d}"

    for number in numbers:
        study = make_study(PhantomSpec(size="tiny", patient_number=number))
        of_study = digits()
        for one in study.series:
            here = digits()
            if only and one.name not in only:
                continue
            first = one.dataset(0)
            home = to / first.PatientID / first.AccessionNumber / "studies" / of_study / here
            home.mkdir(parents=True, exist_ok=True)
            for index in range(one.count):
                (home / f"IM{index:05d}").write_bytes(encoded(one.dataset(index)))
                count += 1
    return count


def untouched(tree: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, mtime and size of every file that was delivered."""
    found = {}
    for path in sorted(tree.rglob("IM*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    return tmp_path / "delivery"


@pytest.fixture
def world(tmp_path: Path, delivery: Path) -> Iterator[World]:
    """An installation whose archive is the delivery."""
    delivery.mkdir()
    settings = settings_for(tmp_path / "site", paths={"archive": str(delivery)})
    prepare_index(settings).close()
    world = World(settings)
    yield world
    world.close()


def adopt(world: World, **options: Any) -> ReindexReport:
    report = reindex(world.index, world.settings, processes=1, **options)
    judge_adopted(world.index, world.settings, lambda done, total: None)
    return report


def codes(report: ReindexReport) -> dict[str, int]:
    return dict(Counter(str(one.code) for one in report.findings))


def send(world: World, *contents: bytes) -> None:
    world.put({str(number): one for number, one in enumerate(contents)}, SENDER)
    world.file()


def run(world: World, *words: object) -> dict[str, Any]:
    done = subprocess.run(
        petct("reindex", "--root", world.layout.root, "--archive", world.layout.archive, *words),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_delivery_is_adopted_and_no_file_of_it_is_touched(world: World, delivery: Path) -> None:
    count = deliver(delivery, 1, 2)
    before = untouched(delivery)
    found = run(world, "--json")
    assert (found["files"], found["adopted"], found["findings"]) == (count, count, {})
    assert found["pairs"] == {"ready": 2}
    assert untouched(delivery) == before
    assert world.counts().filed == count
    assert {row.state for row in world.rows(series)} == {"complete"}
    assert len(list(delivery.glob("*/*/Auto-Paired/pet.npy"))) == 2
    again = run(world, "--json")
    assert (again["adopted"], again["unchanged"], again["pairs"]) == (0, count, {})


def test_what_is_unchanged_is_not_opened_again(
    world: World, delivery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = deliver(delivery, 1)
    adopt(world)
    monkeypatch.setattr("workers.adopting.reading.examine", lambda *_: pytest.fail("opened"))
    assert adopt(world).unchanged == count


def test_what_is_no_instance_is_opened_once_and_told_each_time(
    world: World, delivery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(delivery, 1, only=("SCOUT",))
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    there = delivery / leaf.path
    for name in ("notes.txt", "Thumbs.db", "cut"):
        (there / name).write_text("no instance")
    (there / "copy").write_bytes((there / "IM00000").read_bytes())
    opened: list[str] = []

    def noted(file: Any, name: str, *more: Any) -> Any:
        opened.append(name)
        return examine(file, name, *more)

    monkeypatch.setattr("workers.adopting.reading.examine", noted)
    first = adopt(world)
    assert sorted(opened) == ["IM00000", "IM00001", "Thumbs.db", "copy", "cut", "notes.txt"]
    assert codes(first) == {"not-adopted": 2, "skipped": 1, "duplicate": 1}
    opened.clear()
    again = adopt(world)
    assert opened == ["copy"], "which of two counts, the index decides"
    assert sorted(again.findings, key=str) == sorted(first.findings, key=str)
    (there / "cut").write_bytes(encoded(tiny("SCOUT", 0, patient_number=2)))
    (there / "notes.txt").unlink()
    opened.clear()
    third = adopt(world)
    assert "cut" in opened
    assert third.adopted == 1
    assert codes(third) == {"skipped": 1, "duplicate": 1, "headers-disagree": 1}
    monkeypatch.setattr("workers.adopting.passed.version", lambda name: "another")
    opened.clear()
    adopt(world)
    assert "Thumbs.db" in opened, "another version may think otherwise"


@pytest.mark.parametrize("known", [b"", b"[" * 100_000, b"no list"])
def test_what_was_passed_over_is_a_hint_that_nothing_depends_on(
    world: World, delivery: Path, monkeypatch: pytest.MonkeyPatch, known: bytes
) -> None:
    """It may come with a delivery, and its folder may be another user's."""
    count = deliver(delivery, 1, only=("SCOUT",))
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    (delivery / leaf.path / "notes.txt").write_text("no instance")
    noted = world.layout.archive_private / "passed-over.jsonl"
    noted.write_bytes(known)

    def not_ours(path: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("workers.adopting.passed.replace_file", not_ours)
    for adopted in (count, 0):
        report = adopt(world)
        assert report.adopted == adopted
        assert codes(report) == {"not-adopted": 1}
    assert noted.read_bytes() == known


def test_what_was_filed_is_not_opened_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "site") as world:
        send(world, *(encoded(tiny("CT IMAGES", number)) for number in range(3)))
        monkeypatch.setattr("workers.adopting.reading.examine", lambda *_: pytest.fail("opened"))
        report = adopt(world)
        assert (report.files, report.unchanged) == (3, 3)


@pytest.mark.both_databases
def test_several_processes_find_the_same_as_one(tmp_path: Path, delivery: Path) -> None:
    deliver(delivery, 1, 2)
    tables = []
    for processes in (1, 2):
        settings = settings_for(tmp_path / f"site{processes}", paths={"archive": str(delivery)})
        index = prepare_index(settings)
        reindex(index, settings, processes=processes)
        tables.append(list(dictionary_rows(index, "instance")))
        index.close()
    assert tables[0] == tables[1] != []


def test_killed_half_way_it_goes_on_where_it_was(world: World, delivery: Path) -> None:
    count = deliver(delivery, *range(1, 9))
    before = untouched(delivery)
    words = petct("reindex", "--root", world.layout.root, "--archive", delivery, "--no-pair")
    one = Running([*words, "--processes", "1"], world.layout.root / "out")
    wait_until(lambda: len(world.rows(instance)) > count // 4, what="a part of it")
    one.process.send_signal(signal.SIGKILL)
    one.process.wait(10)
    there = len(world.rows(instance))
    assert 0 < there < count
    for row in world.rows(series):  # no series is half in the index
        assert row.instances == len(list((delivery / path_of(world, row.id)).iterdir()))
    found = run(world, "--json", "--no-pair")
    assert (found["adopted"], found["unchanged"]) == (count - there, there)
    assert found["pairs_wanted"] == 8
    assert len(world.rows(instance)) == count
    assert untouched(delivery) == before


def path_of(world: World, series_id: int) -> str:
    (row,) = (row for row in world.rows(folder) if row.series_id == series_id)
    return f"{row.home}/studies/{row.digits}"


def test_a_late_series_joins_the_folder_of_its_study(world: World, delivery: Path) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    adopt(world)
    (known,) = world.rows(folder)
    send(world, *(encoded(tiny("PET AC", number, patient_number=1)) for number in range(8)))
    late = world.rows(folder)[-1]
    assert late.home == known.home
    assert late.digits.split("/")[:2] == known.digits.split("/")[:2]
    send(world, changed(encoded(tiny("CT IMAGES", 0)), SOPInstanceUID=generate_uid()))
    assert len(world.rows(folder)) == 2, "a known series joins its own folder"


def test_the_same_instance_again_is_a_duplicate_of_the_adopted(
    world: World, delivery: Path
) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    adopt(world)
    send(world, encoded(tiny("CT IMAGES", 3)), other_pixels(encoded(tiny("CT IMAGES", 4))))
    assert world.outcomes() == {"duplicate": 1, "conflict": 1}


@pytest.mark.both_databases
def test_a_lost_index_is_made_anew_and_says_the_same(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "site")
    prepare_index(settings).close()
    world = World(settings)
    study = make_study(PhantomSpec(size="tiny"))
    parts = [study.named(name) for name in ("CT IMAGES", "PET AC", "SCOUT")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    row = world.rows(pair)[0]
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    before = list(dictionary_rows(world.index, "instance"))
    sources = {(row.series, row.source) for row in world.rows(series)}
    made = (world.layout.archive / world.rows(pair)[0].folder / "pet.npy").stat()
    world.close()
    remove_index(settings)
    prepare_index(settings).close()
    adopt(world)
    assert take_over_pairs(world.index, world.settings) == 1
    assert wished_pairs(world.index) == []
    assert list(dictionary_rows(world.index, "instance")) == before
    assert {(row.series, row.source) for row in world.rows(series)} == sources
    after = world.rows(pair)[0]
    assert (after.state, after.revision, after.folder) == ("ready", 1, row_folder(world))
    now = (world.layout.archive / after.folder / "pet.npy").stat()
    assert (now.st_ino, now.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    world.check()
    world.close()


@pytest.mark.both_databases
def test_a_lost_index_is_made_anew_with_the_prefixes_of_its_sources(tmp_path: Path) -> None:
    source = {"folder": FOLDER.folder, "patient_id_prefix": "north-"}
    settings = settings_for(tmp_path / "site", sources=[source])
    prepare_index(settings).close()
    world = World(settings)
    world.put({"1": encoded(tiny("CT IMAGES", 0))})
    world.file()
    before = list(dictionary_rows(world.index, "instance"))
    world.close()
    remove_index(settings)
    prepare_index(settings).close()
    assert codes(adopt(world)) == {}
    assert list(dictionary_rows(world.index, "instance")) == before
    world.put({"2": encoded(tiny("CT IMAGES", 1))})
    world.file()
    (row,) = world.rows(study)
    assert not row.two_patients
    assert len({path.rpartition("/")[0] for path in world.tree()}) == 1
    world.check()
    world.close()


def row_folder(world: World) -> str:
    (place,) = world.layout.archive.glob("*/*/Auto-Paired")
    return str(place.relative_to(world.layout.archive))


def test_a_pair_of_other_files_is_not_taken_over(world: World, delivery: Path) -> None:
    deliver(delivery, 1)
    run(world, "--json")
    (place,) = delivery.glob("*/*/Auto-Paired")
    slice_path = next(iter(sorted(delivery.glob("*/*/studies/*/*/*/*/IM00005"))))
    world.close()
    remove_index(world.settings)
    meta = json.loads((place / "pair.json").read_text())
    uid = next(iter(meta["pet"]["inputs"]))
    meta["pet"]["inputs"][uid] = "0" * 64
    (place / "pair.json").write_text(json.dumps(meta))
    found = run(world, "--json")
    assert (found["pairs_taken_over"], found["pairs"]) == (0, {"ready": 1})
    assert slice_path.exists()


# bad input ----------------------------------------------------------------------------------------


def test_what_lies_elsewhere_or_is_no_instance_is_named_and_left(
    world: World, delivery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    there = delivery / leaf.path
    (delivery / "README.txt").write_text("a note")
    (delivery / "P" / "A" / "reports").mkdir(parents=True)
    (delivery / "P" / "A" / "reports" / "report.pdf").write_text("stray")
    (there / "notes.txt").write_text("no instance")
    (there / "Thumbs.db").write_text("litter")
    (there / "cut").write_bytes((there / "IM00000").read_bytes()[:700])
    (there / "link").symlink_to(there / "IM00000")
    (delivery / "linked").symlink_to(tmp_path)
    (there / "gone").symlink_to(there / "nowhere")
    os.mkfifo(there / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(there)  # a socket's path is short
        made.bind("sock")
    (there / os.fsdecode(b"\xe9t\xe9.dcm")).write_bytes((there / "IM00000").read_bytes())
    report = adopt(world)
    assert codes(report) == {
        "stray": 2, "not-adopted": 3, "skipped": 1, "link": 3, "special": 2,
    }  # fmt: skip
    assert report.adopted == 12
    assert (there / "notes.txt").read_text() == "no instance"


def test_two_series_in_one_folder_and_one_in_two_are_kept_apart(
    world: World, delivery: Path
) -> None:
    home = delivery / "P1" / "A1" / "studies" / "1"
    same = {"PatientID": "P1", "AccessionNumber": "A1"}
    for place, name, numbers in (("a", "CT IMAGES", (0, 1)), ("a", "PET AC", (0, 1)),
                                 ("b", "CT IMAGES", (2, 3))):  # fmt: skip
        (home / place).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            content = changed(encoded(tiny(name, number)), **same)
            (home / place / f"IM{name[:2]}{number}").write_bytes(content)
    report = adopt(world)
    assert codes(report) == {}
    assert sorted((row.modality, row.instances) for row in world.rows(series)) == [
        ("CT", 4), ("PT", 2),
    ]  # fmt: skip
    assert len(world.rows(folder)) == 3
    send(world, changed(encoded(tiny("CT IMAGES", 4)), **same))
    assert len(world.rows(folder)) == 3
    assert world.counts().filed == 7


def test_headers_win_over_folder_names_and_it_is_told(world: World, delivery: Path) -> None:
    home = delivery / "SOMEBODY" / "ELSE" / "studies" / "1" / "2" / "3" / "4"
    home.mkdir(parents=True)
    (home / "IM1").write_bytes(encoded(tiny("CT IMAGES", 0)))
    report = adopt(world)
    assert codes(report) == {"headers-disagree": 1}
    (row,) = dictionary_rows(world.index)
    assert row["patient_ID"] == tiny("CT IMAGES", 0).PatientID
    assert row["folder"].startswith("SOMEBODY/ELSE/")
    send(world, encoded(tiny("CT IMAGES", 1)))
    assert len(world.rows(folder)) == 1, "what arrives later joins it"


def test_a_known_series_is_joined_where_a_patient_has_several_folders(
    world: World, delivery: Path
) -> None:
    for number, name in enumerate(("VISIT-1", "VISIT-2")):
        home = delivery / name / "A" / "studies" / "1" / "2" / "3" / str(number)
        home.mkdir(parents=True)
        (home / "IM1").write_bytes(encoded(tiny("CT IMAGES", 0, study_number=number + 1)))
    adopt(world)
    before = {path.rpartition("/")[0] for path in world.tree()}
    send(world, *(encoded(tiny("CT IMAGES", 1, study_number=number)) for number in (1, 2)))
    assert {path.rpartition("/")[0] for path in world.tree()} == before
    assert [row.instances for row in world.rows(series)] == [2, 2]


def test_names_that_differ_in_case_alone_stay_two_patients(world: World, delivery: Path) -> None:
    for patient in ("Case", "case"):
        home = delivery / patient / "A" / "studies" / "1" / "2" / "3" / "4"
        home.mkdir(parents=True)
        content = changed(
            encoded(tiny("CT IMAGES", 0)),
            PatientID=patient, AccessionNumber="A", StudyInstanceUID=generate_uid(),
            SeriesInstanceUID=generate_uid(), SOPInstanceUID=generate_uid(),
        )  # fmt: skip
        (home / "IM1").write_bytes(content)
    adopt(world)
    assert {row["patient_ID"] for row in dictionary_rows(world.index)} == {"Case", "case"}
    for row in dictionary_rows(world.index):
        assert row["folder"].split("/")[0] == row["patient_ID"]


def test_copies_within_a_delivery_are_told_and_the_first_counts(
    world: World, delivery: Path
) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    other = delivery / leaf.home / "studies" / "99999" / "copy"
    other.mkdir(parents=True)
    content = (delivery / leaf.path / "IM00000").read_bytes()
    (other / "IM00000").write_bytes(content)
    (other / "IM00001").write_bytes(other_pixels((delivery / leaf.path / "IM00001").read_bytes()))
    for _ in range(2):
        report = adopt(world)
        assert codes(report) == {"duplicate": 1, "conflict": 1}
    assert world.counts().filed == 12
    row = next(row for row in world.rows(instance) if row.instance_uid == uid_of(content))
    assert world.path_of(row.instance_uid) == delivery / leaf.path / "IM00000"


def test_a_file_that_changed_and_one_that_went_are_told(world: World, delivery: Path) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    adopt(world)
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    path = delivery / leaf.path / "IM00002"
    path.write_bytes(other_pixels(path.read_bytes()))
    (delivery / leaf.path / "IM00003").unlink()
    touched = delivery / leaf.path / "IM00004"
    os.utime(touched, ns=(0, 0))
    report = adopt(world)
    assert codes(report) == {"changed": 1, "missing": 1}
    assert adopt(world).unchanged == 11
    row = next(row for row in world.rows(instance) if row.file_name == "IM00002")
    assert row.sha256 == sha256(path)
    moved = delivery / leaf.path / "renamed"
    (delivery / leaf.path / "IM00005").rename(moved)
    report = adopt(world)
    assert codes(report) == {"missing": 1}
    assert any(row.file_name == "renamed" for row in world.rows(instance))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_damage_in_what_we_filed_is_told_and_the_digest_kept(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "site")
    prepare_index(settings).close()
    world = World(settings)
    content = encoded(tiny("CT IMAGES", 0))
    send(world, content)
    path = world.path_of(uid_of(content))
    path.write_bytes(other_pixels(content))
    assert codes(adopt(world)) == {"changed": 1}
    assert world.rows(instance)[0].sha256 == hashlib.sha256(content).hexdigest()
    world.close()


def test_a_copy_in_a_delivery_is_left_when_the_instance_is_sent(
    world: World, delivery: Path
) -> None:
    deliver(delivery, 1, only=("CT IMAGES",))
    (leaf,) = (one for one in walk_tree(delivery) if isinstance(one, Leaf))
    content = (delivery / leaf.path / "IM00000").read_bytes()
    copy = delivery / leaf.path / f"{uid_of(content)}.dcm"
    copy.write_bytes(content)
    adopt(world)
    send(world, content)
    assert copy.read_bytes() == content


def test_another_archive_than_the_one_known_is_not_walked(world: World, delivery: Path) -> None:
    deliver(delivery, 1, only=("SCOUT",))
    (delivery / ".petct" / "id").unlink()
    with pytest.raises(StoreUnavailable, match="identity"):
        adopt(world)
    assert world.rows(instance) == []
