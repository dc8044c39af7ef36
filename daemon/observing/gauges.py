"""What the metrics tell of this moment: backlog, queues, disks, states. Nothing names a patient.

What takes its time (a full spool, a large index) is asked as rarely as it is slow.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import redis
import sqlalchemy as sa

from config.layout import Layout
from config.settings import Settings
from daemon.room import measure, refusals
from workers import clock, queues
from workers.filing.left import left_entries
from workers.index.engine import MetadataIndex, asking
from workers.index.queries import SET_ASIDE
from workers.index.seen import HostSeen, list_hosts
from workers.index.tables import arrival, pair, series
from workers.pairing.held import HeldReason, held_reason
from workers.spool.batches import waiting_entries
from workers.watermark import StoreRoom

_PAUSE_TIMES = 20
"""An answer counts for so many times what it took."""

_MOST_HELD = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IndexGauges:
    """Of the index: how much there is now."""

    skipped: int = 0
    set_aside: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """Files in quarantine, by outcome and code."""
    series: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[HeldReason, int] = field(default_factory=dict)
    hosts: Sequence[HostSeen] = ()


@dataclass(frozen=True, slots=True)
class SpoolGauges:
    """Of the spool: what waits, since when (seconds), and what cannot be filed."""

    entries: int
    oldest_seconds: float
    left: int


class Rarely(Generic[T]):
    """Keep an answer for as long as getting it anew would take more than a twentieth of the time;
    `clock` returns monotonic seconds.
    """

    def __init__(self, ask: Callable[[], T], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._kept: tuple[T, float] | None = None

    def get(self) -> T:
        began = self._clock()
        if self._kept is None or began >= self._kept[1]:
            found = self._ask()
            now = self._clock()
            self._kept = found, now + _PAUSE_TIMES * (now - began)
        return self._kept[0]


def read_index(index: MetadataIndex) -> IndexGauges:
    """Count states in the index."""
    with index.read() as connection:

        def grouped(*columns: sa.Column[str], where: sa.ColumnElement[bool]) -> list[Any]:
            counted = sa.select(*columns, sa.func.count()).where(where).group_by(*columns)
            return list(connection.execute(counted))

        reasons = connection.execute(
            sa.select(pair.c.reasons).where(pair.c.state == "held").limit(_MOST_HELD)
        ).scalars()
        return IndexGauges(
            skipped=connection.execute(
                sa.select(sa.func.count()).where(arrival.c.outcome == "skipped")
            ).scalar_one(),
            set_aside={
                (row[0], row[1] or "none"): row[2]
                for row in grouped(
                    arrival.c.outcome, arrival.c.code, where=arrival.c.outcome.in_(SET_ASIDE)
                )
            },
            series={
                row[0]: row[1] for row in grouped(series.c.state, where=series.c.instances > 0)
            },
            pairs={row[0]: row[1] for row in grouped(pair.c.state, where=sa.true())},
            held=Counter(held_reason(_first(text)) for text in reasons),
            hosts=list_hosts(asking(connection)),
        )


def _first(reasons: str) -> str:
    found = json.loads(reasons)
    return str(found[0]) if found else ""


def read_spool(layout: Layout) -> SpoolGauges:
    """Look at every entry that waits."""
    entries, oldest = 0, float("inf")
    for entry in waiting_entries(layout):
        with suppress(FileNotFoundError):  # filed meanwhile
            oldest = min(oldest, os.lstat(entry.where(layout)).st_ctime)
            entries += 1
    age = max(0.0, clock.wall() - oldest) if entries else 0.0
    return SpoolGauges(entries, age, len(left_entries(layout)))


def read_queues(settings: Settings) -> dict[str, int] | None:
    """Return the jobs of each queue; None where the queue server does not answer."""
    try:
        with queues.connect(settings) as connection:
            return queues.depths(connection, settings.spool.name)
    except redis.RedisError:
        return None


def read_disks(layout: Layout) -> dict[str, StoreRoom]:
    """Measure the stores that can be looked at."""
    found = {}
    for what, folder in _stores(layout).items():
        with suppress(OSError):
            found[what] = measure(what, folder)[0]
    return found


def refusing(layout: Layout) -> set[str]:
    """Name the intakes that take nothing now."""
    return set(refusals(layout))


def _stores(layout: Layout) -> dict[str, Path]:
    return {"archive": layout.archive, "spool": layout.spool}
