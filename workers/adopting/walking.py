"""Walk a tree of the Gradient shape, folder by folder, without opening a file.

<PatientID>/<AccessionNumber>/studies/<any folders>/<any file names>; whatever lies elsewhere is a
finding. No symlink is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import attrgetter
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
    CASE_CLASH = "case-clash"
    """Its name differs from another's in case alone; both are adopted, each for itself."""
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

    def without(self, files: Collection[FoundFile]) -> Leaf:
        """Return the folder without some of its files."""
        return replace(self, files=tuple(one for one in self.files if one not in files))


def walk_tree(archive: Path) -> Iterator[Leaf | Finding]:
    """Yield every folder that holds files, and every finding, in path order.

    Names that are not UTF-8 carry surrogates in a Leaf, as os.fsdecode makes them, and are written
    with backslashes in a Finding. Raises OSError where the archive itself cannot be read; a folder
    below it that cannot be is a finding.
    """
    os.stat(archive)
    top = _list(archive, "")
    yield from top.findings
    yield from _strays(top)
    yield from _twins(top)
    for patient in top.folders:
        if patient != _PRIVATE:
            yield from _walk_patient(archive, patient)


def walk_home(archive: Path, home: str) -> Iterator[Leaf | Finding]:
    """Yield what `walk_tree` does below `<home>/studies`."""
    yield from _walk_studies(archive, home, ".")


def count_files(archive: Path) -> int:
    """Count what a walk goes through, links and the like too, without a look at any."""
    studies = archive.glob(f"*/*/{_STUDIES}")
    return sum(len(files) for one in studies for _, _, files in os.walk(one))


def _walk_patient(archive: Path, patient: str) -> Iterator[Leaf | Finding]:
    within = _list(archive, patient)
    yield from within.findings
    yield from _strays(within)
    yield from _twins(within)
    for accession in within.folders:
        home = f"{patient}/{accession}"
        inside = _list(archive, home)
        yield from inside.findings
        yield from _strays(inside)
        for name in inside.folders:
            if name == _STUDIES:
                yield from _walk_studies(archive, home, ".")
            elif not name.startswith(_PAIRED):
                yield from _everything(archive, f"{home}/{name}")


def _walk_studies(archive: Path, home: str, digits: str) -> Iterator[Leaf | Finding]:
    here = _list(archive, f"{home}/{_STUDIES}" + ("" if digits == "." else f"/{digits}"))
    yield from here.findings
    if here.files:
        yield Leaf(home, digits, tuple(here.files))
    for name in here.folders:
        yield from _walk_studies(archive, home, name if digits == "." else f"{digits}/{name}")


def _everything(archive: Path, path: str) -> Iterator[Finding]:
    """Name every file below a folder that is no part of the shape."""
    here = _list(archive, path)
    yield from here.findings
    yield from _strays(here)
    for name in here.folders:
        yield from _everything(archive, f"{path}/{name}")


@dataclass(slots=True)
class _Listing:
    """What lies in one folder, by name."""

    path: str
    files: list[FoundFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def take(self, entry: os.DirEntry[str]) -> None:
        if entry.is_dir(follow_symlinks=False):
            self.folders.append(entry.name)
            return
        facts = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(facts.st_mode):
            self.files.append(FoundFile(entry.name, facts.st_size, facts.st_mtime_ns))
        elif stat.S_ISLNK(facts.st_mode):
            self.tell(FindingCode.LINK, entry.name, "a symbolic link is not followed")
        else:
            kind = stat.S_IFMT(facts.st_mode)
            words = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
            self.tell(FindingCode.SPECIAL, entry.name, words)

    def tell(self, code: FindingCode, name: str, words: str) -> None:
        path = "/".join(part for part in (self.path, name) if part)
        self.findings.append(Finding(code, as_text(path), words))


def _list(archive: Path, path: str) -> _Listing:
    """List a folder, looking at each entry from inside; a link in its place is not followed."""
    listing = _Listing(path)
    try:
        with _opened(archive, path) as descriptor, os.scandir(descriptor) as entries:
            for entry in sorted(entries, key=attrgetter("name")):
                try:
                    listing.take(entry)
                except OSError as error:
                    words = error.strerror or "cannot be looked at"
                    listing.tell(FindingCode.UNREADABLE, entry.name, words)
    except OSError as error:
        listing.tell(FindingCode.UNREADABLE, "", error.strerror or "cannot be listed")
    return listing


@contextmanager
def _opened(archive: Path, path: str) -> Iterator[int]:
    descriptor = os.open(f"{archive}/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _strays(listing: _Listing) -> Iterator[Finding]:
    for file in listing.files:
        words = "outside <PatientID>/<AccessionNumber>/studies"
        path = f"{listing.path}/{file.name}" if listing.path else file.name
        yield Finding(FindingCode.STRAY, as_text(path), words)


def _twins(listing: _Listing) -> Iterator[Finding]:
    """Name folders of patients or accessions that some systems would take for one."""
    seen: dict[str, str] = {}
    for name in listing.folders:
        first = seen.setdefault(name.lower(), name)
        if first != name:
            words = f"{as_text(first)} is another one: a new series for it gets its own folder"
            path = f"{listing.path}/{name}" if listing.path else name
            yield Finding(FindingCode.CASE_CLASH, as_text(path), words)


def is_text(name: str) -> bool:
    """Tell whether a name is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(name: str) -> str:
    """Write a name with backslashes for what is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
