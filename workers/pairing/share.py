"""Wait until this host has the memory that a pair takes; the pairs of all its workers share it.

Each pair lays a claim into a folder below `run`, and holds its lock (flock): a maker that is killed
claims nothing any more. Who came first begins first, so that a large pair is not passed by small
ones for ever.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from config.layout import Layout
from config.logs import get_logger
from workers import clock, durable
from workers.errors import StoreUnavailable
from workers.pairing.need import in_words

PART = 0.7
"""Of the memory of a host that pairs may take where nothing else is said."""

_PATIENCE_SECONDS = 600.0
"""So long a pair waits; then its worker looks for others, and it is asked for again."""
_LOOK_SECONDS = 0.2

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one pair takes, or waits to take."""

    order: str
    """Sorts as they came."""
    size: int
    """Bytes."""
    begun: bool


def may_begin(mine: Claim, others: Sequence[Claim], budget: int) -> bool:
    """Tell whether a pair may begin: nobody waits before it, and its memory is there.

    One that takes more than all there is begins where no other is being made.
    """
    if any(not other.begun and other.order < mine.order for other in others):
        return False
    taken = sum(other.size for other in others if other.begun)
    return not taken or taken + mine.size <= budget


@contextmanager
def share_of_memory(
    layout: Layout, size: int, budget: int, patience_seconds: float = _PATIENCE_SECONDS
) -> Iterator[None]:
    """Have `size` of the `budget` bytes of this host; wait for them first.

    Raises StoreUnavailable where they are not to be had within `patience_seconds`.
    """
    folder = layout.run / "pairing"
    folder.mkdir(mode=0o700, exist_ok=True)
    mine = Claim(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020}-{os.getpid()}", size, False)
    path = folder / f"{mine.order}.claim"
    descriptor = _lay(folder, path, mine)
    try:
        _await(folder, path, mine, budget, patience_seconds)
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def memory_budget(given_mb: int | None, memory: int | None = None) -> int:
    """Return how many bytes the pairs of this host may take together."""
    if given_mb is not None:
        return given_mb * 1_000_000
    return int((host_memory() if memory is None else memory) * PART)


def host_memory() -> int:
    """Return the bytes of memory of this machine, or of the control group that bounds us."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([memory, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_limits(told: Path, mounted: Path) -> Iterator[int]:
    """Yield the limits of our control group and those above it (cgroups(7), version 2)."""
    try:
        line = next(one for one in told.read_text().splitlines() if one.startswith("0::/"))
    except (OSError, StopIteration):
        return
    group = mounted / line.removeprefix("0::/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # "max", and the root has none
            yield int((folder / "memory.max").read_text())
        if folder == mounted:
            return


def _lay(folder: Path, path: Path, claim: Claim) -> int:
    """Make the file of a claim and hold its lock; return its descriptor."""
    with _alone(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        durable.try_lock(descriptor)
        _write(path, claim)
    return descriptor


def _await(folder: Path, path: Path, mine: Claim, budget: int, patience_seconds: float) -> None:
    began = clock.monotonic()
    told = False
    while True:
        with _alone(folder):
            others = _others(folder, path)
            if may_begin(mine, others, budget):
                _write(path, Claim(mine.order, mine.size, True))
                break
        waited = clock.monotonic() - began
        if waited > patience_seconds:
            raise StoreUnavailable(
                f"the pair needs about {in_words(mine.size)} of memory, and others of this host"
                f" have taken what there is of {in_words(budget)} (pairing.memory_mb)"
            )
        if not told:
            log.info("pair-waits-for-memory", need=in_words(mine.size), budget=in_words(budget))
        told = True
        time.sleep(_LOOK_SECONDS)
    if mine.size > budget:
        log.warning("pair-made-alone", need=in_words(mine.size), budget=in_words(budget))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let nobody else look at the claims meanwhile."""
    with open(folder / "lock", "ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _write(path: Path, claim: Claim) -> None:
    path.write_text(json.dumps({"size": claim.size, "begun": claim.begun}))


def _others(folder: Path, mine: Path) -> list[Claim]:
    """Read the claims of the living; remove those of the dead."""
    found = []
    for path in folder.glob("*.claim"):
        if path == mine:
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if durable.try_lock(descriptor):
                path.unlink(missing_ok=True)
                continue
            told = json.loads(path.read_text())
            found.append(Claim(path.stem, int(told["size"]), bool(told["begun"])))
        except FileNotFoundError:
            continue
        finally:
            os.close(descriptor)
    return found
