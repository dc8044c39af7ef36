"""What hardware so many terabytes a week need: a small model from measured costs.

    python benchmarks/capacity.py

Prints the tables of docs/scaling.md; a test compares them. Each cost is a figure that was measured
on the machine of docs/performance.md, with the command beside it there and in docs/scaling.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WEEK_SECONDS = 7 * 24 * 3600.0
YEAR_WEEKS = 365.25 / 7


@dataclass(frozen=True, slots=True)
class Costs:
    """What one instance, one study and one queued job cost; cores are those of the machine."""

    study_instances: int = 1200
    """600 CT of 512x512 and 600 PET of 200x200: a whole body."""
    instance_bytes: float = 302_500
    """Their mean."""
    receive_ms: float = 2.2
    """Of a core, an instance: the whole process, most of it the kernel's, median of the four of
    benchmarks/end_to_end.py on a quiet machine (1.9 to 2.7; docs/performance.md, End to end)."""
    file_ms: float = 1.7
    """Of a core, an instance: read, placed, linked, committed, judged (the same; 1.7 to 1.8)."""
    receive_syncs: float = 2.0
    """An instance: of its bytes, and of its name (docs/performance.md, Receive)."""
    file_syncs: float = 0.1
    """An instance, in batches of 100: folders, commit, journal."""
    pair_core_seconds: float = 6.9
    """A whole body, reading of its files and imports included (benchmarks/pair.py)."""
    pair_memory_gb: float = 0.4
    """Peak of a worker that makes one (benchmarks/pair.py)."""
    pair_bytes: float = 147e6
    """ct.npy (int16) and pet.npy (float32) on the grid of the PET, 600x200x200, and a picture."""
    sqlite_bytes: float = 3500
    """Of index, an instance (benchmarks/synthetic_index.py)."""
    postgresql_bytes: float = 2700
    """Of index, an instance (benchmarks/year.py)."""
    hot_bytes: float = 200
    """Of it, the indices over random keys that each new instance touches."""
    mirror_ms: float = 4.2
    """Of a core, an object that is mirrored, mean of small and large (docs/scaling.md)."""
    filing_job_bytes: float = 6_400
    """Of the queue server's memory, a job of 100 entries."""
    pairing_job_bytes: float = 1_200
    queued_jobs: int = 50
    """Of each queue, at most; the rest waits in spool and index."""


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in."""

    terabytes_a_week: float
    peak: float = 3.0
    """The busiest hours against the mean: most comes in by day."""
    busy: float = 0.6
    """Of cores and disks, what may be in use at the peak."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a load needs; rates and cores are of the peak, sizes of the mean."""

    instances: float
    studies_an_hour: float
    network_mbit: float
    receive_cores: float
    file_cores: float
    pair_cores: float
    pair_workers: int
    pair_memory_gb: float
    mirror_cores: float
    syncs: float
    archive_tb_a_year: float
    millions_a_year: float
    sqlite_gb_a_year: float
    postgresql_gb_a_year: float
    hot_gb_a_year: float
    queue_mb: float


def need(load: Load, costs: Costs | None = None) -> Need:
    """Return what a load needs."""
    costs = costs or Costs()
    mean = load.terabytes_a_week * 1e12 / costs.instance_bytes / WEEK_SECONDS
    peak = mean * load.peak
    studies = peak / costs.study_instances
    rows = mean * WEEK_SECONDS * YEAR_WEEKS
    pair_cores = studies * costs.pair_core_seconds / load.busy
    workers = max(1, math.ceil(pair_cores / 2))  # one uses two cores while it decodes
    made = rows / costs.study_instances * costs.pair_bytes
    return Need(
        instances=peak,
        studies_an_hour=studies * 3600,
        network_mbit=peak * costs.instance_bytes * 8 / 1e6,
        receive_cores=peak * costs.receive_ms / 1000 / load.busy,
        file_cores=peak * costs.file_ms / 1000 / load.busy,
        pair_cores=pair_cores,
        pair_workers=workers,
        pair_memory_gb=workers * costs.pair_memory_gb,
        mirror_cores=mean * costs.mirror_ms / 1000 / load.busy,  # it may fall behind by day
        syncs=peak * (costs.receive_syncs + costs.file_syncs) / load.busy,
        archive_tb_a_year=(rows * costs.instance_bytes + made) / 1e12,
        millions_a_year=rows / 1e6,
        sqlite_gb_a_year=rows * costs.sqlite_bytes / 1e9,
        postgresql_gb_a_year=rows * costs.postgresql_bytes / 1e9,
        hot_gb_a_year=rows * costs.hot_bytes / 1e9,
        queue_mb=costs.queued_jobs * (costs.filing_job_bytes + costs.pairing_job_bytes) / 1e6,
    )


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return e of the cost ~ size^e that fits best (size, cost): 1 grows with the size, 0 not."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points]
    size = sum(x for x, _ in logs) / len(logs)
    cost = sum(y for _, y in logs) / len(logs)
    spread = sum((x - size) ** 2 for x, _ in logs)
    return sum((x - size) * (y - cost) for x, y in logs) / spread


LOADS = (Load(1), Load(10), Load(100))

_ROWS = (
    ("instances a second", "instances"),
    ("studies an hour", "studies_an_hour"),
    ("network, Mbit/s", "network_mbit"),
    ("cores that receive", "receive_cores"),
    ("cores that file", "file_cores"),
    ("cores that pair", "pair_cores"),
    ("pairing workers", "pair_workers"),
    ("memory of these, GB", "pair_memory_gb"),
    ("cores that mirror (mean)", "mirror_cores"),
    ("disk: syncs a second", "syncs"),
    ("archive and pairs, TB a year", "archive_tb_a_year"),
    ("instances a year, millions", "millions_a_year"),
    ("index on SQLite, GB a year", "sqlite_gb_a_year"),
    ("index on PostgreSQL, GB a year", "postgresql_gb_a_year"),
    ("of it to keep in memory, GB a year", "hot_gb_a_year"),
    ("queue server, MB", "queue_mb"),
)


def table(loads: Sequence[Load] = LOADS) -> str:
    """Return the table of needs in Markdown."""
    needs = [need(load) for load in loads]
    lines = [
        _line("at the peak", (f"{load.terabytes_a_week:g} TB a week" for load in loads)),
        "|---" * (len(loads) + 1) + "|",
    ]
    for words, name in _ROWS:
        scale = 1e6 if name == "rows_a_year" else 1
        lines.append(
            _line(
                words,
                (
                    _short(getattr(one, name) / scale if scale > 1 else getattr(one, name))
                    for one in needs
                ),
            )
        )
    return "\n".join(lines)


def _line(first: str, cells: Iterable[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"


def _short(value: float) -> str:
    """Write two significant digits, below 1 one: no more is known."""
    if isinstance(value, int):
        return f"{value}"
    if value < 1:
        return f"{value:.1g}"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


if __name__ == "__main__":
    print(table())
