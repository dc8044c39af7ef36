"""A disk of the run's own that can be filled, or writes that say it is full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOOK = Path(__file__).with_name("chaos_hook")


class Disk:
    """Where the root lies, and how it gets full."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind = kind
        self.place = place
        self._flag = place.parent / "disk-is-full"
        self._filler = place / "filler"

    @property
    def environment(self) -> dict[str, str]:
        """What the processes of the run need to know."""
        if self.kind != "hook":
            return {}
        path = os.pathsep.join(filter(None, (str(_HOOK), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "CHAOS_FULL": str(self._flag)}

    def fill(self, leave_bytes: int) -> None:
        if self.kind == "hook":
            self._flag.touch()
            return
        facts = os.statvfs(self.place)
        free = facts.f_bavail * facts.f_frsize - leave_bytes
        with self._filler.open("wb") as file, suppress(OSError):
            if free > 0:
                os.posix_fallocate(file.fileno(), 0, free)

    def empty(self) -> None:
        for file in (self._filler, self._flag):
            with suppress(FileNotFoundError):
                file.unlink()


@contextmanager
def disk(kind: str, folder: Path, megabytes: int) -> Iterator[Disk]:
    """Make a disk: "tmpfs", "loop" (ext4 in a file) or "hook"; gone at the end."""
    place = folder / "disk"
    place.mkdir()
    if kind == "hook":
        yield Disk(kind, place)
        return
    if kind == "tmpfs":
        _call("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "chaos", place)
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        _call("mkfs.ext4", "-q", "-m", "0", "-N", str(megabytes * 256), image)
        _call("mount", "-o", "loop", image, place)
    try:
        yield Disk(kind, place)
    finally:
        _call("umount", "--lazy", place)


def best_kinds() -> list[str]:
    """Name the kinds of disk that can be had here, the real ones first."""
    kinds = ["hook"]
    if os.geteuid() == 0 and shutil.which("unshare"):
        # a trial in a mount namespace of its own leaves nothing behind
        trial = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "trial", "/mnt"]
        if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            kinds.insert(0, "tmpfs")
            if Path("/dev/loop-control").exists() and shutil.which("mkfs.ext4"):
                kinds.insert(0, "loop")
    return kinds


def _call(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)
