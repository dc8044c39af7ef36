"""File operations that survive a power cut, and the few that Python does not offer.

Durable means here: the bytes were fsynced, and so was the folder that names them (PS3.4 B.2.3 asks
that a Success is answered only for what is stored).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_FICLONE = 0x40049409
_COPY_BYTES = 1 << 20
NO_LINK_ERRORS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
"""What link(2) says between two file systems and where hard links are not known."""


_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FULL_WORDS = ("database or disk is full", "attempt to write a readonly database")
_FULL_STATE = "53100"
"""PostgreSQL's SQLSTATE, whose words are in its own language."""


def why_full(error: BaseException) -> str | None:
    """Say that nothing can be written (full, over quota, read-only) where an error says so.

    The words name no path: they go into logs.
    """
    if isinstance(error, OSError):
        return error.strerror if error.errno in _FULL_ERRORS else None
    if getattr(getattr(error, "orig", None), "sqlstate", None) == _FULL_STATE:
        return "the database's disk is full"
    words = str(error)  # SQLite's own
    return next((one for one in _FULL_WORDS if one in words), None)


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What is left on a file system; inodes are None where it does not count them."""

    bytes_free: int
    inodes_free: int | None


def fsync_folder(folder: Path | str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path | str) -> None:
    """Make the bytes of a file durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_mode(descriptor: int, mode: int) -> None:
    """Set the permissions of an open file or folder exactly, whatever the umask was.

    A folder that inherited its group from the one above (setgid) goes on handing it down.
    """
    have = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(have):
        mode |= have & stat.S_ISGID
    if stat.S_IMODE(have) != mode:
        os.fchmod(descriptor, mode)


def make_folders(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and its missing parents with these permissions, each name durable."""
    missing = []
    here = folder
    while not here.is_dir():
        missing.append(here)
        here = here.parent
    for here in reversed(missing):
        try:
            here.mkdir()
            give_folder_mode(here, mode)
        except FileExistsError:
            pass  # another worker made it; its name is fsynced below all the same
        fsync_folder(here.parent)


def give_folder_mode(folder: Path | str, mode: int) -> None:
    """`give_mode` by name, for a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        give_mode(descriptor, mode)
    finally:
        os.close(descriptor)


def create_new(path: Path | str, mode: int = 0o600) -> int:
    """Open a file that must not exist (O_EXCL) for writing, locked, and return its descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    give_mode(descriptor, mode)
    try_lock(descriptor)
    return descriptor


def create_nameless(folder: Path | str, mode: int = 0o600) -> int:
    """Make a file without a name; it goes with its descriptor, unless `name_new` names it.

    Raises OSError where no file can be without a name (NFS).
    """
    descriptor = os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode)
    give_mode(descriptor, mode)
    return descriptor


def name_new(descriptor: int, path: Path | str) -> int:
    """Give a nameless file a name that must not exist, in the same file system; open it by that
    name for writing, locked, in the place of `descriptor`.
    """
    try:
        os.utime(descriptor)  # as old as its name: until it is locked, age alone keeps it
        # a folder's descriptor, unused, makes it linkat(2), which follows the link that /proc is
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    finally:
        os.close(descriptor)
    named = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try_lock(named)
    return named


def write_new(path: Path | str, chunks: Iterable[bytes | memoryview], mode: int = 0o600) -> int:
    """Write a file that must not exist (O_EXCL), fsync it, return its size; removed on any error.

    While it is written it is locked: `remove_stale` takes only what nobody writes.
    """
    descriptor = create_new(path, mode)
    try:
        size = 0
        for chunk in chunks:
            size += write_whole(descriptor, chunk)
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    os.close(descriptor)
    return size


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file whole or not at all, durable; what was there is replaced."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    write_new(temporary, (data,), mode)
    os.replace(temporary, path)
    fsync_folder(path.parent)


def copy_new(source: Path | str, target: Path | str, mode: int = 0o600) -> None:
    """Copy into a file that must not exist, fsynced; as a reflink where the file system can.

    Raises OSError, and leaves no target, where the disk fills: write(2) may take a part without
    an error then.
    """
    with open(source, "rb", buffering=0, opener=no_follow) as reading:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            try:
                give_mode(descriptor, mode)
                try_lock(descriptor)
                try:
                    fcntl.ioctl(descriptor, _FICLONE, reading.fileno())
                except OSError:  # no reflinks here, or another file system
                    while chunk := reading.read(_COPY_BYTES):
                        write_whole(descriptor, chunk)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            os.unlink(target)
            raise


def rename_new(source: Path | str, target: Path | str) -> None:
    """Rename, but never over something: FileExistsError where the target exists."""
    if not _renameat2(source, target, _RENAME_NOREPLACE):
        os.link(source, target, follow_symlinks=False)  # fails where the target exists
        os.unlink(source)


def exchange(one: Path | str, other: Path | str) -> bool:
    """Exchange two names in one step; False where the file system cannot (NFS)."""
    return _renameat2(one, other, _RENAME_EXCHANGE)


def sha256_of(path: Path | str, offset: int = 0) -> str:
    """Return the SHA-256 of a file from an offset on, in hex."""
    with open(path, "rb", buffering=0, opener=no_follow) as file:
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(descriptor: int) -> bool:
    """Take an exclusive flock if nobody holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale(path: Path | str, older_than: float) -> bool:
    """Remove a temporary file or folder that is older (st_mtime, seconds) and not locked."""
    try:
        descriptor = _open_to_lock(path)
    except OSError:
        return False  # gone, or a link that is none of ours
    try:
        facts = os.fstat(descriptor)
        if facts.st_mtime > older_than or not try_lock(descriptor):
            return False
        if stat.S_ISDIR(facts.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return False
    finally:
        os.close(descriptor)
    return True


def _open_to_lock(path: Path | str) -> int:
    """Open a file or folder so that it can be locked: NFS locks only what may be written to."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | flags)
    except IsADirectoryError:
        return os.open(path, os.O_RDONLY | flags)


def write_whole(descriptor: int, data: bytes | memoryview) -> int:
    """Write everything, or raise: write(2) may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


def write_pieces(descriptor: int, pieces: Sequence[bytes | memoryview]) -> int:
    """Write pieces (IOV_MAX, 1024, at most) one behind the other, in one call where it takes all.

    What is left of them otherwise is copied: pieces are parts of one bounded buffer.
    """
    if len(pieces) == 1:
        return write_whole(descriptor, pieces[0])
    size = sum(map(len, pieces))
    written = os.writev(descriptor, pieces)
    if written < size:
        write_whole(descriptor, memoryview(b"".join(pieces))[written:])
    return size


def no_follow(path: str, flags: int) -> int:
    """Open what is no symbolic link, and wait for no pipe: an opener for `open`."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)  # opened anew it makes classes: a third of a rename


def _renameat2(source: Path | str, target: Path | str, flag: int) -> bool:
    import ctypes  # here: most who make things durable never come by

    try:
        call = _libc().renameat2
    except AttributeError:  # a C library older than glibc 2.28
        return False
    done = call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flag))
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(target))
