"""Adopt a delivery where it lies, or rebuild a lost index: the same walk, in order, resumable.

Nothing in the archive is moved, copied or written to but `.petct/` and the pairs. What the index
has already and whose size and mtime are unchanged is not opened. A folder is committed whole, so
that a series is never judged by a part of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import sqlalchemy as sa

from config.settings import Settings
from workers.adopting.adopting import adopt_folder, known_files
from workers.adopting.origins import origins_of
from workers.adopting.reading import Readers, ReadFile, open_readers
from workers.adopting.walking import Finding, FindingCode, FoundFile, Leaf, walk_tree
from workers.identity import check_archive
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance

_FILES_AHEAD = 2000
"""How many files may be read ahead of the one that is committed."""

_ROWS_A_PAGE = 5000


@dataclass(slots=True)
class ReindexReport:
    """What a walk found."""

    folders: int = 0
    files: int = 0
    adopted: int = 0
    unchanged: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def to_json_object(self) -> dict[str, object]:
        counts: dict[str, int] = {}
        for one in self.findings:
            counts[one.code] = counts.get(one.code, 0) + 1
        return {
            "folders": self.folders,
            "files": self.files,
            "adopted": self.adopted,
            "unchanged": self.unchanged,
            "seconds": round(self.seconds, 3),
            "findings": counts,
        }


Advance = Callable[[ReindexReport], None]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A folder whose new files are being read."""

    leaf: Leaf
    unchanged: int
    reading: list[Future[list[ReadFile | Finding]]]


def reindex(
    index: MetadataIndex,
    settings: Settings,
    *,
    processes: int = 2,
    advance: Advance = lambda report: None,
) -> ReindexReport:
    """Walk the archive and take into the index what it does not have.

    `advance` is called after each folder with the report so far. Raises StoreUnavailable where the
    archive is not the one that the index knows.
    """
    archive = settings.layout.archive
    check_archive(settings.layout, index.identities().archive)
    began = time.monotonic()
    report = ReindexReport()
    origins = origins_of(settings.layout.output)
    with open_readers(archive, processes) as readers:
        for one in _begun(index, archive, readers):
            if isinstance(one, Finding):
                report.findings.append(one)
                continue
            read = [item for task in one.reading for item in task.result()]
            report.findings += [item for item in read if isinstance(item, Finding)]
            found = [item for item in read if isinstance(item, ReadFile)]
            if found:
                done = adopt_folder(index, archive, one.leaf, found, origins)
                report.adopted += done.adopted
                report.findings += done.findings
            report.folders += 1
            report.files += len(one.leaf.files)
            report.unchanged += one.unchanged
            report.seconds = time.monotonic() - began
            advance(report)
    report.findings += _missing(index, archive)
    report.seconds = time.monotonic() - began
    return report


def count_files(archive: Path) -> int:
    """Count the files that a walk goes through; listing is quick beside reading."""
    return sum(len(one.files) for one in walk_tree(archive) if isinstance(one, Leaf))


def _begun(index: MetadataIndex, archive: Path, readers: Readers) -> Iterator[_Begun | Finding]:
    """Begin to read folder after folder, some ahead of the one that is yielded, in path order."""
    ahead: deque[_Begun | Finding] = deque()
    files = 0
    for one in walk_tree(archive):
        begun = one if isinstance(one, Finding) else _begin(index, one, readers)
        ahead.append(begun)
        files += len(one.files) if isinstance(one, Leaf) else 0
        while files > _FILES_AHEAD:
            first = ahead.popleft()
            files -= len(first.leaf.files) if isinstance(first, _Begun) else 0
            yield first
    yield from ahead


def _begin(index: MetadataIndex, leaf: Leaf, readers: Readers) -> _Begun | Finding:
    if not _is_text(leaf.path):
        words = "the folder's name is not UTF-8: rename it"
        return Finding(FindingCode.NOT_ADOPTED, _shown(leaf.path), words)
    known = known_files(index, leaf)
    new: list[FoundFile] = []
    refused: list[ReadFile | Finding] = []
    for file in leaf.files:
        if not _is_text(file.name):
            words = "the file's name is not UTF-8: rename it"
            path = f"{leaf.path}/{_shown(file.name)}"
            refused.append(Finding(FindingCode.NOT_ADOPTED, path, words))
        elif file.name not in known or not known[file.name].is_unchanged(file):
            new.append(file)
    reading = readers.begin(leaf.path, new)
    if refused:
        told: Future[list[ReadFile | Finding]] = Future()
        told.set_result(refused)
        reading.append(told)
    return _Begun(leaf, len(leaf.files) - len(new) - len(refused), reading)


def _missing(index: MetadataIndex, archive: Path) -> Iterator[Finding]:
    """Name what the index has and the archive has not, folder by folder."""
    chosen = (
        sa.select(folder.c.home, folder.c.digits, instance.c.id, instance.c.folder_id,
                  instance.c.file_name)
        .join(instance, instance.c.folder_id == folder.c.id)
        .order_by(instance.c.folder_id, instance.c.id)
        .limit(_ROWS_A_PAGE)
    )  # fmt: skip
    last = (0, 0)
    while True:
        with index.read() as connection:
            after = sa.or_(
                instance.c.folder_id > last[0],
                sa.and_(instance.c.folder_id == last[0], instance.c.id > last[1]),
            )
            rows = connection.execute(chosen.where(after)).all()
        for _, group in groupby(rows, key=attrgetter("folder_id")):
            members = list(group)
            path = f"{members[0].home}/studies/{members[0].digits}"
            there = _names_in(archive / path)
            for row in members:
                if row.file_name not in there:
                    words = "the index has it, the archive has not"
                    yield Finding(FindingCode.MISSING, f"{path}/{row.file_name}", words)
        if len(rows) < _ROWS_A_PAGE:
            return
        last = (rows[-1].folder_id, rows[-1].id)


def _names_in(folder_path: Path) -> set[str]:
    try:
        return {entry.name for entry in folder_path.iterdir()}
    except OSError:
        return set()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
