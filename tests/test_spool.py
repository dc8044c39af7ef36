"""Batches of the spool: durable, never doubled, removed when they are empty."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from filing_world import FOLDER, SENDER, die, in_child

from config.layout import Layout
from config.settings import Settings
from workers import durable
from workers.durable import remove_stale
from workers.spool.batches import (
    BatchSource,
    BatchWriter,
    EntryName,
    batch_names,
    entries_of,
    new_batch_name,
    oldest_waiting,
    read_source,
    remove_if_empty,
    waiting_entries,
)


@pytest.fixture
def layout(settings: Settings) -> Layout:
    return settings.layout


def waiting(layout: Layout) -> list[str]:
    return [entry.path for entry in waiting_entries(layout)]


PREPARED = pytest.mark.parametrize("prepared", [False, True], ids=["made", "prepared"])


@PREPARED
def test_an_entry_is_durable_before_it_is_named(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, prepared: bool
) -> None:
    calls: list[str] = []
    original_fsync, original_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        calls.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}"))
        original_fsync(descriptor)

    def rename(source: object, target: object) -> None:
        calls.append(f"rename {target}")
        original_rename(source, target)  # type: ignore[arg-type]

    with BatchWriter(layout, SENDER) as batch:
        if prepared:
            batch.prepare()
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        entry = batch.publish((b"one", b"two"))
        temporary = layout.incoming / f"{batch.name}.{entry.path}"
        assert calls == [
            f"fsync {temporary}",
            f"rename {entry.where(layout)}",
            f"fsync {batch.folder}",
        ]
    assert entry.where(layout).read_bytes() == b"onetwo"


@PREPARED
def test_an_entry_written_in_pieces_waits_only_when_it_is_published(
    layout: Layout, prepared: bool
) -> None:
    with BatchWriter(layout, SENDER) as batch:
        begun = []
        for _ in range(2):
            if prepared:
                batch.prepare()
            begun.append(batch.begin())
        entry, given_up = begun
        for one in (entry, given_up):
            one.write(b"first ")
            one.write(memoryview(b"second"))
        assert waiting(layout) == []
        temporary = layout.incoming / f"{batch.name}.{entry.name.path}"
        assert not remove_stale(temporary, older_than=time.time() + 60)  # it is locked
        assert entry.publish() == entry.name
        entry.abandon()  # too late: nothing happens
        given_up.abandon()
        assert [one.where(layout).read_bytes() for one in waiting_entries(layout)] == [
            b"first second"
        ]
        assert not os.listdir(layout.incoming)


def test_a_file_without_a_name_gets_one_that_was_free_or_is_gone(tmp_path: Path) -> None:
    nameless = durable.create_nameless(tmp_path, 0o640)
    os.utime(nameless, (0, 0))
    assert os.listdir(tmp_path) == []
    named = durable.name_new(nameless, tmp_path / "a")
    durable.write_whole(named, b"one")
    assert os.readlink(f"/proc/self/fd/{named}") == str(tmp_path / "a")
    assert not durable.remove_stale(tmp_path / "a", time.time() + 60)  # it is locked
    os.close(named)
    assert not durable.remove_stale(tmp_path / "a", time.time() - 60)  # and not old
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o640
    other = durable.create_nameless(tmp_path)
    with pytest.raises(FileExistsError):
        durable.name_new(other, tmp_path / "a")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_was_prepared_is_no_entry_and_goes_with_its_batch(layout: Layout) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with BatchWriter(layout, SENDER) as batch:
        batch.prepare()
        batch.prepare()  # one is enough
        assert len(os.listdir("/proc/self/fd")) == before + 2  # that, and the batch itself
        assert waiting(layout) == os.listdir(layout.incoming) == []
    batch.prepare()  # too late: nothing happens
    assert len(os.listdir("/proc/self/fd")) == before
    assert batch_names(layout) == []


def test_where_no_file_can_be_without_a_name_entries_are_made_when_they_begin(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **_options: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    with BatchWriter(layout, SENDER) as batch:
        batch.prepare()
        monkeypatch.setattr(os, "link", unknown)  # no /proc, or another file system by now
        one = batch.publish((b"one",))
        monkeypatch.setattr(durable, "create_nameless", unknown)
        batch.prepare()
        other = batch.publish((b"other",))
    assert one.where(layout).read_bytes() == b"one"
    assert other.where(layout).read_bytes() == b"other"
    assert os.listdir(layout.incoming) == []


def test_the_description_is_there_before_the_first_entry(layout: Layout) -> None:
    with BatchWriter(layout, SENDER) as batch:
        assert read_source(layout, batch.name) == SENDER
        assert json.loads((batch.folder / "batch.json").read_text())["calling_ae"] == "PACS"


@pytest.mark.parametrize(
    "path", ["", ".", "..", "a/../b", "/a", "a//b", "a/", "batch.json", "a\0b", "./a"]
)
def test_a_path_that_leaves_the_batch_is_refused(layout: Layout, path: str) -> None:
    file = layout.incoming / "file"
    file.write_bytes(b"x")
    with BatchWriter(layout, FOLDER) as batch, pytest.raises(ValueError, match="path"):
        batch.adopt(file, path)
    assert file.exists()


def test_a_path_is_taken_once(layout: Layout) -> None:
    with BatchWriter(layout, FOLDER) as batch:
        for expected in (True, False):
            file = layout.incoming / "file"
            file.write_bytes(b"x")
            assert batch.has("a/b/c") is not expected
            if expected:
                batch.adopt(file, "a/b/c")
            else:
                with pytest.raises(FileExistsError):
                    batch.adopt(file, "a/b/c")
    assert waiting(layout) == ["a/b/c"]


def test_an_empty_batch_goes_with_its_writer_and_a_full_one_stays(layout: Layout) -> None:
    with BatchWriter(layout, SENDER):
        pass
    assert batch_names(layout) == []
    with BatchWriter(layout, SENDER) as batch:
        entry = batch.publish((b"x",))
        assert not remove_if_empty(layout, batch.name)
    assert not remove_if_empty(layout, batch.name)
    entry.where(layout).unlink()
    assert remove_if_empty(layout, batch.name)
    assert remove_if_empty(layout, batch.name)
    assert os.listdir(layout.ready) == []


def test_a_batch_that_somebody_writes_is_not_removed(layout: Layout) -> None:
    with BatchWriter(layout, SENDER) as batch:
        assert not remove_if_empty(layout, batch.name)
        assert batch.folder.is_dir()
        batch.publish((b"x",))


def test_a_batch_with_only_empty_folders_is_empty(layout: Layout) -> None:
    with BatchWriter(layout, FOLDER) as batch:
        file = layout.incoming / "file"
        file.write_bytes(b"x")
        entry = batch.adopt(file, "a/b/c")
    entry.where(layout).unlink()
    (batch.folder / "d" / "e").mkdir(parents=True)
    assert remove_if_empty(layout, batch.name)


def test_many_threads_publish_into_one_batch(layout: Layout) -> None:
    with BatchWriter(layout, SENDER) as batch:
        threads = [
            threading.Thread(target=lambda: [batch.publish((b"x",)) for _ in range(10)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert waiting(layout) == [f"{number:08d}" for number in range(1, 81)]


def test_what_could_not_be_published_leaves_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "full")

    with BatchWriter(layout, SENDER) as batch:
        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="full"):
            batch.publish((b"x",))
        with pytest.raises(OSError, match="full"):
            BatchWriter(layout, SENDER)
        monkeypatch.undo()
    assert os.listdir(layout.incoming) == []
    assert os.listdir(layout.ready) == []


def test_a_batch_is_taken_up_again_after_its_writer_was_killed(layout: Layout) -> None:
    name = new_batch_name(FOLDER)

    def work() -> None:
        batch = BatchWriter(layout, FOLDER, name)
        file = layout.incoming / "file"
        file.write_bytes(b"x")
        batch.adopt(file, "a")
        die()

    assert in_child(work) == -9
    with BatchWriter(layout, FOLDER, name) as batch:
        assert batch.has("a")
        with pytest.raises(ValueError, match="numbers"):
            batch.publish((b"x",))
        with pytest.raises(BlockingIOError):
            BatchWriter(layout, FOLDER, name)


def test_names_of_entries_are_hashes_that_tell_nobody(layout: Layout) -> None:
    one, other = EntryName("f1", "Doe^John/1.dcm"), EntryName("f1", "Doe^John/2.dcm")
    assert one.identifier != other.identifier
    assert EntryName("f1Doe^John", "x").identifier != EntryName("f1", "Doe^Johnx").identifier
    assert len(one.identifier) == 32
    assert "Doe" not in one.identifier
    source = BatchSource(kind="folder", folder="/data/Doe^John")
    assert "Doe" not in source.key
    assert one.where(layout) == layout.ready / "f1" / "Doe^John" / "1.dcm"


def test_the_oldest_entry_tells_since_when_something_waits(layout: Layout) -> None:
    assert oldest_waiting(layout) is None
    with BatchWriter(layout, SENDER) as batch:
        first = batch.publish((b"x",))
        batch.publish((b"y",))
    assert oldest_waiting(layout) == os.stat(first.where(layout)).st_ctime


def test_folders_and_undecodable_names_are_walked(layout: Layout) -> None:
    with BatchWriter(layout, FOLDER) as batch:
        for number, path in enumerate(["b/2", "a/1", "a/z/0", os.fsdecode(b"\xff\xfe")]):
            file = layout.incoming / f"file{number}"
            file.write_bytes(b"x")
            batch.adopt(file, path)
    found = list(entries_of(layout, batch.name))
    assert sorted(entry.path for entry in found) == sorted(
        ["b/2", "a/1", "a/z/0", os.fsdecode(b"\xff\xfe")]
    )
    assert len({entry.identifier for entry in found}) == 4
    assert list(entries_of(layout, "none")) == []


@pytest.mark.parametrize(
    "description",
    [b"", b"[1]", b"[" * 5000, b'{"kind": 5}', b'{"kind": "folder", "folder": ["a"]}',
     b'{"kind": "folder", "folder": "\\ud800"}', b'{"kind": "folder", "calling_ae": "\\u0000"}',
     b'{"kind": "elsewhere"}', b"{}", b"\xff\xfe"],
)  # fmt: skip
def test_a_damaged_description_of_a_batch_is_told_as_such(
    settings: Settings, description: bytes
) -> None:
    folder = settings.layout.ready / "f1"
    folder.mkdir()
    (folder / "batch.json").write_bytes(description)
    with pytest.raises(ValueError):
        read_source(settings.layout, "f1")
