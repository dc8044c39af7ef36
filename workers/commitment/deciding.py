"""Decide what peers asked, one transaction at a time; the sweeper process does it.

A request waits while an entry lies in the spool that may carry one of its instances, so that what
was acknowledged before it is filed before it is judged. Only entries that lay there at the first
look are waited for, and for a day at most, so it always ends. Nothing is decided while archive or
spool is missing or another.

Killed at any line, it begins again and comes to the same end: a request goes when its result is
durable, and an event is written once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from config.logs import get_logger, short
from config.settings import Settings
from workers import clock
from workers.commitment.evidence import (
    FiledRow,
    SpooledUids,
    arrivals_of,
    filed_rows,
    read_back,
)
from workers.commitment.transactions import (
    PEER_SECONDS,
    Ending,
    Reference,
    State,
    Transaction,
    Transactions,
)
from workers.commitment.verdicts import (
    PUT_BACK,
    Arrival,
    Filed,
    FileState,
    ReferenceFacts,
    Verdict,
    judge_reference,
)
from workers.errors import StoreUnavailable
from workers.identity import check_archive, check_identity
from workers.index.engine import MetadataIndex
from workers.index.inserting import insert_new_rows
from workers.index.tables import event

LONGEST_WAIT_SECONDS = 24 * 3600.0
"""What is in the spool for longer is answered with Resource limitation."""

log = get_logger(__name__)


class Commitments:
    """Decide requests and tell the audit; `stopped` is asked between two files."""

    def __init__(
        self, index: MetadataIndex, settings: Settings, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._peers = {peer.ae_title for peer in settings.commitment.peers}
        self._stopped = stopped
        self._transactions = Transactions(settings.layout)
        self._spooled = SpooledUids(settings.layout)
        self._first_looks: dict[str, frozenset[str]] = {}
        self._told: set[str] = set()

    def work(self) -> int:
        """Do all that can be done now; return how many requests were decided."""
        for key in self._transactions.keys(State.ENDED):
            self._finish(key)
        decided = self._decide_requests(self._transactions.keys(State.REQUEST))
        self._look_at_results()
        return decided

    def _decide_requests(self, keys: list[str]) -> int:
        self._first_looks = {
            key: self._first_looks[key] for key in keys if key in self._first_looks
        }
        if not keys:
            self._spooled.forget()
            return 0
        # in this order: an entry that is gone from the spool has its arrival in the index, and one
        # that a person put back is in the spool as soon as its arrival says so
        try:
            self._check_stores()
            put_back = {key: self._put_back(key) for key in keys}
            self._spooled.look()
            return sum(self._take(key, put_back[key]) for key in keys if not self._stopped())
        except StoreUnavailable as error:
            log.warning("commitment-waits", reason=str(error))
            return 0

    # one request ----------------------------------------------------------------------------------

    def _put_back(self, key: str) -> set[str]:
        transaction = self._transactions.read(key, State.REQUEST)
        return (
            set() if transaction is None else _put_back(arrivals_of(self._index, transaction.uids))
        )

    def _take(self, key: str, put_back: set[str]) -> bool:
        transaction = self._transactions.read(key, State.REQUEST)
        if transaction is None:
            return False
        result = self._transactions.read(key, State.RESULT)
        if result is not None and result.asked_at == transaction.asked_at:
            self._transactions.remove(key, State.REQUEST)  # killed between the two
            return False
        if key not in self._first_looks:
            self._tell("commitment-requested", transaction.asked_at, transaction)
        reasons = self._decide(transaction, put_back)
        if reasons is None:
            return False
        self._check_stores()  # a disk that went meanwhile is no verdict
        decided = replace(transaction, decided_at=clock.utc_now(), reasons=reasons)
        self._transactions.write(decided, State.RESULT)
        self._first_looks.pop(key, None)
        return True

    def _decide(self, transaction: Transaction, put_back: set[str]) -> tuple[int, ...] | None:
        """Return a reason for each reference, or None: not yet."""
        if self._deidentifies(transaction):
            return tuple(
                int(judge_reference(ReferenceFacts(one.sop_class, deidentified=True)).reason)
                for one in transaction.references
            )
        uids = transaction.uids
        arrivals = arrivals_of(self._index, uids)
        if put_back != _put_back(arrivals):
            return None
        lying = self._spooled.carrying(uids)
        first = self._first_looks.setdefault(transaction.key, frozenset(lying))
        waiting = _waited_for(lying, first, put_back, uids)
        if waiting and clock.seconds_since(transaction.asked_at) < LONGEST_WAIT_SECONDS:
            return None
        rows = filed_rows(self._index, uids)
        reasons = []
        for reference in transaction.references:
            if self._stopped():
                return None
            uid = reference.sop_instance
            facts = _facts(reference, rows.get(uid), arrivals.get(uid, ()), uid in waiting)
            reasons.append(int(self._judge(facts, rows.get(uid)).reason))
        return tuple(reasons)

    def _deidentifies(self, transaction: Transaction) -> bool:
        """Tell whether what this peer sends is filed under other UIDs, as something else."""
        source = transaction.source
        policy = self._settings.policy(
            calling_ae=source.calling_ae,
            called_ae=source.called_ae,
            address=source.address,
            folder="",
        )
        return policy.deidentify != "off"

    def _judge(self, facts: ReferenceFacts, row: FiledRow | None) -> Verdict:
        """Judge one reference; only what would be committed is read back."""
        verdict = judge_reference(facts)
        if verdict.committed and row is not None and facts.filed is not None:
            filed = replace(facts.filed, file=read_back(self._layout.archive, row))
            verdict = judge_reference(replace(facts, filed=filed))
        if not verdict.committed:
            reason = verdict.reason.name.lower()
            log.debug("not-committed", reason=reason, why=verdict.why)
        return verdict

    def _check_stores(self) -> None:
        known = self._index.identities()
        check_archive(self._layout, known.archive)
        check_identity(self._layout.spool, known.spool, "spool")

    # the audit ------------------------------------------------------------------------------------

    def _look_at_results(self) -> None:
        """Tell what was decided, and of a result whose peer nobody knows the address of."""
        keys = self._transactions.keys(State.RESULT)
        self._told &= set(keys)
        for key in keys:
            decided = None if key in self._told else self._transactions.read(key, State.RESULT)
            if decided is None:
                continue
            self._tell_decided(decided)
            if decided.source.calling_ae in self._peers:
                self._told.add(key)
            elif clock.seconds_since(decided.decided_at) > PEER_SECONDS:
                self._told.add(key)
                self._tell("commitment-peer-unknown", decided.decided_at, decided)

    def _finish(self, key: str) -> None:
        """Tell how a transaction ended, and let it go."""
        ended = self._transactions.read(key, State.ENDED)
        if ended is None:
            return
        self._tell_decided(ended)
        given_up = ended.ending == Ending.GIVEN_UP
        kind = "commitment-given-up" if given_up else "commitment-reported"
        self._tell(kind, ended.ended_at, ended, how=ended.ending)
        for state in (State.REQUEST, State.RESULT):  # killed between two states
            left = self._transactions.read(key, state)
            if left is not None and left.asked_at == ended.asked_at:
                self._transactions.remove(key, state)
        self._transactions.remove(key, State.ENDED)

    def _tell_decided(self, decided: Transaction) -> None:
        failed = Counter(f"{reason:04X}" for reason in decided.reasons if reason)
        committed = len(decided.references) - failed.total()
        words = {"committed": committed, "failed": dict(sorted(failed.items()))}
        if self._tell("commitment-decided", decided.decided_at, decided, **words):
            uid = short(decided.uid)
            log.info("commitment-decided", transaction=uid, source=decided.source.key, **words)

    def _tell(self, kind: str, at: str, transaction: Transaction, **details: object) -> bool:
        """Write an event unless it is there; tell whether it is new."""
        words = {"transaction": short(transaction.uid), "references": len(transaction.references)}
        row = {
            "at": at,
            "kind": kind,
            "source": transaction.source.key,
            "details": json.dumps(words | details),
            "note": f"commitment:{transaction.key}:{transaction.asked_at}:{kind}",
        }
        with self._index.write() as connection:
            return bool(insert_new_rows(connection, event, [row], event.c.note))


def _facts(
    reference: Reference, row: FiledRow | None, arrivals: tuple[Arrival, ...], waits: bool
) -> ReferenceFacts:
    filed = None if row is None else Filed(row.sop_class, row.dataset_sha256, FileState.INTACT)
    return ReferenceFacts(reference.sop_class, filed, arrivals, waits)


def _put_back(arrivals: Mapping[str, tuple[Arrival, ...]]) -> set[str]:
    return {uid for uid, found in arrivals.items() if any(one.outcome == PUT_BACK for one in found)}


def _waited_for(
    lying: Mapping[str, frozenset[str] | None],
    first: frozenset[str],
    put_back: set[str],
    uids: set[str],
) -> set[str]:
    """Return the asked UIDs that an entry may carry which is waited for.

    What came after the request was not acknowledged before it; what a person put back was.
    """
    waited: set[str] = set()
    for entry, carried in lying.items():
        may = uids if carried is None else carried & uids
        waited |= may if entry in first else may & put_back
    return waited
