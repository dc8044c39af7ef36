"""Give a row its file back: verified bytes, a name where there was none, nothing overwritten."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from config.layout import Layout
from workers import durable
from workers.checking.reading import digest_of

_TAKEN = "something lies there by now"


def put_back(layout: Layout, file: Path, place: str, digest: str) -> str | None:
    """Give a row its file back as a copy of one that lies outside the tree.

    Only where its bytes are those that were filed; returns in words why not.
    """
    target = layout.archive / place
    folder = layout.archive_private / "tmp"
    folder.mkdir(mode=0o700, exist_ok=True)
    temporary = folder / f"check-{secrets.token_hex(8)}.tmp"
    try:
        durable.copy_new(file, temporary, layout.file_mode)
        if digest_of(temporary) != digest:
            return "its bytes are not those that were filed"
        return _name(layout, temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def move_back(layout: Layout, path: str, place: str, digest: str) -> str | None:
    """Move a file of the tree to where its row says; what has further names keeps this one."""
    file, target = layout.archive / path, layout.archive / place
    if digest_of(file) != digest:
        return "its bytes are not those that were filed"
    if os.lstat(file).st_nlink > 1:
        return _name(layout, file, target)
    durable.make_folders(target.parent, layout.folder_mode)
    try:
        durable.rename_new(file, target)
    except FileExistsError:
        return _TAKEN
    durable.fsync_folder(target.parent)
    durable.fsync_folder(file.parent)
    return None


def _name(layout: Layout, file: Path, target: Path) -> str | None:
    """Give a file of the archive's file system its name in the tree, overwriting nothing."""
    durable.make_folders(target.parent, layout.folder_mode)
    try:
        os.link(file, target, follow_symlinks=False)
    except FileExistsError:
        return _TAKEN
    durable.fsync_folder(target.parent)
    return None
