"""What an intake tells the audit: bounded, never in the way, each once."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import wait_until

from config.settings import Settings
from workers import durable
from workers.spool import notes
from workers.spool.notes import Gathering, Note, NoteWriter, remove_notes, take_notes

REFUSED = Note("association-rejected", "2026-01-01T00:00:00.000Z", "PACS>US@10.0.0.7")


@pytest.fixture
def writer(settings: Settings) -> Iterator[NoteWriter]:
    one = NoteWriter(settings.layout, "receiver")
    yield one
    one.close()


def written(settings: Settings) -> list[Note]:
    return list(take_notes(settings.layout))


def test_a_note_is_on_disk_a_moment_later(settings: Settings, writer: NoteWriter) -> None:
    writer.note("association-rejected", "PACS>US@10.0.0.7", reason=3)
    (note,) = wait_until(lambda: written(settings))  # type: ignore[misc]
    assert (note.kind, note.source, note.count) == ("association-rejected", "PACS>US@10.0.0.7", 1)
    assert note.details == {"reason": 3}
    (file,) = settings.layout.notes.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_equal_notes_within_a_minute_are_two_the_first_and_the_rest() -> None:
    gathering = Gathering()
    for second in range(50):
        gathering.add(REFUSED, second)
        if second == 0:
            assert [note.count for note in gathering.take_due(0.1)] == [1]
    assert gathering.take_due(59.9) == []
    assert gathering.next_due(59.9) == 60.0
    assert [note.count for note in gathering.take_due(60.0)] == [49]
    assert gathering.next_due(60.0) is None


def test_a_flood_of_different_notes_is_counted_and_not_kept() -> None:
    gathering = Gathering()
    for number in range(5000):
        gathering.add(Note("association-rejected", REFUSED.at, f"AE{number}"), 0.0)
    kept = gathering.take_due(1.0) + gathering.take_due(60.0)
    assert sum(note.count for note in kept) == 5000
    assert len(kept) <= notes.MOST_KINDS + 2
    assert sum(note.count for note in kept if note.kind == notes.LEFT_OUT) == 4000


def test_what_is_left_is_written_at_the_end(settings: Settings) -> None:
    writer = NoteWriter(settings.layout, "watcher")
    for _ in range(7):
        writer.note("intake-refused", reason="full")
    writer.close()
    assert sum(note.count for note in written(settings)) == 7


def test_what_a_full_disk_refuses_is_written_when_there_is_room(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    real = durable.replace_file

    def full(path: Path, *arguments: Any) -> None:
        tried.append(path)
        if len(tried) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *arguments)

    monkeypatch.setattr(durable, "replace_file", full)
    monkeypatch.setattr(notes, "_TRY_AGAIN_SECONDS", 0.1)
    writer = NoteWriter(settings.layout, "receiver")
    writer.note("intake-refused", reason="full")
    (note,) = wait_until(lambda: written(settings))  # type: ignore[misc]
    assert (note.kind, note.count) == ("intake-refused", 1)
    writer.close()
    assert len(written(settings)) == 1


def test_nothing_is_written_where_too_much_lies_already(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "MOST_BYTES", 100)
    (settings.layout.notes / "0-old-0.jsonl").write_bytes(b"{}\n" * 100)
    writer = NoteWriter(settings.layout, "receiver")
    writer.note("intake-refused")
    writer.close()
    assert [file.name for file in settings.layout.notes.iterdir()] == ["0-old-0.jsonl"]


def test_a_spool_that_is_away_disturbs_nobody(settings: Settings) -> None:
    settings.layout.notes.rmdir()
    writer = NoteWriter(settings.layout, "receiver")
    writer.note("intake-refused", reason="the spool is missing")
    writer.close()
    assert not settings.layout.notes.exists()


def test_long_texts_are_cut(settings: Settings) -> None:
    writer = NoteWriter(settings.layout, "receiver")
    writer.note("association-rejected", "A" * 100_000, reason="B" * 100_000)
    writer.close()
    (note,) = written(settings)
    assert (len(note.source), len(str(note.details["reason"]))) == (200, 200)


@pytest.mark.parametrize(
    "line", [b"", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000, b'{"kind": 1, "details": 7}']
)
def test_a_line_that_is_no_note_becomes_a_note_of_that(settings: Settings, line: bytes) -> None:
    good = {"kind": "k", "at": "t", "source": "s", "count": 2, "last_at": "", "details": {}}
    file = settings.layout.notes / "0000000000001-receiver-00000000.jsonl"
    file.write_bytes(line + b"\n" + json.dumps(good).encode() + b"\n")
    assert [note.kind for note in take_notes(settings.layout)] == [notes.UNREADABLE, "k"]
    remove_notes(settings.layout, take_notes(settings.layout))
    assert not file.exists()


def test_a_link_among_the_notes_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("anything")
    (settings.layout.notes / "1-x-0.jsonl").symlink_to(secret)
    assert list(take_notes(settings.layout)) == []


def test_notes_have_names_of_their_own(settings: Settings) -> None:
    for who in ("receiver", "watcher"):
        writer = NoteWriter(settings.layout, who)
        writer.note("intake-refused", reason="full")
        writer.note("intake-resumes")
        writer.close()
    found = written(settings)
    assert len({note.identifier for note in found}) == 4
    assert len({note.file for note in found}) == 2
