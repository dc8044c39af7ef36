"""Tell of a disk that gets full before anything is refused, and when it has room again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from config.layout import Layout
from config.settings import Settings
from daemon.notifying.notices import Notice, Topic
from daemon.room import measure
from workers.watermark import Reserve, StoreRoom, judge_room


def warning_reserve(settings: Settings) -> Reserve:
    """Return what is free when a person is warned: some times what is kept free."""
    spool, factor = settings.spool, settings.notify.disk_factor
    return Reserve(
        int((spool.minimum_free_mb << 20) * factor),
        int(spool.minimum_free_inodes * factor),
        spool.resume_factor,
    )


def turns(
    rooms: Iterable[StoreRoom], was_low: Mapping[str, bool], reserve: Reserve
) -> dict[str, tuple[bool, str]]:
    """Return the stores whose state has changed: whether it is low now, and the words."""
    found = {}
    for room in rooms:
        before = was_low.get(room.name, False)
        verdict = judge_room([room], reserve, low=before)
        if verdict.low != before:
            free = f"{room.free.bytes_free >> 20} MiB"
            words = (
                f"the disk of the {room.name} gets full: {free} and {_inodes(room)} are free"
                if verdict.low
                else f"the disk of the {room.name} has room again: {free} are free"
            )
            found[room.name] = verdict.low, words
    return found


def disk_notice(origin: str, store: str, low: bool, words: str, at: str) -> Notice:
    """Put a turn into a message; it has no event, for a full disk takes none."""
    kind = "disk-low" if low else "disk-free"
    return Notice(f"{origin}-{kind}-{store}-{at}", at, Topic.DISK, kind, words, code=store)


def measure_disks(layout: Layout) -> list[StoreRoom]:
    """Measure the disks of archive and spool, one disk once; a missing one tells itself."""
    found, seen = [], set()
    for name, folder in (("archive", layout.archive), ("spool", layout.spool)):
        with suppress(OSError):
            device = os.stat(folder).st_dev
            if device not in seen:
                seen.add(device)
                found.append(measure(name, folder)[0])
    return found


def _inodes(room: StoreRoom) -> str:
    return "any number of files" if room.free.inodes_free is None else (
        f"{room.free.inodes_free} inodes"
    )  # fmt: skip
