"""Look at a running or stopped system: the numbers of `status`, and what hinders it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from config.settings import Settings
from daemon.room import measure, refusals, reserve_of
from workers import clock
from workers.errors import IndexAway, QueueSilent, StoreUnavailable
from workers.filing.left import left_entries
from workers.identity import check_archive, check_identity
from workers.index.counting import (
    Ask,
    Counts,
    Identities,
    count_all,
    failing_pairs,
    filed_since,
    identities,
)
from workers.index.glance import glance
from workers.index.seen import HostSeen, list_hosts
from workers.queue_glance import PAIRING, depths, filing_queue, glance_at_queues, workers_of
from workers.spool.batches import oldest_waiting, waiting_entries
from workers.watermark import StoreRoom, judge_room

RATE_SECONDS = 300
_LONG_SECONDS = 60.0
_MOST_NAMED = 5
_NOTHING = Counts(0, 0, 0, 0, 0, {}, {"ready": 0, "held": 0, "pending": 0})


@dataclass(frozen=True, slots=True)
class Status:
    """What `petct-ingest status` shows."""

    counts: Counts
    waiting: int
    queues: dict[str, int]
    oldest_seconds: float | None
    """Age of the oldest entry that waits in the spool."""
    filed_lately: int
    """Instances filed within the last `RATE_SECONDS`."""
    troubles: tuple[str, ...]
    """What hinders the system, each with what to do."""
    hosts: tuple[HostSeen, ...] = ()
    """Those that share the index, where they have names."""

    def to_json_object(self) -> dict[str, Any]:
        """Return the object of `status --json` (design.md 7)."""
        counts = self.counts
        hosts = {"hosts": [asdict(one) for one in self.hosts]} if self.hosts else {}
        return {
            "instances": {
                "filed": counts.filed,
                "duplicates": counts.duplicates,
                "quarantined": counts.quarantined,
                "skipped": counts.skipped,
                "waiting": self.waiting,
            },
            "series": counts.series,
            "studies": counts.studies,
            "pairs": counts.pairs,
            "queues": self.queues,
            **hosts,
        }


def look(settings: Settings) -> Status:
    """Gather the status; works without a queue server and before the first start."""
    troubles: list[str] = []
    counts, lately = _NOTHING, 0
    waiting = None
    stores = None
    hosts: list[HostSeen] = []
    if settings.index.url or settings.layout.index.exists():
        try:
            # entries first: one that is filed meanwhile is counted twice, never not at all
            waiting = _waiting(settings)
            with glance(settings) as ask:
                stores = identities(ask, settings.spool.name)
                counts = count_all(ask)
                lately = filed_since(ask, clock.utc_of(clock.wall() - RATE_SECONDS))
                hosts = list_hosts(ask)
                troubles += _pair_troubles(ask)
        except IndexAway as error:
            troubles.append(str(error))  # a full disk, mostly: the stores are shown all the same
        troubles += _store_troubles(settings, stores) + _host_troubles(settings, hosts)
    else:
        troubles.append("nothing ran here yet: start it with `petct-ingest run --root DIR`")
    if waiting is None:
        waiting = _waiting(settings)
    troubles += _watch_troubles(settings) + _role_troubles(settings)
    troubles += _commitment_troubles(settings)
    oldest = oldest_waiting(settings.layout)
    age = None if oldest is None else max(0.0, clock.wall() - oldest)
    troubles += _entry_troubles(settings)
    queues, queue_trouble = _depths(settings, age)
    troubles += queue_trouble
    return Status(counts, waiting, queues, age, lately, tuple(troubles), tuple(hosts))


def _host_troubles(settings: Settings, hosts: list[HostSeen]) -> list[str]:
    """Name the other hosts that are missed."""
    return [
        f"host {one.name}: {one.state}{'; series wait for it' if one.entries else ''}. Start it;"
        f" where its spool is gone for good: petct-ingest hosts forget {one.name}"
        for one in hosts
        if one.name != settings.spool.name and not one.is_there and (one.entries or not one.stopped)
    ]


def _entry_troubles(settings: Settings) -> list[str]:
    """Name the entries that an error of the system keeps in the spool."""
    left = left_entries(settings.layout)
    found = [
        f"{one.name.where(settings.layout)} cannot be filed: {one.reason} ({one.tries} tries since"
        f" {one.since}). Its series wait for it. Mend its disk, or move the file away and send it"
        " again"
        for one in left[:_MOST_NAMED]
    ]
    if len(left) > _MOST_NAMED:
        found.append(f"{len(left) - _MOST_NAMED} more entries cannot be filed")
    return found


def _pair_troubles(ask: Ask) -> list[str]:
    """Name the pairs that an error of the system keeps from being made."""
    return [
        f"the pair of study {one.study} cannot be made: {one.reason} (since {one.at}); it is tried"
        " again; see the log of the pairing worker"
        for one in failing_pairs(ask)[:_MOST_NAMED]
    ]


def _watch_troubles(settings: Settings) -> list[str]:
    found = [
        f"the watched folder {watch.path} is missing: is its disk mounted?"
        for watch in settings.watched
        if not watch.path.is_dir() and watch.path != settings.layout.inbox
    ]
    inbox = settings.layout.inbox
    watched = any(watch.path == inbox for watch in settings.watched)
    if not watched and inbox.is_dir() and any(inbox.iterdir()):
        found.append(f"{inbox} holds files, but [[watch]] does not name it: nobody takes them")
    return found


def _role_troubles(settings: Settings) -> list[str]:
    """Say why a receiver that runs does not listen, or a mirror does not send."""
    found = []
    for role in ("receiver", "mirror"):
        with suppress(OSError):
            text = (settings.layout.run / f"{role}.trouble").read_text(encoding="utf-8")
            process, _, words = text.strip().partition(" ")
            if process.isdigit() and os.path.exists(f"/proc/{process}"):
                found.append(words)
    return found


def _commitment_troubles(settings: Settings) -> list[str]:
    if not _holds_anything(settings.layout.commitment):
        return []
    from workers.commitment.undelivered import undeliverable  # nobody waits to load it for nothing

    return undeliverable(settings)


def _waiting(settings: Settings) -> int:
    # watched folders first: a file that is claimed meanwhile is counted twice, never not at all
    unclaimed = 0
    if any(_holds_anything(watch.path) for watch in settings.watched):
        from daemon.watcher.counting import count_unclaimed  # nor this

        unclaimed = count_unclaimed(settings)
    return unclaimed + sum(1 for _ in waiting_entries(settings.layout))


def _holds_anything(folder: Path) -> bool:
    with suppress(OSError), os.scandir(folder) as items:
        return any(True for _ in items)
    return False


def _depths(settings: Settings, age: float | None) -> tuple[dict[str, int], list[str]]:
    """Return the queues' lengths, and what hinders filing though the stores are well."""
    own = filing_queue(settings.spool.name)
    try:
        with glance_at_queues(settings) as command:
            found = depths(command, settings.spool.name)
            if age is not None and age > _LONG_SECONDS and not workers_of(command, own):
                todo = "start `petct-ingest run` or `petct-ingest work filing`"
                return found, [f"entries wait and no filing worker runs: {todo}"]
            return found, []
    except QueueSilent as error:
        todo = "start it, or correct [redis]" if settings.redis.url else "start `petct-ingest run`"
        words = f"{error}: nothing is lost, but nothing is filed; {todo}"
        return dict.fromkeys((own, PAIRING), 0), [words]


