"""Walk the tree folder by folder, in the order in which the index names its folders.

No symbolic link is followed. Of the whole tree only one folder's names are held at a time, and the
folders that are still to be entered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STUDIES = "studies"
HERE = "."
"""What the index calls the folder `studies` itself."""

_NEVER_OURS = frozenset({".petct", "lost+found"})


@dataclass(frozen=True, slots=True)
class Seen:
    """One name in a folder of the tree."""

    folder: str
    """Relative to the archive, "" for the archive itself."""
    name: str
    facts: os.stat_result

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.facts.st_mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.facts.st_mode)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        for test, words in (
            (stat.S_ISLNK, "a symbolic link"),
            (stat.S_ISFIFO, "a pipe"),
            (stat.S_ISSOCK, "a socket"),
            (stat.S_ISBLK, "a device"),
            (stat.S_ISCHR, "a device"),
        ):
            if test(self.facts.st_mode):
                return words
        return "a folder" if self.is_folder else "a file"


@dataclass(frozen=True, slots=True)
class SeriesFolder:
    """Where a folder of the tree stands that may hold instances: as the index says it."""

    home: str
    """<PatientID>/<AccessionNumber>."""
    digits: str
    """What follows `studies/`; "." for that folder itself."""


def series_folder(folder: str) -> SeriesFolder | None:
    """Read a folder's path as that of instances; None where it cannot be one."""
    parts = folder.split("/")
    if len(parts) < 3 or parts[2] != STUDIES:
        return None
    return SeriesFolder("/".join(parts[:2]), "/".join(parts[3:]) or HERE)


def place_key(home: str, digits: str, name: str) -> tuple[str, tuple[str, ...], str]:
    """Return what the walk sorts by: the home as it is written, then folder by folder."""
    return home, () if digits == HERE else tuple(digits.split("/")), name


def walk(
    archive: Path,
    enter: Callable[[Seen], bool],
    trouble: Callable[[str, OSError], None],
) -> Iterator[tuple[str, list[Seen]]]:
    """Yield each folder with what lies in it, folders aside, sorted by name.

    `enter` is shown each folder before it is entered and says whether it shall be; `trouble` is
    told of each folder that cannot be read.
    """
    stack = [""]
    while stack:
        folder = stack.pop()
        try:
            items = _look(archive, folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it went meanwhile, or something else took its place
        except OSError as error:
            trouble(folder, error)
            continue
        depth = folder.count("/") + 1 if folder else 0
        inner = [one for one in items if one.is_folder and _is_ours(one, depth) and enter(one)]
        inner.sort(key=lambda one: _order(one.name, depth), reverse=True)
        stack.extend(one.path for one in inner)
        yield folder, sorted((one for one in items if not one.is_folder), key=lambda one: one.name)


def _look(archive: Path, folder: str) -> list[Seen]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(archive / folder, flags)
    try:
        found = []
        with os.scandir(descriptor) as items:
            for item in items:
                try:
                    found.append(Seen(folder, item.name, item.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
        return found
    finally:
        os.close(descriptor)


def _is_ours(one: Seen, depth: int) -> bool:
    return depth > 0 or one.name not in _NEVER_OURS


def _order(name: str, depth: int) -> str:
    """Return what a folder sorts by: a home is compared as it is written.

    "P-1/A" comes before "P/A", because "-" comes before "/".
    """
    return f"{name}/" if depth == 0 else name
