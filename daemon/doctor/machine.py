"""Look at the machine: clock, limits, versions of what we are built on."""

from __future__ import annotations

import ctypes
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from config.settings import Settings
from daemon.doctor.findings import Finding, Level, judge_clock, judge_watches
from workers import clock

_LIBRARIES = ("pynetdicom", "pydicom", "SimpleITK", "numpy", "SQLAlchemy", "rq", "redis")
_TIME_ERROR = 5
_TIMEX_BYTES = 1024
"""More than any kernel's struct timex has."""

_COUNT_SECONDS = 2.0


def examine_machine(settings: Settings) -> Iterator[Finding]:
    """Yield what is to be said of the machine."""
    yield _versions()
    newest = None
    with suppress(OSError):
        newest = max((os.stat(path).st_mtime for path in _written(settings)), default=None)
    yield judge_clock(clock.wall(), newest, _synchronized())
    folders = [one.path for one in settings.watched if one.events == "native"]
    with suppress(OSError, ValueError):
        limits = [
            int(Path(f"/proc/sys/fs/inotify/max_user_{what}").read_text("ascii"))
            for what in ("watches", "instances")
        ]
        yield judge_watches(*_count_folders(folders), *limits)


def _versions() -> Finding:
    found = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            advice = "install petct-ingest anew: pip install --constraint constraints.txt ."
            return Finding("versions", Level.FAIL, f"{library} is not installed", advice)
    return Finding("versions", Level.OK, ", ".join(found))


def _written(settings: Settings) -> list[Path]:
    layout = settings.layout
    return [path for path in (layout.index, layout.stores, layout.run) if path.exists()]


def _synchronized() -> bool | None:
    """Ask the kernel whether a time server keeps the clock (adjtimex(2)); None: it does not say."""
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(
            ctypes.create_string_buffer(_TIMEX_BYTES)
        )
    except AttributeError:
        return None
    return None if answer < 0 else answer != _TIME_ERROR


def _count_folders(tops: list[Path]) -> tuple[int, bool]:
    """Count the folders below some, and say whether there was time for all."""
    end = time.monotonic() + _COUNT_SECONDS
    count = 0
    for top in tops:
        for _ in os.walk(top):
            count += 1
            if time.monotonic() > end:
                return count, False
    return count, True
