"""Which part of the file system a watched folder is, and where it ends.

A folder below it that is a mount of its own, or one of our own places (spool, archive, quarantine,
another watched folder), is not entered; neither is what is only linked from it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from config.layout import Layout
from config.settings import Settings
from daemon.watcher.names import enters_folder

NETWORK_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "lustre",
        "glusterfs",
        "fuse.sshfs",
    )
)
"""File systems on which others write without our kernel knowing: events tell only our own half."""


@dataclass(frozen=True, slots=True)
class Territory:
    """A watched folder as it is now; all paths are real and absolute."""

    root: str
    device: int
    inode: int
    closed: frozenset[str]
    network: bool

    def enters(self, folder: str, name: str, facts: os.stat_result) -> bool:
        """Decide whether a folder below the root, given by full path and lstat, is looked into."""
        return (
            stat.S_ISDIR(facts.st_mode)
            and facts.st_dev == self.device
            and enters_folder(name)
            and folder not in self.closed
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    kind: str


def survey(folder: Path | str, closed: frozenset[str]) -> Territory:
    """Look at a watched folder; raises FileNotFoundError or NotADirectoryError where it is none."""
    root = os.path.realpath(folder, strict=True)
    facts = os.stat(root)
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError(20, "not a folder", root)
    inside = root.rstrip("/") + "/"
    nearest = Mount("", "")
    mounted = set()
    for mount in mounts():
        if mount.point.startswith(inside):
            mounted.add(mount.point)
        elif inside.startswith(mount.point.rstrip("/") + "/") and len(mount.point) >= len(
            nearest.point
        ):
            nearest = mount
    return Territory(
        root, facts.st_dev, facts.st_ino, closed | mounted, nearest.kind in NETWORK_FILE_SYSTEMS
    )


def closed_folders(settings: Settings) -> frozenset[str]:
    """Name the places that are never taken from: our own, and the other watched folders."""
    return frozenset(
        os.path.realpath(folder)
        for folder in (*_own_folders(settings.layout), *(watch.path for watch in settings.watched))
    )


def refusal(folder: Path, layout: Layout) -> str | None:
    """Say why a folder cannot be watched, or None: our own files would be taken for a drop."""
    here = os.path.realpath(folder)
    if here == os.path.realpath(layout.root):
        return "it is the root of this installation"
    own = (layout.spool, layout.archive, layout.output_root, layout.quarantine, layout.run)
    for place in own:
        real = os.path.realpath(place)
        if here == real or here.startswith(real + "/"):
            return f"it lies in this installation's {place.name}"
    return None


def _own_folders(layout: Layout) -> tuple[Path, ...]:
    return (layout.root, layout.archive, layout.spool, layout.quarantine, layout.run)


def mounts() -> Iterator[Mount]:
    """Yield what is mounted here, in the order of mounting."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:  # no /proc: st_dev still tells most mounts
        return
    for line in lines:
        fields = line.split(b" ")
        if b"-" in fields and len(fields) > fields.index(b"-") + 1:
            yield Mount(_unescaped(fields[4]), os.fsdecode(fields[fields.index(b"-") + 1]))


def _unescaped(field: bytes) -> str:
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):  # proc(5): space, tab, newline, backslash
        field = field.replace(code, bytes([int(code[1:], 8)]))
    return os.fsdecode(field)
