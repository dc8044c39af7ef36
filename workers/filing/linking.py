"""Give entries their names in the tree: link(2), never rename, never overwrite."""

from __future__ import annotations

import os
from pathlib import Path

from config.layout import Layout
from workers import durable
from workers.filing.work import Work


class Linker:
    """Link entries into one archive, or copy them where it lies on another file system."""

    def __init__(self, layout: Layout) -> None:
        self._temporaries = layout.archive_private / "tmp"

    def link(self, work: Work, target: Path) -> None:
        temporary = self.temporary(work)
        temporary.unlink(missing_ok=True)  # of a run that was killed
        try:
            os.link(work.path, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in durable.NO_LINK_ERRORS:
                raise
            try:  # spool and archive on two file systems
                temporary.parent.mkdir(exist_ok=True)
                durable.copy_new(work.path, temporary, 0o644)
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def temporary(self, work: Work, kind: str = "") -> Path:
        """Name a half-made file of an entry; nobody else makes one, for the entry is locked."""
        return self._temporaries / f"{work.identifier}{kind}.tmp"


def same_file(work: Work, target: Path) -> bool:
    return os.path.samestat(os.fstat(work.file.fileno()), os.stat(target))


def same_bytes(work: Work, target: Path) -> bool:
    if os.stat(target).st_size != work.instance.size:
        return False
    return durable.sha256_of(target) == work.instance.digests.file


def is_there(work: Work, path: Path) -> bool:
    """Tell whether a file of the tree is this entry, or a copy of it."""
    try:
        return same_file(work, path) or same_bytes(work, path)
    except FileNotFoundError:
        return False
