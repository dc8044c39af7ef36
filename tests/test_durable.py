"""File operations that survive a power cut, and the journal."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filing_world import MEMORY, die, end_of_child, in_child, start_child

from workers import durable, identity
from workers.durable import make_folders
from workers.errors import StoreUnavailable
from workers.filing.journal import append_facts, read_facts
from workers.identity import check_identity, give_identity, read_identity


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record which names are fsynced, opened for writing, and renamed, in order."""
    calls: list[tuple[str, str]] = []
    original_fsync, original_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        original_fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        calls.append(("replace", str(target)))
        original_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_a_new_file_is_durable_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    assert durable.write_new(tmp_path / "a", (b"one", memoryview(b"two"))) == 6
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert calls == [("fsync", str(tmp_path / "a"))]
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "a", (b"other",))
    assert (tmp_path / "a").read_bytes() == b"onetwo"


def test_a_file_is_replaced_whole_and_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    durable.replace_file(tmp_path / "a", b"one")
    assert [kind for kind, _ in calls] == ["fsync", "replace", "fsync"]
    assert calls[-1] == ("fsync", str(tmp_path))
    assert os.listdir(tmp_path) == ["a"]


def test_new_folders_are_durable_up_to_the_first_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    durable.make_folders(tmp_path / "a" / "b" / "c")
    assert [name for _, name in calls] == [
        str(tmp_path),
        str(tmp_path / "a"),
        str(tmp_path / "a" / "b"),
    ]
    calls.clear()
    durable.make_folders(tmp_path / "a" / "b" / "c")
    assert calls == []


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_what_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100)

    def failing(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, where, failing)
    with pytest.raises(OSError, match="full"):
        durable.write_new(tmp_path / "a", (b"one",))
    with pytest.raises(OSError, match="full"):
        durable.copy_new(tmp_path / "source", tmp_path / "b")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("what", ["write_new", "copy_new"])
def test_a_write_that_takes_only_a_part_is_an_error_or_whole(tmp_path: Path, what: str) -> None:
    (tmp_path / "source").write_bytes(b"x" * 5000)
    writing: dict[str, Callable[[], object]] = {
        "write_new": lambda: durable.write_new(tmp_path / "a", (b"x" * 5000,)),
        "copy_new": lambda: durable.copy_new(tmp_path / "source", tmp_path / "a"),
    }

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        with pytest.raises(OSError) as caught:
            writing[what]()
        assert caught.value.errno == errno.EFBIG

    assert in_child(limited) == 0
    assert not (tmp_path / "a").exists()


def test_a_copy_goes_to_another_file_system_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    target = MEMORY / f"copy-{os.getpid()}"
    try:
        durable.copy_new(tmp_path / "source", target)
        assert target.read_bytes() == (tmp_path / "source").read_bytes()
        with pytest.raises(FileExistsError):
            durable.copy_new(tmp_path / "source", target)
    finally:
        target.unlink(missing_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "source")
    with pytest.raises(OSError) as caught:
        durable.copy_new(tmp_path / "link", tmp_path / "b")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("modern", [True, False])
