"""The clocks: wall time for people, monotonic time of one boot for decisions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


def utc_now() -> str:
    """Return the wall clock as ISO 8601 UTC with milliseconds."""
    return utc_of(wall())


def wall() -> float:
    """Return seconds since 1970 of a clock that may be set by hours: decide nothing by it."""
    return time.time()


def utc_of(seconds: float) -> str:
    """Return a time of the wall clock, in seconds since 1970, as ISO 8601 UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_since(at: str) -> float:
    """Return how long ago a time of `utc_now` was; below 0 where the clock was set back."""
    return wall() - datetime.fromisoformat(at).timestamp()


def seconds_between(earlier: str, later: str) -> float:
    """Return how far two times of `utc_now` lie apart; below 0 where the clock was set back."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def monotonic() -> float:
    """Return seconds that no clock step changes; comparable between processes of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Return which boot of which machine `monotonic` counts from."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
