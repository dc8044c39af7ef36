"""Find what lies in a watched folder, whole or one path at a time.

Paths are relative to the watched folder. A file is looked at once (lstat), a folder once; 100,000
files take well under a second.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from daemon.watcher.names import NameKind, kind_of_file
from daemon.watcher.settling import FileState, state_of
from daemon.watcher.territory import Territory


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is ours to take once it has settled."""

    path: str
    state: FileState
    kind: NameKind = NameKind.TAKE


@dataclass(frozen=True, slots=True)
class FolderState:
    """What changes when anything comes into a folder or leaves it."""

    inode: int
    mtime_ns: int


@dataclass(slots=True)
class Findings:
    """What one scan found, besides the files that it told one by one."""

    hollow: dict[str, FolderState] = field(default_factory=dict)
    """Folders below the root that hold nothing but such folders, deepest first."""
    folders: int = 0
    whole: bool = True
    """False when the caller had enough before the end; `hollow` is then empty."""
    odd: dict[str, str] = field(default_factory=dict)
    """What is neither file nor folder and so is never taken: path, and what it is; some of them."""
    troubles: dict[str, OSError] = field(default_factory=dict)
    """What could not be read, by path."""


_MOST_ODD = 100
_ODDITIES = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class _Enough(Exception):
    """The caller wants no more files."""


def scan(territory: Territory, note: Callable[[Found], bool], top: str = "") -> Findings:
    """Find everything in a watched folder, or from one of its folders on down.

    `note` is told every file that a name does not exclude, and ends the scan by answering False.
    """
    found = Findings()
    states: dict[str, FolderState] = {}  # in the order of discovery: parents before children
    occupied: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        found.folders += 1
        try:
            if not _read_folder(territory, folder, note, states, waiting, found.odd):
                occupied.add(folder)
        except _Enough:
            found.whole = False
            return found
        except (FileNotFoundError, NotADirectoryError):
            occupied.add(folder)
        except OSError as error:
            found.troubles[folder] = error
            occupied.add(folder)
    for folder in reversed(states):
        if folder in occupied:
            occupied.add(os.path.dirname(folder))
        else:
            found.hollow[folder] = states[folder]
    return found


def look(territory: Territory, path: str) -> Found | None:
    """Look at one file; None where it is gone, or none that is taken."""
    kind = kind_of_file(os.path.basename(path))
    if kind is NameKind.LEAVE:
        return None
    try:
        state = state_of(os.lstat(_full(territory, path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Found(path, state, kind) if state else None


def reaches(territory: Territory, folder: str) -> bool:
    """Tell whether a scan from the root would come into this folder."""
    return all(_enterable(territory, part) for part in upward(folder))


def _read_folder(
    territory: Territory,
    folder: str,
    note: Callable[[Found], bool],
    states: dict[str, FolderState],
    waiting: list[str],
    odd: dict[str, str],
) -> bool:
    """Read one folder; True if it holds nothing but folders that are looked into."""
    inside = f"{folder}/" if folder else ""
    only_folders = True
    with os.scandir(_full(territory, folder)) as items:
        for item in items:
            path = inside + item.name
            try:
                if item.is_dir(follow_symlinks=False):
                    facts = item.stat(follow_symlinks=False)
                    if territory.enters(_full(territory, path), item.name, facts):
                        states[path] = FolderState(facts.st_ino, facts.st_mtime_ns)
                        waiting.append(path)
                        continue
                else:
                    file = _file(item, path)
                    if file is not None and not note(file):
                        raise _Enough
                    if file is None and len(odd) < _MOST_ODD and (what := _oddity(item)):
                        odd[path] = what
            except FileNotFoundError:
                continue  # gone between listing and look
            only_folders = False
    return only_folders


def _file(item: os.DirEntry[str], path: str) -> Found | None:
    kind = kind_of_file(item.name)
    if kind is NameKind.LEAVE or not item.is_file(follow_symlinks=False):
        return None
    state = state_of(item.stat(follow_symlinks=False))
    return Found(path, state, kind) if state else None


def _oddity(item: os.DirEntry[str]) -> str | None:
    """Name what is no regular file, unless its name alone excludes it."""
    if kind_of_file(item.name) is NameKind.LEAVE:
        return None
    mode = item.stat(follow_symlinks=False).st_mode
    return next((what for is_it, what in _ODDITIES if is_it(mode)), None)


def _full(territory: Territory, path: str) -> str:
    return f"{territory.root.rstrip('/')}/{path}" if path else territory.root


def upward(folder: str) -> Iterator[str]:
    """Yield a folder and those above it, as far as the watched folder."""
    while folder:
        yield folder
        folder = os.path.dirname(folder)


def _enterable(territory: Territory, folder: str) -> bool:
    full = _full(territory, folder)
    try:
        return territory.enters(full, os.path.basename(folder), os.lstat(full))
    except OSError:
        return False
