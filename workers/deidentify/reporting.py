"""What de-identification would change: keywords and counts, never a value. Nothing is written."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom import dcmread, dcmwrite

from workers import durable
from workers.deidentify.entry import blaming_the_data
from workers.deidentify.rules import Changes, Deidentifier, why_held
from workers.errors import DataError, Identifiable
from workers.filing.examining import Skip, examine
from workers.filing.labels import labels_of
from workers.spool.batches import BatchSource

_DROPPED = BatchSource(kind="folder")


class Outcome(StrEnum):
    """What would become of a file."""

    DEIDENTIFIED = "deidentified"
    HELD = "held"
    """Set aside in quarantine: it may name somebody, or cannot be read."""
    SKIPPED = "skipped"
    UNREADABLE = "unreadable"
    """The system does not let us read it."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What would be done to one file."""

    path: str
    """Relative to what was looked at."""
    outcome: Outcome
    changes: Changes = field(default_factory=Changes)
    code: str | None = None
    reason: str | None = None

    def to_json_object(self) -> dict[str, Any]:
        counts = {name: len(keywords) for name, keywords in _kinds(self.changes)}
        why = {"code": self.code, "reason": self.reason} if self.code else {}
        return {"path": self.path, "outcome": str(self.outcome), **counts, **why}


@dataclass(slots=True)
class DeidReport:
    """What would be done to all files, and to how many of them each attribute matters."""

    files: list[FileReport] = field(default_factory=list)
    attributes: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, one: FileReport) -> None:
        """Count one file."""
        self.files.append(one)
        for name, keywords in _kinds(one.changes):
            self.attributes.setdefault(name, Counter()).update(keywords)

    def count(self, outcome: Outcome) -> int:
        """Return how many files would end so."""
        return sum(one.outcome is outcome for one in self.files)

    def to_json_object(self) -> dict[str, Any]:
        return {
            **{str(outcome): self.count(outcome) for outcome in Outcome},
            "attributes": {
                name: dict(sorted(self.attributes.get(name, Counter()).items()))
                for name, _ in _kinds(Changes())
            },
            "files": [one.to_json_object() for one in self.files],
        }


def report_path(path: Path, seed: str, subject_pattern: str | None = None) -> Iterator[FileReport]:
    """Yield what would be done to each regular file at or below `path`, in path order.

    With `subject_pattern` (settings: labels.pattern), a file whose path names no subject is held,
    as for a source with `patient_id = "subject"`. No link is followed. Raises OSError where `path`
    itself cannot be read.
    """
    rules = Deidentifier(seed)
    path = path.resolve(strict=True)
    if not path.is_dir():
        yield report_file(path, path.name, rules, subject_pattern)
        return
    os.listdir(path)  # or it would look empty
    for top, folders, names in os.walk(path):
        folders.sort(key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            file = Path(top, name)
            if file.is_file() and not file.is_symlink():
                yield report_file(file, str(file.relative_to(path)), rules, subject_pattern)


def report_file(
    file: Path, shown: str, rules: Deidentifier, subject_pattern: str | None = None
) -> FileReport:
    """Say what would be done to one file, by doing it in memory."""
    try:
        with open(file, "rb", opener=durable.no_follow) as opened:
            found = examine(opened, shown, _DROPPED)
            if isinstance(found, Skip):
                return FileReport(shown, Outcome.SKIPPED, code="skipped", reason=found.reason)
            subject = None if subject_pattern is None else labels_of(shown, subject_pattern).subject
            if subject == "":
                raise Identifiable("its path names no subject to take the place of the PatientID")
            if words := why_held(found.facts):
                raise Identifiable(words)
            with blaming_the_data():
                opened.seek(0)
                dataset = dcmread(opened)
                changes = rules.apply(dataset, patient_id=subject)
                dcmwrite(io.BytesIO(), dataset, enforce_file_format=True)
    except DataError as error:
        # what is wrong with a header may be told in its own words: those stay out of a report
        reason = str(error) if isinstance(error, Identifiable) else None
        return FileReport(shown, Outcome.HELD, code=error.code, reason=reason)
    except OSError as error:
        return FileReport(shown, Outcome.UNREADABLE, code="unreadable", reason=error.strerror)
    return FileReport(shown, Outcome.DEIDENTIFIED, changes)


def _kinds(changes: Changes) -> tuple[tuple[str, set[str]], ...]:
    return (
        ("replaced", changes.replaced),
        ("removed", changes.removed),
        ("emptied", changes.emptied),
    )
