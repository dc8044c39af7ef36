"""Deliver results of storage commitment: on the peer's association, else on one of ours.

A result is tried until its peer answers 0x0000, with back-off, across restarts, for
`commitment.retry_hours`. Where a peer listens stands in the settings alone: nothing that came over
the wire decides where we connect to.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from pydicom.uid import UID
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from config.layout import Layout
from config.logs import get_logger, short
from config.tables.intake import CommitmentSettings, PeerSettings
from daemon.receiver.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.receiver.talking import CONTEXT, Talk
from workers import clock
from workers.commitment.transactions import Ending, State, Transaction, Transactions
from workers.spool.batches import BatchSource

_LOOK_SECONDS = 0.25
_REST_SECONDS = 1.0
"""Between two looks where nobody has asked for anything: each wakes an idle machine up."""
_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_FIRST_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 600.0
_MOST_DELIVERIES = 8

log = get_logger(__name__)


@dataclass(slots=True)
class Backoff:
    """When a peer is tried again: after 2, 4, … 600 s (monotonic)."""

    seconds: float = 0.0
    next_at: float = float("-inf")

    def failed(self, now: float) -> None:
        self.seconds = min(_LONGEST_RETRY_SECONDS, 2 * self.seconds or _FIRST_RETRY_SECONDS)
        self.next_at = now + self.seconds

    def reset(self) -> None:
        self.seconds, self.next_at = 0.0, float("-inf")


class Reporter:
    """Look for results and deliver them, peer by peer, each in a thread of its own."""

    def __init__(
        self,
        layout: Layout,
        settings: CommitmentSettings,
        talk_with: Callable[[str, str], Talk | None],
    ) -> None:
        self._transactions = Transactions(layout)
        self._peers = {peer.ae_title: peer for peer in settings.peers}
        self._keep_seconds = settings.retry_hours * 3600
        self._talk_with = talk_with
        self._stop = threading.Event()
        self._sources: dict[str, str] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._unknown_told: set[str] = set()
        self._lock = threading.Lock()
        self._delivering: dict[str, threading.Thread] = {}
        self._talking: set[Talk] = set()
        self._connections: dict[Association, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="commitment-reporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop delivering; what was not answered is tried by the next receiver."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            talking, threads = list(self._talking), list(self._delivering.values())
            connections = list(self._connections.values())
        for talk in talking:
            talk.end()
        for connection in connections:
            _cut_off(connection)
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        wait = _LOOK_SECONDS
        while not self._stop.wait(wait):
            try:
                self._look()
                wait = _REST_SECONDS if self._transactions.is_at_rest() else _LOOK_SECONDS
            except OSError as error:
                log.warning("commitment-results-unreadable", reason=error.strerror)
            except Exception:  # the thread's boundary: the next look tries again
                log.exception("commitment-report-failed")

    def _look(self) -> None:
        """Start a delivery to each peer that has results, and an open association or its turn."""
        waiting: dict[str, list[str]] = {}
        keys = self._transactions.keys(State.RESULT)
        self._sources = {key: source for key in keys if (source := self._source_of(key))}
        for key, source in self._sources.items():
            waiting.setdefault(source, []).append(key)
        self._backoffs = {name: self._backoffs.get(name) or Backoff() for name in waiting}
        self._unknown_told &= set(waiting)
        now = time.monotonic()
        with self._lock:
            for name, some in waiting.items():
                if name in self._delivering or len(self._delivering) >= _MOST_DELIVERIES:
                    continue
                backoff = self._backoffs[name]
                if backoff.next_at <= now or any(self._talk_with(name, key) for key in some):
                    job = threading.Thread(
                        target=self._deliver, args=(name, some, backoff), name="commitment-report"
                    )
                    self._delivering[name] = job
                    job.start()

    def _source_of(self, key: str) -> str:
        """Return who asked; read once, for a result can be large."""
        if key in self._sources:
            return self._sources[key]
        found = self._transactions.read(key, State.RESULT)
        return "" if found is None else found.source.key

    # one peer -------------------------------------------------------------------------------------

    def _deliver(self, name: str, keys: list[str], backoff: Backoff) -> None:
        try:
            if all(self._report_on_its(name, key) for key in keys) or self._connect(name, keys):
                backoff.reset()
            else:
                backoff.failed(time.monotonic())
                self._give_up_the_old(keys)
        except (OSError, ValueError) as error:  # the disk, or a title that pynetdicom refuses
            log.warning("commitment-not-delivered", source=name, error=type(error).__name__)
            backoff.failed(time.monotonic())
        finally:
            with self._lock:
                del self._delivering[name]

    def _report_on_its(self, name: str, key: str) -> bool:
        """Report on an open association of the peer; tell whether that is done."""
        decided = self._transactions.read(key, State.RESULT)
        if decided is None:
            return True
        while not self._stop.is_set() and (talk := self._talk_with(name, key)):
            if self._report(talk, decided, Ending.SAME_ASSOCIATION):
                return True
        return False

    def _give_up_the_old(self, keys: list[str]) -> None:
        for key in keys:
            decided = self._transactions.read(key, State.RESULT)
            if (
                decided is not None
                and clock.seconds_since(decided.decided_at) >= self._keep_seconds
            ):
                self._ended(decided, Ending.GIVEN_UP)

    def _connect(self, name: str, keys: list[str]) -> bool:
        """Report what is left on an association of ours; tell whether all of it is done."""
        left = [key for key in keys if self._transactions.has(key, State.RESULT)]
        first = self._transactions.read(left[0], State.RESULT) if left else None
        if first is None or self._stop.is_set():
            return not left
        peer = self._peers.get(first.source.calling_ae)
        if peer is None:
            if name not in self._unknown_told:
                self._unknown_told.add(name)
                log.warning("commitment-peer-unknown", source=name, results=len(left))
            return False
        with self._association(first.source.called_ae, peer) as association:
            talk = _talk_on(association, first.source)
            if talk is None:
                log.warning("commitment-peer-away", source=name, results=len(left))
                return False
            for key in left:
                decided = self._transactions.read(key, State.RESULT)
                if decided and not self._report(talk, decided, Ending.NEW_ASSOCIATION):
                    log.warning("commitment-report-refused", source=name, results=len(left))
                    return False
        return True

    def _report(self, talk: Talk, decided: Transaction, ending: Ending) -> bool:
        with self._lock:
            if self._stop.is_set():
                return False
            self._talking.add(talk)
        try:
            if not talk.report(decided, _ANSWER_SECONDS):
                return False
        finally:
            with self._lock:
                self._talking.discard(talk)
        self._ended(decided, ending)
        return True

    @contextmanager
    def _association(self, our_title: str, peer: PeerSettings) -> Iterator[Association]:
        """Ask a peer for an association on which we are the provider (PS3.7 D.3.3.4)."""
        entity = AE(ae_title=our_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.connection_timeout = _CONNECT_SECONDS
        entity.acse_timeout = _ANSWER_SECONDS
        entity.network_timeout = entity.dimse_timeout = 2 * _ANSWER_SECONDS
        association = entity.associate(
            peer.host,
            peer.port,
            contexts=[CONTEXT],
            ae_title=peer.ae_title,
            ext_neg=[build_role(UID(StorageCommitmentPushModel), scp_role=True)],
            evt_handlers=[(evt.EVT_CONN_OPEN, self._connected)],
        )
        try:
            yield association
        finally:
            with self._lock:
                self._connections.pop(association, None)
            if association.is_established:
                association.release()
            _close(association)

    def _connected(self, event: evt.Event) -> None:
        """Note a connection before anything is said on it: a stop cuts it off."""
        connection = cast(Any, event.assoc.dul.socket).socket
        with self._lock:
            self._connections[event.assoc] = connection
        if self._stop.is_set():
            _cut_off(connection)

    def _ended(self, decided: Transaction, ending: Ending) -> None:
        ended = replace(decided, ended_at=clock.utc_now(), ending=ending)
        self._transactions.write(ended, State.ENDED)
        event = "commitment-given-up" if ending is Ending.GIVEN_UP else "commitment-reported"
        log.info(event, source=ended.source.key, transaction=short(ended.uid), how=str(ending))


def _talk_on(association: Association, source: BatchSource) -> Talk | None:
    """Return what reports go out on; None where the peer did not accept."""
    if not association.is_established or not association.accepted_contexts:
        return None
    talk = Talk(association, association.accepted_contexts[0], source)
    association.bind(evt.EVT_DIMSE_RECV, lambda event: talk.hear(event.message))
    for end in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE):
        association.bind(end, lambda _: talk.end())
    return talk


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)


def _close(association: Association) -> None:
    """Close the connection, which pynetdicom leaves open where the peer was faster."""
    connection = association.dul.socket and association.dul.socket.socket
    if connection is not None:
        connection.close()