def _store_troubles(settings: Settings, identities: Identities | None) -> list[str]:
    """Say what is wrong with the stores; without the index' word, which they are is not known."""
    found = []
    layout = settings.layout
    for store, what in ((layout.archive, "archive"), (layout.spool, "spool")):
        try:
            if identities is not None and what == "archive":
                check_archive(layout, identities.archive)
            elif identities is not None:
                if not identities.spool:
                    continue  # a host that has none of its own: it only pairs
                check_identity(store, identities.spool, what)
            if store == layout.archive and layout.is_read_only:
                continue  # as it was adopted: nothing is filed into it
            room, _ = measure(what, store)
            short = judge_room([room], reserve_of(settings.spool), low=False).reason
            if short:
                found.append(f"{store}: {short}; {_remedy(room)}")
        except StoreUnavailable as error:
            found.append(str(error))
        except OSError as error:
            found.append(f"the {what} at {store} cannot be used: {error.strerror}")
    consequences = {
        "receiver": "the receiver takes nothing (0xA700 to senders)",
        "watcher": "the watched folders are left alone",
        "expander": "archives wait to be expanded",
    }
    again = f"it goes on when {settings.spool.resume_factor:g} times the reserve is free"
    for who, reason in refusals(layout).items():
        hint = f"; {again}" if "reserve" in reason else ""
        found.append(f"{consequences[who]}: {reason}{hint}")
    return found


def _remedy(room: StoreRoom) -> str:
    if room.read_only:
        return "mount it writable; everything goes on by itself"
    return "free space there or lower spool.minimum_free_mb; everything goes on by itself"
