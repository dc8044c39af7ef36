"""Real small disks of a test: tmpfs in a mount namespace of the test process alone."""

import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conftest import missing

_CLONE_NEWNS = 0x00020000


@functools.cache
def private_mounts() -> bool:
    """Leave the machine's mounts: what this thread and its children mount goes with them."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return False
    made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return made.returncode == 0


class Disk:
    """A mounted tmpfs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def fill(self, leave_bytes: int = 0) -> None:
        """Take what is free, but for `leave_bytes`."""
        facts = os.statvfs(self.place)
        with self._filler.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - leave_bytes)

    def free(self) -> None:
        self._filler.unlink()

    def resize(self, megabytes: int) -> None:
        call("mount", "-o", f"remount,size={megabytes}m", self.place)

    def protect(self, on: bool = True) -> None:
        """Mount it read-only, or writable again."""
        call("mount", "-o", f"remount,{'ro' if on else 'rw'}", self.place)

    def detach(self) -> None:
        call("umount", "--lazy", self.place)


@contextmanager
def small_disk(place: Path, megabytes: int = 16) -> Iterator[Disk]:
    """Mount an empty disk at a folder (made if need be); it is gone at the end."""
    if not private_mounts():
        missing("mounts of our own (root)")
    place.mkdir(parents=True, exist_ok=True)
    call("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0750", "test", place)
    try:
        yield Disk(place)
    finally:
        with suppress(subprocess.CalledProcessError):  # the test has detached it
            call("umount", "--lazy", place)


def call(*command: object) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, timeout=30)
