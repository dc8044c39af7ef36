"""What only a process knows, counted for `/metrics`: C-STOREs, refusals, latencies, starts.

    run/metrics/<role>-<n>.lock    held for as long as a process counts there
    run/metrics/<role>-<n>.json    its totals, and those of every process that was there before

A process takes the first place of its role that nobody holds, and goes on from what stands there:
totals never fall, a kill loses the last moment alone, and there are never more files than there
were processes of a role at once. Counting touches memory only; whoever counts says when to write.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from config.layout import Layout
from workers import durable


class Counted(StrEnum):
    """What is counted."""

    STARTS = "starts"  # by role
    RECEIVED = "received"
    RECEIVED_BYTES = "received_bytes"
    REFUSED = "refused"  # by reason


class Timed(StrEnum):
    """What is timed, in seconds."""

    RECEIVE = "receive"  # from the beginning of a C-STORE to its answer
    FILE = "file"  # from the spool into tree and index
    PAIR = "pair"  # from the last instance that a pair needed to the pair in its place


BOUNDS: Mapping[Timed, tuple[float, ...]] = MappingProxyType(
    {
        Timed.RECEIVE: (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        Timed.FILE: (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200),
        Timed.PAIR: (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14400),
    }
)
"""Upper ends of the classes of each histogram; one more class holds what is longer."""

_Key = tuple[Counted, str]


@dataclass(slots=True)
class Totals:
    """Counts by name and label, and for each histogram its classes and the sum of its values."""

    counts: Counter[_Key] = field(default_factory=Counter)
    classes: dict[Timed, list[int]] = field(default_factory=dict)
    sums: dict[Timed, float] = field(default_factory=dict)

    def observe(self, name: Timed, seconds: float) -> None:
        classes = self.classes.setdefault(name, [0] * (len(BOUNDS[name]) + 1))
        classes[bisect_left(BOUNDS[name], seconds)] += 1
        self.sums[name] = self.sums.get(name, 0.0) + seconds

    def add(self, other: Totals) -> None:
        self.counts.update(other.counts)
        for name, classes in other.classes.items():
            mine = self.classes.get(name, [0] * len(classes))
            self.classes[name] = [a + b for a, b in zip(mine, classes, strict=True)]
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]

    def to_json(self) -> str:
        return json.dumps(
            {
                "counts": [[*key, count] for key, count in self.counts.items()],
                "times": {name: [self.classes[name], self.sums[name]] for name in self.classes},
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Totals:
        """Read totals; what this version does not know is left out. Raises ValueError."""
        found = cls()
        try:
            raw: dict[str, Any] = json.loads(text)
            for name, label, count in raw["counts"]:
                if name in set(Counted):
                    found.counts[Counted(name), str(label)] = int(count)
            for name, (classes, total) in raw["times"].items():
                if name in set(Timed) and len(classes) == len(BOUNDS[Timed(name)]) + 1:
                    found.classes[Timed(name)] = [int(one) for one in classes]
                    found.sums[Timed(name)] = float(total)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("no totals of ours") from error
        return found


class Measures:
    """The counts of one process; safe for several threads. Only `flush` touches the disk."""

    def __init__(self, layout: Layout, role: str) -> None:
        self._folder = layout.metrics
        self._role = role
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._totals = Totals()
        self._changed = False
        self._place: tuple[int, Path] | None = None

    def count(self, name: Counted, label: str = "", by: int = 1) -> None:
        """Count something; `label` comes from a short list of ours, never from outside."""
        with self._lock:
            self._totals.counts[name, label] += by
            self._changed = True

    def observe(self, name: Timed, seconds: float) -> None:
        """Note how long something took; a clock that was set back makes it nothing."""
        with self._lock:
            self._totals.observe(name, max(0.0, seconds))
            self._changed = True

    def flush(self) -> None:
        """Write what was counted, for others to read; what cannot be written is kept.

        Not durable on purpose: after a power cut the totals may begin anew.
        """
        with self._flushing, suppress(OSError):
            if self._place is None:
                self._place = _take_place(self._folder, self._role)
                with self._lock:
                    self._totals.add(_read(self._place[1]))
            path = self._place[1]
            with self._lock:
                changed, self._changed = self._changed, False
                text = self._totals.to_json()
            if changed:
                try:
                    _replace(path, text)
                except OSError:
                    with self._lock:
                        self._changed = True
                    raise

    def close(self) -> None:
        """Write, and leave the place to the next; what is counted later begins anew there."""
        self.flush()
        with self._flushing, self._lock:
            if self._place is not None:
                os.close(self._place[0])
                self._place, self._totals = None, Totals()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def note_start(layout: Layout, role: str) -> None:
    """Count that a process of a role starts."""
    with Measures(layout, role) as measures:
        measures.count(Counted.STARTS, role)


def read_measures(layout: Layout) -> Totals:
    """Add up what all processes of this machine have counted."""
    found = Totals()
    for path in _files(layout.metrics, "*.json"):
        found.add(_read(path))
    return found


def is_counting(layout: Layout, role: str) -> bool:
    """Tell whether a process of a role holds a place: it lives, on this machine."""
    return any(_is_held(path) for path in _files(layout.metrics, f"{role}-*.lock"))


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from sorted(folder.glob(pattern))


def _take_place(folder: Path, role: str) -> tuple[int, Path]:
    """Return the held lock (a descriptor) and the file of the first free place."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{role}-{number}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if durable.try_lock(descriptor):
            return descriptor, path.with_suffix(".json")
        os.close(descriptor)
        number += 1


def _is_held(path: Path) -> bool:
    """Ask with a shared lock: who starts this moment takes the next place, which is as good."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> Totals:
    try:
        return Totals.from_json(path.read_bytes())
    except (FileNotFoundError, ValueError):  # not written yet, or cut by a power failure
        return Totals()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")  # one writer a place
    temporary.write_text(text, encoding="ascii")
    os.replace(temporary, path)
