"""Archives in a drop: their members are filed, and what cannot be read is kept and told."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import odd_archives as odd
import pytest
from filing_world import (
    FOLDER,
    BadSectors,
    World,
    a_world,
    changed,
    die,
    encoded,
    in_child,
    make_world,
    tiny,
    uid_of,
)  # fmt: skip

from workers import durable, limits
from workers.archives.members import Bounds
from workers.archives.opening import open_archive
from workers.errors import StoreUnavailable
from workers.filing import expanding
from workers.filing.ahead import Ahead
from workers.filing.expanding import Expansion, expand_entry, waiting_archives
from workers.index.tables import arrival, event, series

pytestmark = pytest.mark.both_databases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path / "site")
    yield world
    world.close()


def slices(count: int = 3, first: int = 0) -> dict[str, bytes]:
    return {f"t1w/IM{n}": encoded(tiny("CT IMAGES", n)) for n in range(first, first + count)}


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def packed(suffix: str, files: dict[str, bytes]) -> bytes:
    if suffix == ".zip":
        return zipped(files)
    data = tar(files)
    if suffix in (".tgz", ".tar.gz"):
        return gzip.compress(data, 1)
    return bz2.compress(data, 1) if suffix == ".tar.bz2" else data


def expand_all(world: World, **options: Any) -> list[Expansion]:
    found = [
        expand_entry(world.index, world.settings, entry, **options)
        for entry in list(waiting_archives(world.settings))
    ]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.gz", ".tar.bz2", ".zip", ".TAR.GZ"])
def test_every_kind_of_archive_is_filed_and_goes(world: World, suffix: str) -> None:
    files = slices()
    world.put({f"scan{suffix}": packed(suffix.lower(), files)})
    world.file()
    assert world.outcomes() == {}, "a worker leaves it to whoever expands"
    (found,) = expand_all(world)
    assert (found.members, found.findings) == (3, [])
    world.file_all()
    assert world.outcomes() == {"expanded": 1, "filed": 3}
    assert sorted(world.tree().values()) == sorted(files.values())
    world.check()


def test_what_lies_in_archives_of_archives_and_beside_them_is_filed(world: World) -> None:
    inner = packed(".tar.gz", slices(2, 3))
    world.put(
        {
            "input/EPL31_LHS_0001/imaging/EPL31_LHS_0001_01/dwi_scan/dwi_scan.tar.gz": packed(
                ".tar.gz", slices(2) | {"deep/inner.tar.gz": inner, "README": b"words"}
            ),
            "input/EPL31_LHS_0001/imaging/EPL31_LHS_0001_01/loose.dcm": encoded(tiny("PET AC")),
        }
    )
    world.file_all()
    expand_all(world)
    world.file_all()
    assert world.outcomes() == {"expanded": 1, "filed": 5, "quarantined": 1}
    assert {(row.subject, row.session) for row in world.rows(series)} == {
        ("EPL31_LHS_0001", "EPL31_LHS_0001_01")
    }


def test_what_cannot_be_read_is_told_and_the_archive_is_kept(world: World) -> None:
    whole = packed(".tar", slices(4))
    (name,) = world.put({"cut.tar": whole[: len(whole) // 2]})
    (found,) = expand_all(world)
    world.file_all()
    assert not found.is_whole
    assert 0 < found.members < 4
    assert world.outcomes() == {"quarantined": 1, "filed": found.members}
    row = world.outcome_of(name)
    assert row.code == "archive"
    assert "not read" in row.reason
    assert world.kept_bytes(name) == whole[: len(whole) // 2]
    world.check()


def test_an_attack_leaves_nothing_outside(world: World, tmp_path: Path) -> None:
    (content, *_) = slices().values()
    evil = {"../../../../evil.dcm": content, "/etc/evil": encoded(tiny("PET AC", 1)),
            "a/../../b": encoded(tiny("PET AC", 2))}  # fmt: skip
    world.put({"evil.zip": zipped(evil), "evil.tar": tar(evil)})
    before = {path for path in tmp_path.rglob("*") if "site" not in path.parts}
    expand_all(world)
    world.file_all()
    assert world.counts().filed == 3
    assert {path for path in tmp_path.rglob("*") if "site" not in path.parts} == before
    assert not list(tmp_path.rglob("*evil*.dcm"))
    world.check()


def test_what_only_claims_to_be_an_archive_is_filed_or_set_aside(world: World) -> None:
    dicom, junk = world.put({"scan.zip": encoded(tiny("CT IMAGES")), "junk.tar": b"x" * 4096})
    assert expand_all(world) == []
    world.file()
    assert world.outcome_of(dicom).outcome == "filed"
    assert world.outcome_of(junk).outcome == "quarantined"


@pytest.mark.parametrize("step", ["write_new", "rename_new", "fsync_folder"])
@pytest.mark.parametrize("after", [1, 3])
def test_killed_while_it_is_expanded_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    files = slices(4)
    world.put({"scan.tar": tar(files)})
    world.let_go()
    real, calls = getattr(durable, step), []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            die()
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(durable, step, dying)
        assert in_child(lambda: expand_all(world)) == -9
    world.file_all()  # some members are filed before the rest is expanded
    expand_all(world)
    world.file_all()
    assert world.outcomes() == {"expanded": 1, "filed": 4}
    assert sorted(world.tree().values()) == sorted(files.values())
    assert len([row for row in world.rows(event) if row.kind == "expanded"]) == 1
    world.check()


def test_the_same_archive_twice_gives_duplicates(world: World) -> None:
    for _ in range(2):
        world.put({"scan.zip": zipped(slices())}, FOLDER)
        expand_all(world)
        world.file_all()
    assert world.outcomes() == {"expanded": 2, "filed": 3, "duplicate": 3}


def test_without_room_it_waits_and_then_goes_on(world: World) -> None:
    world.put({"scan.tar": tar(slices(4))})
    answers = iter([None, None, "the spool is full"])
    with pytest.raises(StoreUnavailable, match="full"):
        expand_all(world, refusal=lambda: next(answers))
    world.file_all()
    assert world.counts().filed == 2
    offered: list[str] = []
    (found,) = expand_all(world, offer=lambda entry: offered.append(entry.path))
    world.file_all()
    assert offered == ["scan.tar/t1w/IM2", "scan.tar/t1w/IM3"], "what is filed comes no second time"
    assert found.members == 4
    assert world.outcomes() == {"expanded": 1, "filed": 4}


def test_names_in_any_bytes_are_told_and_stop_nothing(world: World) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8") as archive:
        link = tarfile.TarInfo("M\udcfcller")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    world.put({"a.tar": buffer.getvalue() + tar(slices(1)), "b.tar": tar(slices(2))})
    assert len(expand_all(world)) == 2
    world.file_all()
    assert world.outcomes()["filed"] == 2
    assert not world.waiting()


def test_members_are_offered_as_they_come(world: World) -> None:
    world.put({"scan.tar": tar(slices(3))})
    offered: list[str] = []

    def offer(entry: Any) -> None:
        offered.append(entry.path)
        assert uid_of(entry.where(world.layout).read_bytes())

    expand_all(world, offer=offer)
    assert offered == [f"scan.tar/t1w/IM{n}" for n in range(3)]


def test_it_runs_no_further_ahead_than_filing_keeps_up(world: World) -> None:
    files = slices(12)
    world.put({"scan.tar": tar(files)})
    lying: list[int] = []

    def pause() -> None:
        assert len(lying) < 20, "filed, and yet nothing comes"
        lying.append(len(world.waiting()) - 1)  # beside the archive itself
        world.file_all()

    most = 3 * max(map(len, files.values()))
    (found,) = expand_all(world, pause=pause, ahead=Ahead(world.layout, most_bytes=most))
    assert found.members == 12
    assert len(lying) > 1
    assert max(lying) <= 4
    world.file_all()
    assert world.outcomes() == {"expanded": 1, "filed": 12}


def test_many_small_members_wait_for_filing_too(world: World) -> None:
    world.put({"scan.tar": tar({f"{n}": b"x" for n in range(6)})})
    paused: list[int] = []

    def pause() -> None:
        paused.append(len(world.waiting()) - 1)
        world.file_all()

    expand_all(world, pause=pause, ahead=Ahead(world.layout, most_entries=2))
    assert paused == [3]


def test_a_member_that_cannot_be_filed_holds_up_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = slices(4)
    world.put({"scan.tar": tar(files)})
    broken = f"scan.tar/{min(files)}"
    BadSectors(monkeypatch, broken)
    tries: list[int] = []

    def pause() -> None:
        tries.append(len(tries))
        assert len(tries) < 20, "what cannot be filed is waited for"
        for name in world.waiting():
            with suppress(OSError):
                world.file([name])

    most = max(map(len, files.values())) // 2  # each member alone is beyond it
    (found,) = expand_all(world, pause=pause, ahead=Ahead(world.layout, most_bytes=most))
    assert found.members == 4
    pause()
    assert [name.path for name in world.waiting()] == [broken]
    assert world.outcomes() == {"expanded": 1, "filed": 3}


def test_a_stop_ends_a_wait_for_filing_and_the_next_start_goes_on(world: World) -> None:
    world.put({"scan.tar": tar(slices(4))})
    stopped: list[bool] = []

    def refusal() -> str | None:
        return "a stop was asked for" if stopped else None

    with pytest.raises(StoreUnavailable, match="stop"):
        expand_all(
            world,
            refusal=refusal,
            pause=lambda: stopped.append(True),
            ahead=Ahead(world.layout, most_entries=1),
        )
    assert len(world.waiting()) == 3
    expand_all(world)
    world.file_all()
    assert world.outcomes() == {"expanded": 1, "filed": 4}


GOOD = {"good.dcm": encoded(tiny("PET AC", 7))}


def damaged_zip() -> bytes:
    content = bytearray(odd.zipped(GOOD | {"x.dcm": bytes(900)}, compression=zipfile.ZIP_STORED))
    content[content.index(bytes(900)) + 5] = 1
    return bytes(content)


def linked_tar() -> bytes:
    heads = (odd.tar_header("link.dcm", 0, tarfile.SYMTYPE, "/etc/passwd")
             + odd.tar_header("hard.dcm", 0, tarfile.LNKTYPE, "good.dcm")
             + odd.tar_header("null", 0, tarfile.CHRTYPE))  # fmt: skip
    return heads + tar(GOOD)


BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a member of zeros": (
        "a.zip", lambda: odd.zipped(GOOD | {"b.dcm": bytes(96 << 20)}), "250 times its size",
    ),
    "a tar of zeros": (
        "a.tgz", lambda: gzip.compress(tar(GOOD | {"b": bytes(96 << 20)}), 6), "250 times its size",
    ),
    "zips in zips": (
        "a.zip", lambda: odd.zipped(GOOD | {"42.zip": odd.forty_two()}), "4 levels deep",
    ),
    "too deep": (
        "a.tgz", lambda: odd.packed(".tgz", GOOD | {"a.tgz": odd.nested(9, ".tgz")}), "4 levels",
    ),
    "links and devices": ("a.tar", linked_tar, "link.dcm: a link"),
    "links in a zip": (
        "a.zip", lambda: odd.zipped(GOOD | {"in.zip": odd.linked_zip()}), "link.dcm: a link",
    ),
    "encrypted": (
        "a.zip", lambda: odd.zipped(GOOD | {"in.zip": odd.encrypted_zip()}), "it is encrypted",
    ),
    "cut": (
        "a.tar.gz", lambda: gzip.compress(tar(GOOD | {"n.dcm": os.urandom(20_000)}))[:-9000],
        "data is cut",
    ),
    "damaged": ("a.zip", damaged_zip, "x.dcm: a member's checksum"),
    "one inside is damaged": (
        "a.tar", lambda: tar(GOOD | {"in.tgz": gzip.compress(tar(slices(1)))[:40]}), "in.tgz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_of_a_bad_archive_the_readable_is_filed_and_it_is_kept_with_its_reason(
    world: World, what: str
) -> None:
    name, make, words = BAD[what]
    content = make()
    (entry,) = world.put({name: content})
    (found,) = expand_all(world)
    world.file_all()
    assert not found.is_whole
    assert GOOD["good.dcm"] in world.tree().values()
    row = world.outcome_of(entry)
    assert (row.outcome, row.code) == ("quarantined", "archive")
    assert words in row.reason
    assert words in world.reason_of(entry)["reason"]
    assert world.kept_bytes(entry) == content
    world.check()


def test_an_archive_of_too_many_members_is_taken_as_far_as_the_limit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Bounds(members=replace(limits.MEMBERS, maximum=3))
    monkeypatch.setattr(expanding, "open_archive", partial(open_archive, bounds=few))
    (entry,) = world.put({"a.tgz": packed(".tgz", slices(5))})
    expand_all(world)
    world.file_all()
    assert world.outcomes() == {"quarantined": 1, "filed": 3}
    assert "more than 3 members" in world.outcome_of(entry).reason


def test_what_a_cut_archive_lacked_comes_with_the_whole_one(world: World) -> None:
    files = slices(4)
    whole = packed(".tar.gz", files)
    world.put({"scan.tar.gz": whole[: len(whole) // 2]})
    expand_all(world)
    first = world.file_all().filed
    assert 0 < first < 4
    world.put({"scan.tar.gz": whole})
    expand_all(world)
    world.file_all()
    assert world.outcomes() == {"quarantined": 1, "expanded": 1, "filed": 4, "duplicate": first}


def test_of_a_de_identified_source_no_members_name_is_told(tmp_path: Path) -> None:
    source = {"folder": FOLDER.folder, "deidentify": "dicognito"}
    with a_world(tmp_path / "site", sources=[source]) as world:
        inner = odd.encrypted_zip().replace(b"secret.dcm", b"DOEJAN.dcm")
        (entry,) = world.put({"DOEJAN.zip": odd.zipped(GOOD | {"DOEJAN.zip": inner})})
        expand_all(world)
        world.file_all()
        assert world.outcome_of(entry).code == "archive"
        assert world.counts().filed == 1
        world.close()
        told = b"".join(path.read_bytes() for path in world.layout.root.glob("index.sqlite*"))
        told += b"".join(
            path.read_bytes() for path in world.layout.archive.rglob("*") if path.is_file()
        )
        assert b"DOEJAN" not in told


def test_members_of_an_archive_of_nobody_knows_where_are_kept_as_they_came(tmp_path: Path) -> None:
    source = {"folder": FOLDER.folder, "deidentify": "dicognito"}
    with a_world(tmp_path / "site", sources=[source]) as world:
        named = changed(encoded(tiny("CT IMAGES")), PatientID="DOEJAN")
        inner = odd.encrypted_zip().replace(b"secret.dcm", b"DOEJAN.dcm")
        (entry,) = world.put({"scan.tar": tar({"a.dcm": named, "DOEJAN.zip": inner})})
        (world.layout.ready / entry.batch / "batch.json").unlink()
        expand_all(world)
        world.file_all()
        assert world.tree() == {}
        assert {row.code for row in world.rows(arrival)} >= {"archive", "identifiable"}
        world.close()
        told = b"".join(path.read_bytes() for path in world.layout.root.glob("index.sqlite*"))
        assert b"DOEJAN" not in told


@pytest.mark.parametrize("name", ["in.tar/.", "in.tar/..", "in.tar/"])
def test_no_name_hides_an_archive_from_the_limit_of_nesting(world: World, name: str) -> None:
    deep = tar({"1.dcm": encoded(tiny("CT IMAGES"))})
    for _ in range(limits.NESTED.maximum):
        deep = tar({name: deep})
    (entry,) = world.put({"scan.tar": deep})
    expand_all(world)
    assert list(waiting_archives(world.settings)) == [], "none is expanded as if it had come alone"
    assert world.outcome_of(entry).code == "archive"
