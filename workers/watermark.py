"""Is there room for what comes in? One decision for every intake, with hysteresis.

Below the reserve nothing is taken. It is taken again only when `resume_factor` times the reserve is
free: else a disk at the mark would refuse and take by turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.durable import FreeSpace


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is to stay free on each store."""

    minimum_bytes: int
    minimum_inodes: int
    resume_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class StoreRoom:
    """What one store has, as it was measured."""

    name: str
    free: FreeSpace
    read_only: bool = False
    owed_bytes: int = 0
    """What waits elsewhere and is still to be written here."""
    owed_entries: int = 0

    def short_of(self, minimum_bytes: int, minimum_inodes: int) -> str | None:
        """Say in words what is short, or None."""
        left = self.free.bytes_free - self.owed_bytes
        if left < minimum_bytes:
            beside = f" beside {self.owed_bytes >> 20} MiB that wait for it" * bool(self.owed_bytes)
            return (
                f"the {self.name} has {max(left, 0) >> 20} MiB free{beside},"
                f" {minimum_bytes >> 20} MiB are kept in reserve"
            )
        if self.free.inodes_free is not None:
            left = self.free.inodes_free - self.owed_entries
            if left < minimum_inodes:
                return (
                    f"the {self.name} has {max(left, 0)} inodes free,"
                    f" {minimum_inodes} are kept in reserve"
                )
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something may be taken now; `low` is to be handed in the next time."""

    low: bool
    reason: str | None


def judge_room(
    stores: Iterable[StoreRoom], reserve: Reserve, *, low: bool, size: int = 0
) -> Verdict:
    """Decide whether `size` bytes may be taken.

    `low` tells whether the reserve was touched and is not restored yet. A single instance that is
    too large for what is free is refused, and leaves the way open for smaller ones.
    """
    stores = tuple(stores)
    for store in stores:
        if store.read_only:
            return Verdict(low, f"the {store.name} is mounted read-only")
    factor = reserve.resume_factor if low else 1.0
    wanted = int(reserve.minimum_bytes * factor), int(reserve.minimum_inodes * factor)
    for store in stores:
        if short := store.short_of(*wanted):
            return Verdict(True, short)
    for store in stores:
        if short := store.short_of(reserve.minimum_bytes + size, reserve.minimum_inodes):
            return Verdict(False, short)
    return Verdict(False, None)
