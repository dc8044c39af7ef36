"""Compare the store with the index, object by object, by digest; send anew what differs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.errors import PairDamaged
from workers.identity import check_archive
from workers.mirroring.mirror import Mirror
from workers.mirroring.planning import Drift, Wanted, judge
from workers.mirroring.publishing import OpenPair, alone, opened
from workers.mirroring.reading import MadePair, instances_after, newest_instance, pairs_after
from workers.mirroring.sending import Opener, in_tree
from workers.mirroring.store import ObjectStore
from workers.rooted import LinkRefused


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that is not as it should be."""

    key: str
    drift: Drift
    mended: bool


@dataclass(slots=True)
class Comparison:
    """What was compared, and what differs."""

    compared: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def left(self) -> int:
        return sum(not one.mended for one in self.differences)

    def to_json_object(self) -> dict[str, Any]:
        return {
            "compared": dict(self.compared),
            "differences": [
                {"key": one.key, "drift": str(one.drift), "mended": one.mended}
                for one in self.differences
            ],
            "left": self.left,
        }


@dataclass(slots=True)
class Comparer:
    """Looks at everything that the index knows; `read_back` reads every byte from the store."""

    mirror: Mirror
    read_back: bool = False
    repair: bool = False
    found: Comparison = field(default_factory=Comparison)

    def run(self) -> Comparison:
        """Compare all. Raises MirrorUnusable, StoreUnavailable, OSError."""
        settings = self.mirror.settings
        check_archive(settings.layout, self.mirror.index.identities().archive)
        for made in self._pairs():
            self._compare_pair(made)
            self._progress("pairs", 1, 0)
        if settings.mirror.what == "all":
            opener = in_tree(settings.layout.archive)
            for page, total in self._instances():
                self._compare(page, opener)
                self._progress("instances", len(page), total)
        return self.found

    def _compare(self, wanted: Sequence[Wanted], opener: Opener) -> bool:
        """Compare some objects; tell whether the store holds them all now."""
        sender = self.mirror.sender
        drifts = list(sender.pool.map(self._drift_of, wanted))
        differing = [one for one, drift in zip(wanted, drifts, strict=True) if drift]
        left = differing
        if self.repair:
            left = sender.send(differing, opener).left_out
        self.found.differences += [
            Difference(one.key, drift, self.repair and one not in left)
            for one, drift in zip(wanted, drifts, strict=True)
            if drift
        ]
        return not left

    def _drift_of(self, wanted: Wanted) -> Drift | None:
        store = self.mirror.sender.store
        drift = judge(wanted, store.head(wanted.key))
        if drift is None and self.read_back and _digest(store, wanted.key) != wanted.sha256:
            return Drift.BYTES
        return drift

    def _compare_pair(self, made: MadePair) -> None:
        try:
            layout = self.mirror.settings.layout
            with alone(layout), opened(layout.output, made) as pair:
                whole = self._compare(pair.data, pair.open)
                whole = whole and self._compare([pair.pair_json], pair.open)
                self._compare_latest(pair, made.state, may_point=whole)
        except (FileNotFoundError, LinkRefused, PairDamaged):
            key = f"{made.folder}/pair.json"  # `petct-ingest check` says what is wrong with it
            self.found.differences.append(Difference(key, Drift.MISSING, mended=False))

    def _compare_latest(self, pair: OpenPair, state: str, *, may_point: bool) -> None:
        wanted, content = pair.latest(state)
        store = self.mirror.sender.store
        there = store.get(wanted.key)
        if there == content:
            return
        mended = self.repair and may_point
        if mended:
            store.put(wanted.key, content, wanted.sha256)
        drift = Drift.MISSING if there is None else Drift.POINTER
        self.found.differences.append(Difference(wanted.key, drift, mended))

    def _pairs(self) -> Iterator[MadePair]:
        after = 0
        while True:
            with self.mirror.index.read() as connection:
                page = pairs_after(connection, after)
            if not page:
                return
            yield from page
            after = page[-1].id

    def _instances(self) -> Iterator[tuple[list[Wanted], int]]:
        with self.mirror.index.read() as connection:
            until = newest_instance(connection)
        after = 0
        while after < until:
            with self.mirror.index.read() as connection:
                page, after = instances_after(connection, after, until)
            yield page, until

    def _progress(self, what: str, more: int, total: int) -> None:
        self.found.compared[what] += more
        self.mirror.tell(what, self.found.compared[what], total)


def _digest(store: ObjectStore, key: str) -> str:
    found = hashlib.sha256()
    for piece in store.read(key) or ():
        found.update(piece)
    return found.hexdigest()
