"""Give entries their names in the tree: link(2), never rename, never overwrite.

A file of the tree is ours alone and has the permissions of the settings: an entry that another user
owns could be changed by him afterwards, so it is copied. No link below the archive is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Self

from config.layout import Layout
from workers import durable
from workers.filing.work import Work
from workers.rooted import LinkRefused, folder_below, is_file


class OpenFolders:
    """The folders that a batch is linked into, each opened once; no link below is followed."""

    def __init__(self, archive: Path, mode: int) -> None:
        self._archive = archive
        self._mode = mode
        self._stack = ExitStack()
        self._open: dict[str, int] = {}

    def open(self, inside: str) -> int:
        """Return the descriptor of a folder below the archive, which is made where it is missing.

        Raises LinkRefused where a link leads there.
        """
        if inside not in self._open:
            way = folder_below(self._archive, PurePath(inside), self._mode)
            self._open[inside] = self._stack.enter_context(way)
        return self._open[inside]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Linker:
    """Link entries into one archive, or copy them where it lies on another file system."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._temporaries = layout.archive_private / "tmp"

    def link(self, work: Work, target: Path) -> None:
        """Give an entry its name; the folder is made where it is missing.

        Raises FileExistsError where the name is taken, LinkRefused where a link leads there.
        """
        archive = self._layout.archive
        inside = target.parent.relative_to(archive)
        with folder_below(archive, inside, self._layout.folder_mode) as folder:
            self.link_into(folder, work, target.name)

    def link_into(self, folder: int, work: Work, name: str) -> None:
        """Give an entry its name in an open folder. Raises FileExistsError where it is taken."""
        try:
            self._claim_inode(work)
            os.link(work.path, name, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            temporary = self.temporary(work)
            temporary.unlink(missing_ok=True)  # of a run that was killed
            if error.errno not in durable.NO_LINK_ERRORS:
                raise
            try:  # spool and archive on two file systems
                temporary.parent.mkdir(mode=0o700, exist_ok=True)
                durable.copy_new(work.path, temporary, self._layout.file_mode)
                os.link(temporary, name, dst_dir_fd=folder)
            finally:
                temporary.unlink(missing_ok=True)

    def replace(self, work: Work, target: Path) -> None:
        """Put an entry in the place of the file that has its name."""
        beside = self.temporary(work, ".new")
        beside.parent.mkdir(mode=0o700, exist_ok=True)
        beside.unlink(missing_ok=True)
        self.link(work, beside)
        archive = self._layout.archive
        with folder_below(archive, target.parent.relative_to(archive)) as folder:
            os.replace(beside, target.name, dst_dir_fd=folder)
            os.fsync(folder)

    def _claim_inode(self, work: Work) -> None:
        """Give the entry the tree's permissions; raises PermissionError where it is not ours."""
        descriptor, mode = work.file.fileno(), self._layout.file_mode
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's file")
        if stat.S_IMODE(facts.st_mode) != mode:
            os.fchmod(descriptor, mode)

    def temporary(self, work: Work, kind: str = "") -> Path:
        """Name a half-made file of an entry; nobody else makes one, for the entry is locked."""
        return self._temporaries / f"{work.identifier}{kind}.tmp"


def same_file(work: Work, target: Path) -> bool:
    return os.path.samestat(os.fstat(work.file.fileno()), os.lstat(target))


def same_bytes(work: Work, target: Path) -> bool:
    if os.lstat(target).st_size != work.instance.size:
        return False
    return durable.sha256_of(target) == work.instance.digests.file


def is_there(archive: Path, work: Work, path: Path) -> bool:
    """Tell whether a file of the tree is this entry, or a copy of it."""
    try:
        there = is_file(archive, path.relative_to(archive))
        return there and (same_file(work, path) or same_bytes(work, path))
    except (FileNotFoundError, LinkRefused):
        return False
