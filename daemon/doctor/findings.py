"""What the doctor makes of what was measured: pure rules, each with its advice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from daemon.watcher.territory import NETWORK_FILE_SYSTEMS


class Level(StrEnum):
    """How well one thing is."""

    OK = "ok"
    WARN = "warn"
    """It works, and will trouble somebody."""
    FAIL = "fail"
    """It does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, in words, and what to do where it is not well."""

    name: str
    level: Level
    words: str
    advice: str = ""


MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs"))
SLOW_FILES_PER_SECOND = 50.0
"""A PET/CT of 1,000 slices would take more than 20 s to be acknowledged."""

_OLDEST_REDIS = (6, 2)
"""The first with BLMOVE, by which a worker takes its job."""

_FEW_INSTANCES = 16
_STEP_SECONDS = 60.0


def judge_file_system(what: str, kind: str) -> Finding:
    """Judge where spool, archive or index lie."""
    name = f"file system of the {what}"
    if kind in MEMORY_FILE_SYSTEMS:
        advice = f"move the {what} to a disk"
        return Finding(name, Level.FAIL, f"{kind} is memory: a restart loses it", advice)
    if kind in NETWORK_FILE_SYSTEMS:
        if what == "index":
            advice = "keep the root on a local disk; only the archive may lie elsewhere"
            return Finding(name, Level.FAIL, f"SQLite cannot be trusted on {kind}", advice)
        advice = "locks and fsync depend on the server: a local disk is better, for the spool most"
        return Finding(name, Level.WARN, f"{kind} is a network's", advice)
    if kind == "overlay":
        advice = "give the container a volume"
        return Finding(name, Level.WARN, "overlay is a container's own: it goes with it", advice)
    return Finding(name, Level.OK, kind or "not known")


def judge_speed(what: str, files_per_second: float) -> Finding:
    """Judge how many files of half a megabyte a store makes durable in a second."""
    words = f"{files_per_second:,.0f} files of 0.5 MB a second, each durable"
    if files_per_second >= SLOW_FILES_PER_SECOND:
        return Finding(f"speed of the {what}", Level.OK, words)
    advice = "a sender waits for every slice: use a faster disk, or one that others do not use"
    return Finding(f"speed of the {what}", Level.WARN, words, advice)


def judge_watches(folders: int, counted_all: bool, watches: int, instances: int) -> Finding:
    """Judge the limits of inotify against the folders that are watched; each needs a watch."""
    name = "inotify limits"
    more = "" if counted_all else " or more"
    words = (
        f"{folders:,}{more} watched {'folder' if folders == 1 else 'folders'}, {watches:,} watches"
    )
    if instances < _FEW_INSTANCES:
        advice = "sysctl fs.inotify.max_user_instances=128"
        return Finding(name, Level.WARN, f"{instances} instances for a user", advice)
    if 2 * folders > watches or (not counted_all and folders > watches / 10):
        advice = f"sysctl fs.inotify.max_user_watches={max(524_288, 8 * folders)}; till then"
        return Finding(name, Level.WARN, words, f"{advice} scans find what no event tells")
    return Finding(name, Level.OK, words)


def judge_clock(now: float, newest_file: float | None, synchronized: bool | None) -> Finding:
    """Judge the wall clock: against our own newest file, and by what the kernel says of it.

    Times are seconds since 1970; `synchronized` is None where nobody knows.
    """
    if newest_file is not None and newest_file > now + _STEP_SECONDS:
        hours = (newest_file - now) / 3600
        advice = "set it right (timedatectl); decisions here run on the boot clock, dates do not"
        return Finding("clock", Level.WARN, f"it was set back by {hours:.1f} h or more", advice)
    if synchronized is False:
        advice = "start chrony or systemd-timesyncd: dates of arrival are compared with scanners'"
        return Finding("clock", Level.WARN, "no time server keeps it right", advice)
    words = "kept right by a time server" if synchronized else "nothing speaks against it"
    return Finding("clock", Level.OK, words)


def judge_queue_server(version: str, policy: str | None) -> Finding:
    """Judge the server of the queues by its version and by what it does when memory is full."""
    name, words = "queue server", f"version {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_REDIS:
        return Finding(name, Level.FAIL, words, "use Valkey, or Redis 6.2 or newer")
    if policy not in (None, "noeviction"):
        advice = "set maxmemory-policy noeviction: a full server then refuses, and nothing is late"
        return Finding(name, Level.WARN, f"{words} drops jobs when full ({policy})", advice)
    return Finding(name, Level.OK, f"{words} answers")


def exit_is_clean(findings: list[Finding]) -> bool:
    """Tell whether all works, perhaps with warnings."""
    return all(one.level is not Level.FAIL for one in findings)
