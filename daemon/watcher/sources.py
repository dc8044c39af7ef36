"""A settled file, opened before it is taken: what is done to its name changes no file we mean."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.watcher.leases import LeaseState, nobody_waits, take_lease
from daemon.watcher.outcomes import NotNow, Outcome
from daemon.watcher.settling import FileState, state_of
from workers import durable


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source that is open for reading: nothing done to its name can change which file we mean."""

    descriptor: int
    facts: os.stat_result
    lease: LeaseState

    def may_become_ours(self, device: int) -> bool:
        """Tell whether the inode itself may go into the spool, or only a copy of it.

        Not with another link, and not while another user owns it: either could change it later.
        """
        facts = self.facts
        mine = facts.st_uid == os.geteuid()
        return facts.st_nlink == 1 and facts.st_dev == device and mine

    def undisturbed(self) -> bool:
        """Tell whether nobody writes, wrote or linked since it was opened."""
        now = os.fstat(self.descriptor)
        return (
            state_of(now) == state_of(self.facts)
            and now.st_nlink <= self.facts.st_nlink
            and nobody_waits(self.descriptor, self.lease)
        )


@contextmanager
def open_source(path: Path, state: FileState | None) -> Iterator[OpenedSource]:
    """Open a settled file, with a lease where we may; raises NotNow if it is not as it was."""
    # O_NONBLOCK: what has become a FIFO meanwhile must not hold us
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or (state is not None and state_of(facts) != state):
            raise NotNow(Outcome.CHANGED)
        if os.readlink(f"/proc/self/fd/{descriptor}") != os.fspath(path):  # a link led there
            raise NotNow(Outcome.CHANGED)
        lease = take_lease(descriptor)
        if lease is LeaseState.BUSY:
            raise NotNow(Outcome.BUSY)
        yield OpenedSource(descriptor, facts, lease)
    finally:
        os.close(descriptor)


def is_at(path: Path, file: OpenedSource) -> bool:
    try:
        facts = os.lstat(path)
    except OSError:
        return False
    return (facts.st_dev, facts.st_ino) == (file.facts.st_dev, file.facts.st_ino)


def renamed_back(target: Path, source: Path) -> bool:
    """Give a file its name back; False where the name is taken again, or the file is gone."""
    try:
        durable.rename_new(target, source)
    except OSError:
        return False
    return True


def removed(path: Path) -> bool:
    """Remove what came in the place of a file and holds no data: a link, a pipe, a socket."""
    try:
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode):
            return False
        os.unlink(path)
    except FileNotFoundError:
        pass
    return True
