"""Storage commitment transactions, durable between the receiver and the sweeper.

    spool/commitment/<key>.request   asked; the receiver writes it before it answers 0x0000
    spool/commitment/<key>.result    decided; the sweeper writes it, then the request goes
    spool/commitment/<key>.ended     delivered or given up; the receiver writes it, then the result
                                     goes; the sweeper tells the audit, then it goes too

Each file is the whole transaction as JSON: UIDs, AE titles, an address, times. A kill between two
steps leaves two files of one transaction; the later state counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from config.layout import Layout
from config.logs import get_logger
from workers import durable
from workers.header import uids
from workers.spool.batches import BatchSource

MOST_REFERENCES = 20_000
"""References of one request; a larger one is refused (0x0213)."""

MOST_TRANSACTIONS = 1000
MOST_BYTES = 256 << 20
"""Transactions that wait at once, all peers together."""

PEER_SECONDS = 60.0
"""How long a result waits before it is said that nobody knows where its peer listens."""

_SCHEMA = 1
_FILE_BYTES = 8 << 20
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

log = get_logger(__name__)


class State(StrEnum):
    """How far a transaction is; the name of its file ends so."""

    REQUEST = "request"
    RESULT = "result"
    ENDED = "ended"


class Ending(StrEnum):
    """How the delivery of a result ended."""

    NONE = ""
    SAME_ASSOCIATION = "on an association of the peer"
    NEW_ASSOCIATION = "on an association of ours"
    GIVEN_UP = "given up"


class Damaged(ValueError):
    """A file holds no transaction."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that a peer asks about."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """What one N-ACTION asked, and what became of it."""

    uid: str
    source: BatchSource
    """Who asked: calling and called AE title and address of the association."""
    asked_at: str
    """ISO 8601 UTC, as the other times."""
    references: tuple[Reference, ...]
    decided_at: str = ""
    reasons: tuple[int, ...] = ()
    """Of each reference: 0, or its Failure Reason (PS3.3 C.14.1.1)."""
    ended_at: str = ""
    ending: Ending = Ending.NONE

    @property
    def key(self) -> str:
        """32 hex digits that stand for this transaction of this peer."""
        words = "\0".join((self.uid, self.source.key))
        return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()

    @property
    def uids(self) -> set[str]:
        """The SOP Instance UIDs that were asked about."""
        return {one.sop_instance for one in self.references}

    def to_bytes(self) -> bytes:
        source = (self.source.calling_ae, self.source.called_ae, self.source.address)
        words = {
            "schema": _SCHEMA,
            "transaction": self.uid,
            "source": source,
            "asked_at": self.asked_at,
            "references": [(one.sop_class, one.sop_instance) for one in self.references],
            "decided_at": self.decided_at,
            "reasons": self.reasons,
            "ended_at": self.ended_at,
            "ending": self.ending,
        }
        return json.dumps(words, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a transaction. Raises Damaged where anything in it is not as we wrote it."""
        try:
            raw: dict[str, Any] = json.loads(data)
            if raw["schema"] != _SCHEMA:
                raise Damaged(f"schema {raw['schema']!r}")
            calling_ae, called_ae, address = raw["source"]
            found = cls(
                uid=raw["transaction"],
                source=BatchSource("association", calling_ae, called_ae, address),
                asked_at=raw["asked_at"],
                references=tuple(Reference(*pair) for pair in raw["references"]),
                decided_at=raw["decided_at"],
                reasons=tuple(raw["reasons"]),
                ended_at=raw["ended_at"],
                ending=Ending(raw["ending"]),
            )
            found.check()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise Damaged(f"no transaction: {type(error).__name__}") from error
        return found

    def check(self) -> None:
        """Raise Damaged where a value is not as we write it."""
        named = [uid for one in self.references for uid in (one.sop_class, one.sop_instance)]
        titles = (self.source.calling_ae, self.source.called_ae)
        times = (self.asked_at, self.decided_at or self.asked_at, self.ended_at or self.asked_at)
        if (
            not all(isinstance(uid, str) and uids.is_valid(uid) for uid in (self.uid, *named))
            or not all(len(title) <= 16 and title.isprintable() for title in titles)
            or len(self.source.address) > 64
            or not all(map(_TIME.fullmatch, times))
            or not 1 <= len(self.references) <= MOST_REFERENCES
            or len(self.reasons) != (len(self.references) if self.decided_at else 0)
            or not all(type(reason) is int and 0 <= reason <= 0xFFFF for reason in self.reasons)
        ):
            raise Damaged("a value is not what it should be")


class Transactions:
    """The folder that holds them; every write is durable when it returns."""

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.commitment

    def keys(self, state: State) -> list[str]:
        """List the transactions in a state, the longest there first."""
        found = []
        for item in self._items():
            if item.name.endswith(f".{state}") and not item.name.startswith("."):
                try:
                    found.append((item.stat().st_mtime_ns, item.name.partition(".")[0]))
                except FileNotFoundError:
                    continue
        return [key for _, key in sorted(found)]

    def is_at_rest(self) -> bool:
        """Tell whether none is to be decided or reported."""
        open_ones = (f".{State.REQUEST}", f".{State.RESULT}")
        return not any(item.name.endswith(open_ones) for item in self._items())

    def is_full(self) -> bool:
        """Tell whether no further transaction is taken."""
        sizes = [item.stat().st_size for item in self._items()]
        return len(sizes) >= MOST_TRANSACTIONS or sum(sizes) >= MOST_BYTES

    def has(self, key: str, state: State) -> bool:
        return self._path(key, state).exists()

    def read(self, key: str, state: State) -> Transaction | None:
        """Read one; None where it is gone, or damaged: then it is put aside and said so."""
        path = self._path(key, state)
        try:
            with open(path, "rb") as file:
                data = file.read(_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            if len(data) > _FILE_BYTES:
                raise Damaged("too large")
            return Transaction.from_bytes(data)
        except Damaged as error:
            log.warning("commitment-file-damaged", key=key, state=str(state), reason=str(error))
            os.replace(path, path.with_suffix(".damaged"))
            return None

    def write(self, transaction: Transaction, state: State) -> None:
        """Write a state whole or not at all, then let the one before go."""
        durable.replace_file(self._path(transaction.key, state), transaction.to_bytes())
        before = {State.RESULT: State.REQUEST, State.ENDED: State.RESULT}.get(state)
        if before is not None:
            self.remove(transaction.key, before)

    def remove(self, key: str, state: State) -> None:
        self._path(key, state).unlink(missing_ok=True)

    def _path(self, key: str, state: State) -> Path:
        return self._folder / f"{key}.{state}"

    def _items(self) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as items:
                return list(items)
        except FileNotFoundError:
            return []
