"""The clocks: wall time for people, monotonic time of one boot for decisions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


def utc_now() -> str:
    """Return the wall clock as ISO 8601 UTC with milliseconds."""
    return utc_of(time.time())


def utc_of(seconds: float) -> str:
    """Return a time of the wall clock, in seconds since 1970, as ISO 8601 UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def monotonic() -> float:
    """Return seconds that no clock step changes; comparable between processes of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Return which boot of which machine `monotonic` counts from."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
