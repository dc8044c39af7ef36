"""What an intake tells the audit: notes, durable in the spool until the index has them.

    spool/notes/<time>-<who>-<token>.jsonl      some notes, one JSON object a line

The receiver and the watcher may not open the index, so they leave a note and the sweeper makes an
event of it. A note names addresses, AE titles, reasons and counts, and never a patient.

Whoever notes something never waits for the disk: a thread writes. The first note of a kind is on
disk a moment later; the same again within a minute becomes one note with a count. What cannot be
written (a full or missing disk) is kept, within bounds, and tried again.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from config.layout import Layout
from config.logs import get_logger
from workers import clock, durable

SAME_SECONDS = 60.0
"""Equal notes within this time are one."""

MOST_KINDS = 1000
"""Different notes that are kept in memory; more are only counted, as `notes-left-out`."""

MOST_BYTES = 4 << 20
"""On disk, of all writers together; then notes wait in memory until the sweeper came by."""

LEFT_OUT = "notes-left-out"
UNREADABLE = "note-unreadable"

_GATHER_SECONDS = 0.1
_TRY_AGAIN_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_LONGEST_TEXT = 200

Details = dict[str, str | int | float]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an intake saw; `identifier` makes it one event and not two."""

    kind: str
    at: str
    """ISO 8601 UTC, of the first of `count`."""
    source: str = ""
    count: int = 1
    last_at: str = ""
    details: Details = field(default_factory=dict)
    identifier: str = ""

    @property
    def key(self) -> str:
        """What equal notes have in common."""
        return json.dumps([self.kind, self.source, self.details], sort_keys=True)

    @property
    def file(self) -> str:
        """The name of the file that holds it."""
        return self.identifier.partition(":")[0]


class Gathering:
    """Count equal notes within a minute; `now` is monotonic seconds, given by the caller.

    The first of its kind is due at once, and the others that came meanwhile when its minute is
    over.
    """

    def __init__(self) -> None:
        self._due: dict[str, Note] = {}
        self._repeats: dict[str, Note] = {}
        self._minutes: dict[str, float] = {}

    def add(self, note: Note, now: float) -> None:
        """Note something."""
        if self._is_full() and note.key not in self._minutes:
            note = Note(LEFT_OUT, note.at)
        if note.key not in self._minutes:
            self._minutes[note.key] = now + SAME_SECONDS
            self._due[note.key] = note
        else:
            self._repeats[note.key] = _joined(self._repeats.get(note.key), note)

    def take_due(self, now: float, *, all_of_them: bool = False) -> list[Note]:
        """Return what is to be written at `now`, oldest first, and forget it."""
        over = [key for key, until in self._minutes.items() if now >= until or all_of_them]
        for key in over:
            del self._minutes[key]
            if key in self._repeats:
                self._due[key] = _joined(self._due.get(key), self._repeats.pop(key))
        due, self._due = list(self._due.values()), {}
        return sorted(due, key=lambda note: note.at)

    def give_back(self, notes: Iterable[Note]) -> None:
        """Take back what could not be written."""
        for note in notes:
            later = self._due.get(note.key)
            self._due[note.key] = _joined(note, later) if later else note

    def next_due(self, now: float) -> float | None:
        """Return when something will be due though nothing more comes, or None."""
        if self._due:
            return now
        return min((self._minutes[key] for key in self._repeats), default=None)

    def _is_full(self) -> bool:
        return len(self._minutes.keys() | self._due.keys()) >= MOST_KINDS


class NoteWriter:
    """Leave notes for the audit; safe for several threads, and never in anybody's way."""

    def __init__(self, layout: Layout, who: str) -> None:
        self._layout = layout
        self._who = who
        self._gathering = Gathering()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def note(self, kind: str, source: str = "", **details: str | int | float) -> None:
        """Note something; returns at once and never raises.

        Texts are cut to 200 characters. Nothing about a patient belongs here.
        """
        short = {key: _cut(value) for key, value in details.items()}
        one = Note(kind, clock.utc_now(), str(_cut(source)), details=short)
        with self._changed:
            if self._closing:
                log.warning("note-after-the-end", kind=kind)
                return
            self._gathering.add(one, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"notes-{self._who}", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Write what is left; what cannot be written now is lost, and the log says so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        failed = False
        while True:
            with self._changed:
                self._wait(_TRY_AGAIN_SECONDS if failed else 0.0)
                closing = self._closing
                notes = self._gathering.take_due(time.monotonic(), all_of_them=closing)
            failed = not self._write(notes)
            if failed:
                with self._changed:
                    self._gathering.give_back(notes)
            if closing:
                if failed:
                    log.warning("notes-lost", count=sum(note.count for note in notes))
                return

    def _wait(self, at_least: float) -> None:
        """Wait, the condition held, until something is to be written or it all ends."""
        earliest = time.monotonic() + max(at_least, _GATHER_SECONDS)
        while not self._closing:
            now = time.monotonic()
            due = self._gathering.next_due(now)
            if due is None:
                self._changed.wait()
            elif max(due, earliest) <= now:
                return
            else:
                self._changed.wait(max(due, earliest) - now)

    def _write(self, notes: list[Note]) -> bool:
        """Write notes into a file of their own, durable; tell whether that went well."""
        if not notes:
            return True
        name = f"{int(time.time() * 1000):013d}-{self._who}-{secrets.token_hex(8)}.jsonl"
        lines = "".join(json.dumps(_written(note)) + "\n" for note in notes)
        try:
            with os.scandir(self._layout.notes) as files:
                if sum(file.stat(follow_symlinks=False).st_size for file in files) > MOST_BYTES:
                    return False
            durable.replace_file(self._layout.notes / name, lines.encode("ascii"))
        except OSError as error:
            log.debug("notes-not-written", error=error.strerror)
            return False
        return True


def take_notes(layout: Layout) -> Iterator[Note]:
    """Yield every note that waits, oldest file first; they stay until `remove_notes`.

    A line that is none of ours becomes a note that says so.
    """
    try:
        names = sorted(name for name in os.listdir(layout.notes) if name.endswith(".jsonl"))
    except FileNotFoundError:
        return
    for name in names:
        try:
            lines = _read(layout.notes / name).splitlines()
        except OSError:
            continue  # a link or a folder: none of ours
        for number, line in enumerate(lines or [b""]):
            yield replace(_read_note(line), identifier=f"{name}:{number}")


def remove_notes(layout: Layout, notes: Iterable[Note]) -> None:
    """Remove the files of notes that the index has."""
    for name in {note.file for note in notes}:
        (layout.notes / name).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(MOST_BYTES)


def _read_note(line: bytes) -> Note:
    try:
        raw = json.loads(line)
        return Note(
            kind=str(raw["kind"]),
            at=str(raw["at"]),
            source=str(raw["source"]),
            count=int(raw["count"]),
            last_at=str(raw["last_at"]),
            details=dict(raw["details"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return Note(UNREADABLE, clock.utc_now())


def _written(note: Note) -> dict[str, Any]:
    words = asdict(note)
    del words["identifier"]
    return words


def _joined(first: Note | None, second: Note) -> Note:
    """Make one note of two equal ones."""
    if first is None:
        return second
    return replace(first, count=first.count + second.count, last_at=second.last_at or second.at)


def _cut(value: str | int | float) -> str | int | float:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value
