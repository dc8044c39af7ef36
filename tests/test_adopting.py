"""What the command `reindex` meets in a delivery, and what it says of it."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filing_world import encoded, settings_for, tiny
from running import petct
from test_reindex import adopt, changed, codes, deliver, delivery, send, untouched, world
from typer.testing import CliRunner

from daemon.cli.app import app
from workers import durable
from workers.adopting.reading import read_files
from workers.adopting.reindexing import reindex
from workers.adopting.walking import FindingCode, FoundFile
from workers.identity import give_identity, read_identity
from workers.index.engine import open_index
from workers.index.tables import folder, instance, series

__all__ = ["delivery", "world"]


def say(*words: object) -> str:
    """Run a command of ours in this process; return what it prints."""
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def everything(top: Path) -> list[tuple[str, int]]:
    return [(str(one), one.lstat().st_mtime_ns) for one in sorted(top.rglob("*"))]


def test_a_dry_run_tells_what_is_new_and_writes_nothing(tmp_path: Path, delivery: Path) -> None:
    count = deliver(delivery, 1, only=("CT IMAGES", "SCOUT"))
    (delivery / "note.txt").write_text("stray")
    root = tmp_path / "site"
    words = ("reindex", "--root", root, "--archive", delivery)
    before = everything(tmp_path)
    told = json.loads(say(*words, "--dry-run", "--json"))
    assert (told["files"], told["new"], told["unchanged"]) == (count, count, 0)
    assert told["to_look_at"] == [
        {"code": "stray", "path": "note.txt",
         "reason": "outside <PatientID>/<AccessionNumber>/studies"},
    ]  # fmt: skip
    assert everything(tmp_path) == before

    say(*words, "--no-pair", "--processes", "1")
    (changed_one, *_) = sorted(delivery.rglob("IM00001"))
    os.utime(changed_one, ns=(1, 1))
    told = json.loads(say(*words, "--dry-run", "--json"))
    assert (told["new"], told["unchanged"]) == (1, count - 1)
    assert f"1 to read, {count - 1} known" in say(*words, "--dry-run")


def test_every_finding_is_told_with_its_reason_whatever_its_name(
    tmp_path: Path, delivery: Path
) -> None:
    deliver(delivery, 1, only=("SCOUT",))
    content = next(iter(delivery.rglob("IM00000"))).read_bytes()
    hidden = delivery / os.fsdecode(b"\xe9") / "A" / "studies" / "1"
    hidden.mkdir(parents=True)
    (hidden / "IM1").write_bytes(content)
    (delivery / os.fsdecode(b"\xff.txt")).write_text("stray")
    elsewhere = tmp_path / "elsewhere" / "1" / "2" / "3" / "4"
    elsewhere.mkdir(parents=True)
    (elsewhere / "IM1").write_bytes(content)
    home = next(iter(delivery.glob("PHANTOM*/*")))
    (home / "studies" / "folder").symlink_to(elsewhere, target_is_directory=True)
    (home.parent / "B").mkdir()
    (home.parent / "B" / "studies").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (home.parent / "C").symlink_to(home / "nowhere")
    told = say("reindex", "--root", tmp_path / "site", "--archive", delivery, "--processes", "1")
    assert "2 new" in told
    lines = told.splitlines()[2:]
    assert sorted(line.partition(":")[0] for line in lines) == [
        "link", "link", "link", "not-adopted", "stray",
    ]  # fmt: skip
    assert "not-adopted: \\udce9/A/studies/1/IM1: the name is not UTF-8: rename it" in lines
    assert all(line.rpartition(": ")[2] for line in lines)


def test_a_file_that_goes_while_it_is_read_stops_nothing(delivery: Path) -> None:
    delivery.mkdir()
    (delivery / "there").write_bytes(encoded(tiny("CT IMAGES", 0)))
    (delivery / "folder").mkdir()
    files = [(".", FoundFile(name, 1, 1)) for name in ("gone", "folder", "there")]
    gone, is_folder, read = read_files(delivery, files)
    assert [one.code for one in (gone, is_folder) if not hasattr(one, "instance")] == [
        FindingCode.UNREADABLE, FindingCode.UNREADABLE,
    ]  # fmt: skip
    assert hasattr(read, "instance")


def test_twins_in_case_are_told_and_what_comes_later_is_not_merged(
    world: Any, delivery: Path
) -> None:
    contents = {}
    for number, patient in enumerate(("Case", "case"), 1):
        home = delivery / patient / "A" / "studies" / "1" / "2" / "3" / "4"
        home.mkdir(parents=True)
        for index in (0, 1):
            dataset = encoded(tiny("CT IMAGES", index, patient_number=number))
            contents[patient, index] = changed(dataset, PatientID=patient, AccessionNumber="A")
        (home / "IM1").write_bytes(contents[patient, 0])
    report = adopt(world)
    assert codes(report) == {"case-clash": 1}
    other = changed(contents["case", 1], SeriesInstanceUID="2.25.1", SOPInstanceUID="2.25.2")
    send(world, contents["Case", 1], contents["case", 1], other)
    homes = {row.id: row.home for row in world.rows(folder)}
    where = [homes[row.folder_id] for row in world.rows(instance)]
    assert where[:4] == ["Case/A", "case/A", "Case/A", "case/A"], "a known series is joined"
    assert where[4].startswith("case-")
    assert [row.instances for row in world.rows(series)] == [2, 2, 1]


def test_the_same_instance_with_other_pixels_in_one_folder_is_a_conflict(
    world: Any, delivery: Path
) -> None:
    home = delivery / "P" / "A" / "studies" / "1"
    home.mkdir(parents=True)
    content = changed(encoded(tiny("CT IMAGES", 0)), PatientID="P", AccessionNumber="A")
    (home / "1").write_bytes(content)
    (home / "2").write_bytes(content)
    (home / "3").write_bytes(content[:-1] + b"\1")
    report = adopt(world)
    assert (report.adopted, codes(report)) == (1, {"duplicate": 1, "conflict": 1})


def test_two_at_once_on_one_delivery_leave_one_whole_index(tmp_path: Path, delivery: Path) -> None:
    count = deliver(delivery, 1, 2, only=("CT IMAGES", "SCOUT"))
    before = untouched(delivery)
    root = tmp_path / "site"
    command = petct("reindex", "--root", root, "--archive", delivery, "--json", "--processes", "1")
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [(*one.communicate(timeout=100), one.returncode) for one in both]
    done = [json.loads(out) for out, _, code in ends if code == 0]
    refused = [err for _, err, code in ends if code != 0]
    assert sum(one["adopted"] for one in done) == count
    assert all("another reindex of this root is running" in err for err in refused)
    assert len(done) + len(refused) == 2
    again = json.loads(say(*command[command.index("reindex") :]))
    assert (again["adopted"], again["unchanged"], again["findings"]) == (0, count, {})
    assert untouched(delivery) == before


def test_two_roots_at_once_on_one_delivery_are_refused_in_words(
    tmp_path: Path, delivery: Path
) -> None:
    count = deliver(delivery, 1, only=("SCOUT",))
    identity = give_identity(delivery)
    words = ["reindex", "--root", str(tmp_path / "b"), "--archive", str(delivery)]
    with open(delivery / ".petct" / "id", "r+b") as held_by_another:
        assert durable.try_lock(held_by_another.fileno())
        done = CliRunner().invoke(app, words)
        assert str(done.exception) == f"a reindex of another root is at work in {delivery}"
    assert json.loads(say(*words, "--json", "--processes", "1"))["adopted"] == count
    assert read_identity(delivery) == identity


def test_two_writers_of_one_folder_count_it_once(world: Any, delivery: Path) -> None:
    """As two hosts may be, which share a PostgreSQL index and no lock."""
    deliver(delivery, 1, only=("CT IMAGES",))

    def go(_: int) -> int:
        index = open_index(settings_for(world.layout.root, paths={"archive": str(delivery)}))
        try:
            return reindex(index, world.settings, processes=1).adopted
        finally:
            index.close()

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(go, range(2))) == 12
    assert [row.instances for row in world.rows(series)] == [12]
    assert len(world.rows(instance)) == 12
