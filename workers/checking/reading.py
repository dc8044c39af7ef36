"""Look at files without following links and without disturbing anybody."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from workers import durable

YOUNG_SECONDS = 60.0
"""What was touched so lately may be in somebody's hands; it is left alone and not told."""


def facts_of(path: Path) -> os.stat_result | None:
    """Return what a name stands for (lstat), None where there is nothing."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(path: Path) -> bool:
    facts = facts_of(path)
    return facts is not None and stat.S_ISREG(facts.st_mode)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; a link raises OSError."""
    with open(path, "rb", buffering=0, opener=_no_follow) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leads_through_link(top: Path, path: str) -> bool:
    """Tell whether a folder on the way to a path is a link, or no folder, or cannot be entered."""
    here = top
    for part in path.split("/")[:-1]:
        here = here / part
        try:
            facts = os.lstat(here)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        if not stat.S_ISDIR(facts.st_mode):
            return True
    return not os.access(here, os.R_OK | os.X_OK)


def in_use(path: Path) -> bool:
    """Tell whether a process holds a file or folder locked; asks for the lock without waiting.

    For names only that nobody is about to lock for the first time.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        return not durable.try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_left_over(path: Path, now: float) -> bool:
    """Tell whether something half-made is old enough (wall clock) and in nobody's hands."""
    facts = facts_of(path)
    if facts is None or now - max(facts.st_mtime, facts.st_ctime) < YOUNG_SECONDS:
        return False
    return not in_use(path)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
