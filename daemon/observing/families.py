"""Put what was counted and measured into the words of Prometheus.

Labels come from short lists of ours: no patient, UID, AE title, address or path is ever one.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from daemon.observing.gauges import IndexGauges, SpoolGauges
from daemon.receiver.storing import Refusal
from workers.index.queries import SET_ASIDE
from workers.measuring import BOUNDS, Counted, Timed, Totals
from workers.watermark import Reserve, StoreRoom

_PREFIX = "petct_ingest_"


@dataclass(frozen=True, slots=True)
class Scrape:
    """All that one look found; None where it could not be looked at."""

    version: str
    measures: Totals
    events: Mapping[tuple[str, str], int] | None
    index: IndexGauges | None
    spool: SpoolGauges | None
    queues: Mapping[str, int] | None
    disks: Mapping[str, StoreRoom]
    reserve: Reserve
    refusing: frozenset[str]
    ready: Mapping[str, bool]


def families(scrape: Scrape) -> Iterator[Metric]:
    """Yield every metric of a scrape."""
    yield _gauge(
        "build_info", "The version that answers.", ("version", "python"),
        {(scrape.version, platform.python_version()): 1},
    )  # fmt: skip
    yield from _intake(scrape.measures)
    yield from _durations(scrape.measures)
    if scrape.events is not None:
        yield from _events(scrape.events)
    if scrape.index is not None:
        yield from _index(scrape.index)
    if scrape.spool is not None:
        yield from _spool(scrape.spool)
    yield from _now(scrape)


def _intake(measures: Totals) -> Iterator[Metric]:
    counts = measures.counts
    yield _counter(
        "received", "Instances answered with 0x0000.", (), {(): counts[Counted.RECEIVED, ""]}
    )
    yield _counter(
        "received_bytes", "Bytes of their data sets.", (), {(): counts[Counted.RECEIVED_BYTES, ""]}
    )
    yield _counter(  # from 0 on: an increase from nothing is none to Prometheus
        "refused", "Instances answered with another status.", ("reason",),
        {(str(reason),): counts[Counted.REFUSED, reason] for reason in Refusal},
    )  # fmt: skip
    yield _counter(
        "role_starts", "Processes of ours that were started.", ("role",),
        {(label,): count for (name, label), count in counts.items() if name is Counted.STARTS},
    )  # fmt: skip


def _durations(measures: Totals) -> Iterator[Metric]:
    for name, words in (
        (Timed.RECEIVE, "From the beginning of a C-STORE to its answer."),
        (Timed.FILE, "From the spool into tree and index."),
        (Timed.PAIR, "From the last instance that a pair needed to the pair in its place."),
    ):
        classes = measures.classes.get(name, [0] * (len(BOUNDS[name]) + 1))
        below, buckets = 0, []
        for bound, count in zip((*BOUNDS[name], float("inf")), classes, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(below)))
        yield HistogramMetricFamily(
            f"{_PREFIX}{name}_seconds", words, buckets=buckets, sum_value=measures.sums.get(name, 0)
        )


def _events(events: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    counts = Counter(events)
    for name, kind, words in (
        ("filed", "filed", "Instances that came into tree and index."),
        ("adopted", "adopted", "Instances that were found in the tree."),
        ("duplicates", "duplicate", "Instances that were there already and were dropped."),
        ("archives_expanded", "expanded", "Archives that were unpacked."),
        ("workers_died", "worker-died", "Workers that were killed while they read an entry."),
        ("pairs_ready", "pair-ready", "Revisions of pairs that came into their place."),
        ("pairs_held", "pair-held", "Verdicts that hold a pair."),
        ("pair_failures", "pair-failing", "Errors of the system that kept a pair from being made."),
        ("pair_makers_died", "pair-maker-died", "Processes that died while they made a pair."),
        ("intake_refusals", "intake-refused", "Times that an intake began to take nothing."),
    ):
        yield _counter(name, words, (), {(): counts[kind, ""]})
    yield _counter(
        "set_aside", "Files that were put into quarantine.", ("outcome", "code"),
        {key: count for key, count in sorted(counts.items()) if key[0] in SET_ASIDE},
    )  # fmt: skip
    yield _counter(
        "peers_refused", "Peers that were turned away.", ("at",),
        {
            (at,): counts[kind, ""]
            for at, kind in (
                ("association", "association-rejected"),
                ("connection", "connection-refused"),
                ("tls", "tls-handshake-failed"),
            )
        },
    )  # fmt: skip


def _index(index: IndexGauges) -> Iterator[Metric]:
    yield _counter("skipped", "Files passed over on purpose.", (), {(): index.skipped})
    yield _gauge("quarantine_files", "Files in quarantine.", ("outcome", "code"), index.set_aside)
    yield _gauge(
        "series", "Series by state.", ("state",), {(k,): n for k, n in index.series.items()}
    )
    yield _gauge(
        "pairs", "Pairs by state.", ("state",),
        {(k,): index.pairs.get(k, 0) for k in ("ready", "held", "pending", "no_pair")},
    )  # fmt: skip
    yield _gauge(
        "held_studies", "Studies that need a person, by reason.", ("reason",),
        {(str(reason),): count for reason, count in index.held.items()},
    )  # fmt: skip
    yield _gauge(
        "host_seen_seconds", "How long ago a host told what waits there.", ("host",),
        {(one.name,): one.seen_seconds for one in index.hosts},
    )  # fmt: skip
    yield _gauge(
        "host_entries", "Entries that waited in its spool then.", ("host",),
        {(one.name,): one.entries for one in index.hosts},
    )  # fmt: skip


def _spool(spool: SpoolGauges) -> Iterator[Metric]:
    yield _gauge("spool_entries", "Entries that wait.", (), {(): spool.entries})
    yield _gauge(
        "spool_oldest_seconds", "Age of the oldest entry that waits.", (),
        {(): spool.oldest_seconds},
    )  # fmt: skip
    yield _gauge(
        "spool_left_entries", "Entries that an error of the system keeps from being filed.", (),
        {(): spool.left},
    )  # fmt: skip


def _now(scrape: Scrape) -> Iterator[Metric]:
    yield _gauge(
        "queue_up", "Whether the queue server answers.", (), {(): scrape.queues is not None}
    )
    yield _gauge(
        "queue_jobs", "Jobs that wait or run.", ("queue",),
        {(name,): count for name, count in (scrape.queues or {}).items()},
    )  # fmt: skip
    yield _gauge(
        "disk_free_bytes", "Free for us on the disk of a store.", ("store",),
        {(what,): room.free.bytes_free for what, room in scrape.disks.items()},
    )  # fmt: skip
    yield _gauge(
        "disk_free_inodes", "Free inodes there, where the file system counts them.", ("store",),
        {
            (what,): room.free.inodes_free
            for what, room in scrape.disks.items()
            if room.free.inodes_free is not None
        },
    )  # fmt: skip
    yield _gauge(
        "disk_reserve_bytes", "Below this nothing is taken.", (),
        {(): scrape.reserve.minimum_bytes},
    )  # fmt: skip
    yield _gauge(
        "disk_reserve_inodes", "Below this nothing is taken.", (),
        {(): scrape.reserve.minimum_inodes},
    )  # fmt: skip
    yield _gauge(
        "intake_refusing", "Whether an intake takes nothing now.", ("intake",),
        {(who,): who in scrape.refusing for who in ("receiver", "watcher", "expander")},
    )  # fmt: skip
    yield _gauge(
        "ready", "What /readyz checks.", ("check",),
        {(name,): ok for name, ok in scrape.ready.items()},
    )  # fmt: skip


def _counter(
    name: str, words: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(
    name: str, words: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, words, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
