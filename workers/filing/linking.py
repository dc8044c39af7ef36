"""Give entries their names in the tree: link(2), never rename, never overwrite.

A file of the tree is ours alone and has the permissions of the settings: an entry that another user
owns could be changed by him afterwards, so it is copied. No link below the archive is followed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from config.layout import Layout
from workers import durable
from workers.filing.work import Work
from workers.rooted import LinkRefused, folder_below, is_file


class Linker:
    """Link entries into one archive, or copy them where it lies on another file system."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._temporaries = layout.archive_private / "tmp"

    def link(self, work: Work, target: Path) -> None:
        """Give an entry its name; the folder is made where it is missing.

        Raises FileExistsError where the name is taken, LinkRefused where a link leads there.
        """
        temporary = self.temporary(work)
        temporary.unlink(missing_ok=True)  # of a run that was killed
        archive = self._layout.archive
        inside = target.parent.relative_to(archive)
        with folder_below(archive, inside, self._layout.folder_mode) as folder:
            try:
                self._claim_inode(work)
                os.link(work.path, target.name, dst_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                if error.errno not in durable.NO_LINK_ERRORS:
                    raise
                try:  # spool and archive on two file systems
                    temporary.parent.mkdir(mode=0o700, exist_ok=True)
                    durable.copy_new(work.path, temporary, self._layout.file_mode)
                    os.link(temporary, target.name, dst_dir_fd=folder)
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
        descriptor = work.file.fileno()
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's file")
        durable.give_mode(descriptor, self._layout.file_mode)

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
