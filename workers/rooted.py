"""Reach what lies below a store and follow no symbolic link on the way.

The store itself may be a link: it is what the settings name. Below it a link, or anything that is
no folder, leads out of it or to nowhere, so it is refused like a broken disk: what was to be
written there waits, and nothing is lost.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from workers import durable

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LinkRefused(OSError):
    """A symbolic link (or a file, a device …) stands where a folder or a file of ours belongs."""

    def __init__(self, path: PurePath | str) -> None:
        words = "a link, or nothing of ours, stands in its place"
        super().__init__(errno.ELOOP, words, os.fspath(path))


@contextmanager
def folder_below(top: Path, inside: PurePath, make: int | None = None) -> Iterator[int]:
    """Open a folder below `top` and yield its descriptor.

    With `make`, missing folders are made with these permissions, each name durable. Raises
    FileNotFoundError, LinkRefused, and ValueError for a path that leads upward.
    """
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError("a path below a store leads out of it")
    here = os.open(top, _FOLDER)
    try:
        for name in inside.parts:
            below = _enter(here, name, make)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def is_file(top: Path, inside: PurePath) -> bool:
    """Tell whether a regular file lies below `top`; False where nothing does.

    Raises LinkRefused where something else has its name, or that of a folder above it.
    """
    try:
        with folder_below(top, inside.parent) as folder:
            facts = os.stat(inside.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(facts.st_mode):
        raise LinkRefused(inside)
    return True


def _enter(above: int, name: str, make: int | None) -> int:
    try:
        return _open(above, name)
    except FileNotFoundError:
        if make is None:
            raise
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        pass  # another worker made it; its name is fsynced below all the same
    below = _open(above, name)
    try:
        durable.give_mode(below, make)
        os.fsync(above)
    except BaseException:
        os.close(below)
        raise
    return below


def _open(above: int, name: str) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # Linux says the latter of a link
            raise LinkRefused(name) from error
        raise
