"""The sweeper: finds again whatever a lost queue, a killed worker or a passing hour left behind.

Every tick: entries without a job are dispatched, quiet series are judged, due pairs are queued.
Every half minute: left-over temporary files and empty batches are removed. This alone recovers from
a lost Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from config.layout import Layout
from config.logs import get_logger
from config.settings import Settings
from daemon.awaiting import awaited
from daemon.committing import Committing
from daemon.expanding import ExpanderThread
from daemon.refilling import QueueFiller
from workers import clock, durable
from workers.completeness.judging import CAPPED, PairWish, judge_studies
from workers.completeness.neighbours import Neighbours
from workers.completeness.series import SeriesState
from workers.errors import IndexAway, SpoolNameTaken, StoreUnavailable
from workers.filing.left import forget_gone
from workers.identity import check_archive, check_identity
from workers.index.engine import MetadataIndex, prepare_index
from workers.index.hosts import beat, claim_spool, read_reports
from workers.index.noting import record_notes
from workers.index.tables import pair, series
from workers.jobs import ask_for_pairs
from workers.measuring import is_counting
from workers.pairing.exchanging import finish_exchanges
from workers.spool.ages import Ages, look_at_waiting, waiting_times
from workers.spool.batches import (
    batch_names,
    remove_if_empty,
)

log = get_logger(__name__)

_TICK_SECONDS = 1.0
_SWEEP_SECONDS = 30.0
_CHECKPOINT_SECONDS = 300.0
_STALE_SECONDS = 3600.0
_GAP_SECONDS = 30.0
_BEAT_SECONDS = 2.0
_BEAT_REST = 20
"""A host tells what waits as often as counting it takes a twentieth of the time."""
_OPEN = sa.and_(series.c.quiet.is_(False), series.c.instances > 0)
_STALE = sa.and_(
    _OPEN,
    sa.or_(
        series.c.last_boot.not_in(sa.bindparam("running", expanding=True)),
        sa.and_(
            series.c.last_boot == sa.bindparam("boot"),
            series.c.last_monotonic > sa.bindparam("ahead"),
        ),
    ),
)
"""Series whose quiet clock nobody watches: of another boot than those that run, or of no time."""
_ANY_STALE = sa.select(series.c.id).where(_STALE).limit(1)
_QUIET_LONG_ENOUGH = sa.select(series.c.id, series.c.study_id, series.c.last_monotonic).where(
    _OPEN,
    series.c.last_boot == sa.bindparam("boot"),
    series.c.last_monotonic <= sa.bindparam("before"),
)


class Sweeper:
    """One pass at a time; `tick` does what is due by the clock that is handed in."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._spool_id = index.identities().spool
        self._due: dict[str, float] = {}
        self._queues = QueueFiller(index, settings)
        self._ages = Ages()
        self._neighbours = Neighbours(settings.spool.name)
        self._ticked = float("-inf")

    def tick(self, now: float) -> None:
        """Do everything that is due at `now` (monotonic seconds)."""
        self._notice_gap(now)
        self._every("queues", 2.0, now, lambda: self._queues.fill(now))
        self._every("beat", _BEAT_SECONDS, now, lambda: self.tell_the_others(now))
        self._every("notes", 2.0, now, lambda: record_notes(self._index, self._layout))
        look_seconds = min(2.0, self._settings.completeness.quiet_seconds / 30)
        self._every("quiet", look_seconds, now, lambda: self.judge_quiet_series(now))
        self._every("interrupted", _SWEEP_SECONDS, now, self.judge_interrupted)
        self._every("capped", _SWEEP_SECONDS, now, lambda: self._judge_capped(now))
        self._every("sweep", _SWEEP_SECONDS, now, self._clean)
        self._every("checkpoint", _CHECKPOINT_SECONDS, now, self._index.checkpoint)

    def _every(self, name: str, seconds: float, now: float, action: Callable[[], object]) -> None:
        if now >= self._due.get(name, 0.0):
            self._due[name] = now + seconds
            action()

    # other hosts ----------------------------------------------------------------------------------

    def tell_the_others(self, now: float, *, stopped: bool = False) -> None:
        """Tell other hosts what waits here; one without a name is alone.

        `stopped` is told where no intake of this host runs any more.
        """
        name = self._settings.spool.name
        if not name:
            return
        self._look_at_clocks(now)
        began = clock.monotonic()
        waiting = look_at_waiting(self._layout)
        took = clock.monotonic() - began
        self._due["beat"] = max(self._due.get("beat", 0.0), now + _BEAT_REST * took)
        oldest = now - self._ages.published(waiting.oldest) if waiting.entries else None
        with self._index.write() as connection:
            if not beat(connection, name, waiting.entries, oldest, stopped=stopped):
                claim_spool(connection, name, self._spool_id)  # it was forgotten meanwhile
                beat(connection, name, waiting.entries, oldest, stopped=stopped)

    def stop(self) -> None:
        """Tell other hosts that nothing comes in here, where that is so."""
        intakes = (is_counting(self._layout, role) for role in ("receive", "watch"))
        self.tell_the_others(clock.monotonic(), stopped=not any(intakes))

    def _look_around(self, now: float) -> None:
        """Look at what other hosts have told; one without a name is alone."""
        if self._settings.spool.name:
            with self._index.read() as connection:
                self._neighbours.look(read_reports(connection), now)

    # series and studies that time has made due ----------------------------------------------------

    def judge_quiet_series(self, now: float) -> list[PairWish]:
        """Mark series as quiet whose time has come, and judge their studies.

        Where several hosts file, each judges the series on its own clock: those that it filed into
        last, and those of hosts that are away.
        """
        quiet_seconds = self._settings.completeness.quiet_seconds
        self._look_at_clocks(now)
        self._look_around(now)
        asked = {"boot": clock.boot_id(), "before": now - quiet_seconds, "ahead": now + 1}
        asked["running"] = self._running(now)
        with self._index.read() as connection:
            is_any_stale = connection.execute(_ANY_STALE, asked).first() is not None
            due = connection.execute(_QUIET_LONG_ENOUGH, asked).all()
        if is_any_stale:
            self._start_anew(asked, now)
        if not due:
            return []
        waiting_since = min(self._waiting_since(), self._neighbours.waiting_since(now))
        due = [row for row in due if waiting_since > row.last_monotonic + quiet_seconds]
        if not due:
            return []
        with self._index.write() as connection:
            connection.execute(
                series.update()
                .where(
                    series.c.id.in_([row.id for row in due]),
                    series.c.last_boot == clock.boot_id(),
                    series.c.last_monotonic <= now - quiet_seconds,
                )
                .values(quiet=True)
            )
        return self._judge(due)

    def judge_interrupted(self) -> list[PairWish]:
        """Judge what a killed process filed or found quiet and did not come to judge.

        Filing sets a series back to receiving, and no verdict on a quiet series is that.
        """
        with self._index.read() as connection:
            found = connection.execute(
                sa.select(series.c.id, series.c.study_id).where(
                    series.c.quiet.is_(True),
                    series.c.instances > 0,
                    series.c.state == str(SeriesState.RECEIVING),
                )
            ).all()
        return self._judge(found)

    def judge_waiting_pairs(self) -> list[PairWish]:
        """Judge every study whose pair waits, at start: a kill may have prevented a verdict."""
        with self._index.read() as connection:
            studies = connection.execute(
                sa.select(pair.c.study_id).where(
                    pair.c.state == "pending", pair.c.generation == pair.c.done_generation
                )
            ).scalars()
            waiting = set(studies)
        wishes = judge_studies(self._index, self._settings, waiting)
        ask_for_pairs(self._settings, wishes)
        return wishes

    def _judge(self, due: Sequence[Any]) -> list[PairWish]:
        if not due:
            return []
        wishes = judge_studies(
            self._index, self._settings, {row.study_id for row in due}, [row.id for row in due]
        )
        ask_for_pairs(self._settings, wishes)
        return wishes

    def _waiting_since(self) -> float:
        """Return since when (monotonic) the oldest entry waits; infinity where none does.

        A worker that was down does not make a series quiet: an entry that was published before the
        series' time came may belong to it.
        """
        oldest, _ = waiting_times(self._layout)
        return self._ages.published(oldest)

    def _look_at_clocks(self, now: float) -> None:
        self._ages.look(clock.wall(), now, lambda: waiting_times(self._layout)[1])

    def _notice_gap(self, now: float) -> None:
        """Start quiet times anew where we did not look for long: at the start, after a suspend.

        Nothing could come in meanwhile, perhaps; a sender needs time to call again. The hard cap is
        moved by what the gap took.
        """
        before, self._ticked = self._ticked, now
        gap = now - before
        if gap < _GAP_SECONDS:
            return
        mine = pair.c.begun_boot == clock.boot_id()
        with self._index.write() as connection:
            connection.execute(
                series.update()
                .where(series.c.quiet.is_(False), series.c.last_boot == clock.boot_id())
                .values(last_monotonic=now)
            )
            if before > float("-inf"):
                connection.execute(
                    pair.update()
                    .where(pair.c.state == "pending", mine, pair.c.begun_monotonic < before)
                    .values(begun_monotonic=pair.c.begun_monotonic + gap)
                )
                log.warning("clocks-moved", gap_seconds=round(gap))

    def _start_anew(self, stale: Mapping[str, Any], now: float) -> None:
        """Start the quiet clock of series whose last instance came before this boot anew.

        The clocks of other hosts that are there are theirs.
        """
        started = series.update().where(_STALE).values(last_boot=stale["boot"], last_monotonic=now)
        with self._index.write() as connection:
            connection.execute(started, stale)

    def _judge_capped(self, now: float) -> None:
        """Judge studies whose pair has waited for the hard cap, on whichever host from then on."""
        cap = self._settings.completeness.hard_cap_minutes * 60
        over = sa.and_(pair.c.begun_boot == clock.boot_id(), pair.c.begun_monotonic <= now - cap)
        foreign = sa.and_(pair.c.state == "pending", pair.c.begun_boot.not_in(self._running(now)))
        with self._index.read() as connection:
            due = connection.execute(
                sa.select(pair.c.study_id).where(
                    pair.c.state == "pending",
                    pair.c.generation == pair.c.done_generation,
                    sa.or_(over, pair.c.begun_boot == CAPPED),
                )
            ).scalars()
            studies = set(due)
            rebooted = connection.execute(sa.select(pair.c.id).where(foreign).limit(1)).first()
        if rebooted is not None:
            with self._index.write() as connection:
                connection.execute(
                    pair.update()
                    .where(foreign)
                    .values(begun_boot=clock.boot_id(), begun_monotonic=now)
                )
        if studies:
            with self._index.write() as connection:
                mine = pair.c.study_id.in_(studies)
                connection.execute(pair.update().where(mine, over).values(begun_boot=CAPPED))
        ask_for_pairs(self._settings, judge_studies(self._index, self._settings, studies))

    def _running(self, now: float) -> list[str]:
        """Name the boots whose clocks somebody watches, and that of those that ran out."""
        return [clock.boot_id(), CAPPED, *self._neighbours.boots(now)]

    # left-overs -----------------------------------------------------------------------------------

    def _clean(self) -> None:
        known = self._index.identities()
        try:
            check_archive(self._layout, known.archive)
            check_identity(self._layout.spool, known.spool, "spool")
        except StoreUnavailable as error:
            log.warning("store-unavailable", error=str(error))
            return
        for batch in batch_names(self._layout):
            remove_if_empty(self._layout, batch)
        forget_gone(self._layout)
        self.finish_exchanges()
        older = clock.wall() - _STALE_SECONDS
        for path in _temporary(self._layout):
            if durable.remove_stale(path, older):
                log.info("left-over-removed", kind=path.parent.name)

    def finish_exchanges(self) -> None:
        """Put back the pairs that a kill in the middle of an exchange left without a folder."""
        restored = finish_exchanges(self._index, self._layout)
        if restored:
            log.warning("exchanges-finished", pairs=restored)


