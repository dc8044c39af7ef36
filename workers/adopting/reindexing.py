"""Adopt a delivery where it lies, or rebuild a lost index: the same walk, in order, resumable.

Nothing in the archive is moved, copied or written to but `.petct/` and the pairs. What the index
has already and whose size and mtime are unchanged is not opened, nor what an earlier walk found to
be no instance (passed.py). Folders are committed whole,
so that a series is never judged by a part of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from config.layout import Layout
from config.settings import Settings
from workers.adopting.adopting import adopt_folders
from workers.adopting.known import KnownFiles
from workers.adopting.origins import origins_of
from workers.adopting.passed import PassedOver
from workers.adopting.reading import Read, Readers, ReadFile, open_readers
from workers.adopting.walking import (
    Finding,
    FindingCode,
    FoundFile,
    Leaf,
    as_text,
    is_text,
    walk_tree,
)
from workers.identity import check_archive
from workers.index.engine import MetadataIndex

_FILES_A_COMMIT = 256
"""How many new files make a commit: small folders share one, a large one has its own."""
_FILES_A_STEP = 5000
"""After how many files at the latest it is told how far the walk is."""
_FILES_AHEAD = 2000
"""How many files may be read ahead of the one that is committed."""


@dataclass(slots=True)
class ReindexReport:
    """What a walk found."""

    folders: int = 0
    files: int = 0
    adopted: int = 0
    unchanged: int = 0
    seconds: float = 0.0
    new: int = 0
    """Files that the index did not have as they are now."""
    findings: list[Finding] = field(default_factory=list)

    def add(self, lot: _Lot) -> None:
        """Count what a walk found in some folders."""
        self.folders += len(lot.leaves)
        self.files += lot.files
        self.unchanged += lot.unchanged
        self.new += len(lot.new)
        self.findings += lot.findings

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
            "to_look_at": [
                {"code": one.code, "path": one.path, "reason": one.words} for one in self.findings
            ],
        }


Advance = Callable[[ReindexReport], None]


@dataclass(slots=True)
class _Lot:
    """Some folders in a row, which are committed together."""

    leaves: dict[str, Leaf] = field(default_factory=dict)
    files: int = 0
    new: list[tuple[str, FoundFile]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unchanged: int = 0

    def take(self, leaf: Leaf, known: KnownFiles, passed: PassedOver) -> None:
        """Add a folder, with what is new in it."""
        self.files += len(leaf.files)
        refused = [one for one in leaf.files if not is_text(f"{leaf.path}/{one.name}")]
        for file in refused:
            words = "the name is not UTF-8: rename it"
            path = as_text(f"{leaf.path}/{file.name}")
            self.findings.append(Finding(FindingCode.NOT_ADOPTED, path, words))
        if len(refused) == len(leaf.files):
            return
        if refused:
            leaf = leaf.without(refused)
        new = known.new_of(leaf)
        self.leaves[leaf.path] = leaf
        self.unchanged += len(leaf.files) - len(new)
        for file in new:
            finding = passed.finding_of(leaf, file)
            if finding is not None:
                self.findings.append(finding)
            else:
                self.new.append((leaf.path, file))

    def by_folder(self, found: Sequence[ReadFile]) -> list[tuple[Leaf, list[ReadFile]]]:
        """Return what was read with the folders that it lies in."""
        groups = groupby(found, key=attrgetter("folder"))
        return [(self.leaves[path], list(members)) for path, members in groups]

    @property
    def is_full(self) -> bool:
        return len(self.new) >= _FILES_A_COMMIT or self.files >= _FILES_A_STEP


def reindex(
    index: MetadataIndex,
    settings: Settings,
    *,
    processes: int = 2,
    advance: Advance = lambda report: None,
) -> ReindexReport:
    """Walk the archive and take into the index what it does not have.

    `advance` is called now and then with the report so far. Raises StoreUnavailable where the
    archive is not the one that the index knows.
    """
    archive = settings.layout.archive
    check_archive(settings.layout, index.identities().archive)
    began = time.monotonic()
    report = ReindexReport()
    origins = origins_of(settings.layout.output)
    prefixes = {one.patient_id_prefix: None for one in settings.sources if one.patient_id_prefix}
    known = KnownFiles(index)
    passed = PassedOver(settings.layout)
    with open_readers(archive, processes) as readers:
        for lot, reading in _begun(_lots(archive, known, passed), readers):
            read = [item for task in reading for item in task.result()]
            found = [item for item in read if isinstance(item, ReadFile)]
            report.add(lot)
            wrong = {item.path: item for item in read if isinstance(item, Finding)}
            report.findings += wrong.values()
            for folder, file in lot.new:
                if finding := wrong.get(f"{folder}/{file.name}"):
                    passed.note(finding, file)
            if found:
                folders = groupby(found, key=attrgetter("folder"))
                done = adopt_folders(
                    index,
                    archive,
                    [(lot.leaves[path], list(one)) for path, one in folders],
                    origins,
                    prefixes,
                )
                report.adopted += done.adopted
                report.findings += done.findings
            report.seconds = time.monotonic() - began
            advance(report)
    passed.keep()
    report.findings += known.missing(archive)
    report.seconds = time.monotonic() - began
    return report


def survey(index: MetadataIndex | None, layout: Layout) -> ReindexReport:
    """Walk like `reindex`, without opening a file or writing anything: what it would look at."""
    began = time.monotonic()
    report = ReindexReport()
    known = KnownFiles(index)
    for lot in _lots(layout.archive, known, PassedOver(layout)):
        report.add(lot)
    report.findings += known.missing(layout.archive)
    report.seconds = time.monotonic() - began
    return report


def _lots(archive: Path, known: KnownFiles, passed: PassedOver) -> Iterator[_Lot]:
    lot = _Lot()
    for one in walk_tree(archive):
        if isinstance(one, Finding):
            lot.findings.append(one)
            continue
        lot.take(one, known, passed)
        if lot.is_full:
            yield lot
            lot = _Lot()
    yield lot


def _begun(lots: Iterator[_Lot], readers: Readers) -> Iterator[tuple[_Lot, list[Read]]]:
    """Begin to read lot after lot, some ahead of the one that is yielded, in path order."""
    ahead: deque[tuple[_Lot, list[Read]]] = deque()
    files = 0
    for lot in lots:
        ahead.append((lot, readers.begin(lot.new)))
        files += len(lot.new)
        while files > _FILES_AHEAD:
            first = ahead.popleft()
            files -= len(first[0].new)
            yield first
    yield from ahead
