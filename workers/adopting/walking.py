"""Walk a tree of the Gradient shape, folder by folder, without opening a file.

<PatientID>/<AccessionNumber>/studies/<any folders>/<any file names>; whatever lies elsewhere is a
finding. No symlink is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_PRIVATE = ".petct"
_PAIRED = "Auto-Paired"
_STUDIES = "studies"


class FindingCode(StrEnum):
    """What was found that is not simply an instance in its place."""

    STRAY = "stray"
    """A file outside <PatientID>/<AccessionNumber>/studies: not adopted."""
    LINK = "link"
    """A symbolic link: not followed."""
    SPECIAL = "special"
    """A fifo, socket or device: not opened."""
    UNREADABLE = "unreadable"
    """The system does not let us read it."""
    NOT_ADOPTED = "not-adopted"
    """No DICOM, or its header is refused; the words say why."""
    SKIPPED = "skipped"
    """A file of the system, or a DICOMDIR."""
    DUPLICATE = "duplicate"
    """The same instance lies elsewhere too; the first in path order counts."""
    CONFLICT = "conflict"
    """Another instance under the same SOPInstanceUID; the first in path order counts."""
    HEADERS_DISAGREE = "headers-disagree"
    """The folders are called otherwise than the header says; the header counts, the file stays."""
    CHANGED = "changed"
    """Other bytes than the index knew; the index follows the file."""
    MISSING = "missing"
    """The index knows a file that is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to tell: what, where (relative to the archive), and why."""

    code: FindingCode
    path: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One regular file, as its folder shows it."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """One folder with files."""

    home: str
    """<PatientID>/<AccessionNumber>"""
    digits: str
    """What follows `studies/`; "." for files in it."""
    files: tuple[FoundFile, ...]

    @property
    def path(self) -> str:
        """The folder, relative to the archive."""
        return f"{self.home}/{_STUDIES}/{self.digits}"


def walk_tree(archive: Path) -> Iterator[Leaf | Finding]:
    """Yield every folder that holds files, and every finding, in path order.

    Names that are not UTF-8 carry surrogates, as os.fsdecode makes them. Raises OSError where the
    archive itself cannot be read; a folder below it that cannot be is a finding.
    """
    os.stat(archive)
    for patient in _list(archive, "", top=True):
        if isinstance(patient, Finding):
            yield patient
        elif patient.is_dir(follow_symlinks=False):
            yield from _walk_patient(archive, patient.name)
        else:
            yield _odd(patient, patient.name)


def _walk_patient(archive: Path, patient: str) -> Iterator[Leaf | Finding]:
    for accession in _list(archive, patient):
        if isinstance(accession, Finding):
            yield accession
            continue
        home = f"{patient}/{accession.name}"
        if not accession.is_dir(follow_symlinks=False):
            yield _odd(accession, home)
            continue
        for inner in _list(archive, home):
            if isinstance(inner, Finding):
                yield inner
            elif inner.name == _STUDIES and inner.is_dir(follow_symlinks=False):
                yield from _walk_studies(archive, home, ".")
            elif not (inner.name.startswith(_PAIRED) and inner.is_dir(follow_symlinks=False)):
                yield from _everything(archive, inner, f"{home}/{inner.name}")


def _walk_studies(archive: Path, home: str, digits: str) -> Iterator[Leaf | Finding]:
    files, folders = [], []
    here = f"{home}/{_STUDIES}" + ("" if digits == "." else f"/{digits}")
    for entry in _list(archive, here):
        if isinstance(entry, Finding):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        elif entry.is_file(follow_symlinks=False):
            facts = entry.stat(follow_symlinks=False)
            files.append(FoundFile(entry.name, facts.st_size, facts.st_mtime_ns))
        else:
            yield _odd(entry, f"{here}/{entry.name}")
    if files:
        yield Leaf(home, digits, tuple(files))
    for name in folders:
        yield from _walk_studies(archive, home, name if digits == "." else f"{digits}/{name}")


def _everything(archive: Path, entry: os.DirEntry[str], path: str) -> Iterator[Finding]:
    """Name every file below a folder that is no part of the shape."""
    if not entry.is_dir(follow_symlinks=False):
        yield _odd(entry, path)
        return
    for inner in _list(archive, path):
        if isinstance(inner, Finding):
            yield inner
        else:
            yield from _everything(archive, inner, f"{path}/{inner.name}")


def _list(archive: Path, path: str, *, top: bool = False) -> list[os.DirEntry[str] | Finding]:
    try:
        with os.scandir(archive / path) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        return [Finding(FindingCode.UNREADABLE, path, error.strerror or "cannot be listed")]
    return [entry for entry in found if not (top and entry.name == _PRIVATE)]


def _odd(entry: os.DirEntry[str], path: str) -> Finding:
    if entry.is_symlink():
        return Finding(FindingCode.LINK, path, "a symbolic link is not followed")
    if entry.is_file(follow_symlinks=False):
        words = "outside <PatientID>/<AccessionNumber>/studies"
        return Finding(FindingCode.STRAY, path, words)
    kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
    words = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
    return Finding(FindingCode.SPECIAL, path, words)