def run_sweeper(settings: Settings, stop: threading.Event) -> None:
    """Sweep until `stop` is set; prepares the index first, and waits for its server."""
    prepared = awaited(lambda: prepare_index(settings), stop)
    if prepared is None:
        return
    with closing(prepared) as index:
        if not index.identities().spool:
            raise SpoolNameTaken(
                "hosts with names share this index: give this one a spool.name of its own too"
            )
        sweeper = Sweeper(index, settings)
        with Committing(index, settings) as committing, ExpanderThread(index, settings) as expander:
            sweeper.finish_exchanges()
            sweeper.judge_waiting_pairs()
            trouble = ""
            while not stop.is_set():
                trouble = _tried(lambda: sweeper.tick(clock.monotonic()), trouble)
                committing.check()
                expander.check()
                stop.wait(_TICK_SECONDS)
        _tried(sweeper.stop, trouble)


def _tried(action: Callable[[], object], before: str) -> str:
    """Do what a passing trouble may prevent; return the trouble. Its begin and its end are told."""
    try:
        action()
    except (OSError, IndexAway, sa.exc.DBAPIError) as error:  # the next tick tries again
        trouble = durable.why_full(error) or type(error).__name__
        if trouble != before:
            log.warning("sweep-failed", reason=trouble)
        return trouble
    if before:
        log.info("sweep-goes-on")
    return ""


def _temporary(layout: Layout) -> list[Path]:
    """List the places where a killed process may have left something half-written."""
    found: list[Path] = []
    for folder in (layout.incoming, layout.archive_private / "tmp"):
        if folder.is_dir():
            found.extend(folder.iterdir())
    # an old pair between two renames may be the only one that stands: `finish_exchanges` knows
    found = [path for path in found if not path.match("pair-*.old")]
    for folder in (layout.quarantine, layout.notes, layout.commitment):
        found.extend(folder.glob(".*.tmp"))
    return found