def test_a_rename_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modern: bool
) -> None:
    if not modern:
        monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        durable.rename_new(tmp_path / "a", tmp_path / "b")
    durable.rename_new(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").read_bytes() == b"b"
    assert (tmp_path / "c").read_bytes() == b"a"
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert durable.exchange(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        durable.exchange(tmp_path / "a", tmp_path / "none")


def test_only_old_things_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    old, new, held = (tmp_path / name for name in ("old", "new", "held"))
    for path in (old, new, held):
        path.write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    (tmp_path / "link").symlink_to(new)
    for path in (old, held, tmp_path / "folder"):
        os.utime(path, (1000, 1000))
    with held.open("rb") as file:
        assert durable.try_lock(file.fileno())
        for name in os.listdir(tmp_path):
            durable.remove_stale(tmp_path / name, 2000)
        assert sorted(os.listdir(tmp_path)) == ["held", "link", "new"]
    assert durable.remove_stale(held, 2000)
    assert not durable.remove_stale(held, 2000)


# journal ------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / ".petct").mkdir()
    return tmp_path


def test_a_torn_last_line_costs_only_itself(archive: Path) -> None:
    journal = archive / ".petct" / "facts.jsonl"
    append_facts(archive, [{"kind": "source", "n": 1}, {"kind": "source", "n": 2}])
    with journal.open("ab") as file:
        file.write(b'{"kind":"sou')
    append_facts(archive, [{"kind": "source", "n": 3}])
    assert [fact["n"] for fact in read_facts(archive)] == [1, 2, 3]


@pytest.mark.parametrize("rubbish", [b"\xff\xfe\n", b"[1]\n", b"\0\0\0\0", b"null\n"])
def test_lines_that_are_no_facts_are_skipped(archive: Path, rubbish: bytes) -> None:
    append_facts(archive, [{"n": 1}])
    with (archive / ".petct" / "facts.jsonl").open("ab") as file:
        file.write(rubbish)
    append_facts(archive, [{"n": 2}])
    assert [fact["n"] for fact in read_facts(archive)] == [1, 2]


def test_appends_of_several_processes_never_mix(archive: Path) -> None:
    def writer(name: int) -> Callable[[], None]:
        def write() -> None:
            for number in range(20):
                append_facts(archive, [{"w": name, "n": number, "x": "y" * 3000}] * 2)

        return write

    children = [start_child(writer(name)) for name in range(3)]
    assert [end_of_child(child) for child in children] == [0] * 3
    facts = list(read_facts(archive))
    assert len(facts) == 120
    for name in range(3):
        mine = [fact["n"] for fact in facts if fact["w"] == name]
        assert mine == sorted(mine)


def test_a_journal_that_could_not_be_written_whole_is_an_error(archive: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError) as caught:
            append_facts(archive, [{"x": "y" * 2000}])
        assert caught.value.errno == errno.EFBIG

    assert in_child(limited) == 0
    append_facts(archive, [{"n": 1}])
    assert [fact.get("n") for fact in read_facts(archive)] == [1]


def test_without_a_journal_there_are_no_facts(archive: Path) -> None:
    assert list(read_facts(archive)) == []
    append_facts(archive, [])
    assert not (archive / ".petct" / "facts.jsonl").exists()


# identity -----------------------------------------------------------------------------------------


def test_an_identity_once_given_is_kept(tmp_path: Path) -> None:
    given = give_identity(tmp_path / "store")
    assert give_identity(tmp_path / "store") == given
    check_identity(tmp_path / "store", given, "archive")
    assert read_identity(tmp_path / "none") is None


def test_of_two_that_give_an_identity_at_once_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, mode: int) -> None:
        make_folders(path, mode)
        if path.name == ".petct":
            with suppress(FileExistsError):
                durable.write_new(path / "id", (b"the first\n",))

    monkeypatch.setattr(identity, "make_folders", slow)
    assert give_identity(tmp_path / "store") == "the first"
    assert os.listdir(tmp_path / "store/.petct") == ["id"]
    (tmp_path / "store/.petct/id").write_bytes(b"")
    given = give_identity(tmp_path / "store")
    assert given == read_identity(tmp_path / "store") != "the first"


@pytest.mark.parametrize("content", [None, b"", b"other\n", b"\xff\n"])
def test_another_store_is_refused(tmp_path: Path, content: bytes | None) -> None:
    given = give_identity(tmp_path)
    path = tmp_path / ".petct" / "id"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match="archive at"):
        check_identity(tmp_path, given, "archive")


def test_a_process_killed_while_it_writes_leaves_a_name_that_is_removed_later(
    tmp_path: Path,
) -> None:
    def chunks() -> Any:
        yield b"part"
        die()

    code = in_child(lambda: durable.write_new(tmp_path / "a", chunks()) and None)
    assert code == -signal.SIGKILL
    os.utime(tmp_path / "a", (1000, 1000))
    assert durable.remove_stale(tmp_path / "a", 2000)
    assert os.listdir(tmp_path) == []
