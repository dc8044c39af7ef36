"""The RQ jobs: what a worker does with what the queues tell it; arguments are never trusted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from itertools import groupby
from typing import Any

import redis
import sqlalchemy as sa

from config.logs import get_logger
from config.settings import Settings
from workers import clock, queues
from workers.completeness.evidence import FactsMemory
from workers.completeness.judging import PairWish, judge_studies
from workers.completeness.postponing import FRESH_SECONDS, GrownSeries, may_wait
from workers.completeness.series import SeriesState
from workers.errors import IndexAway, IndexUnusable, StoreUnavailable, WorkersError
from workers.filing.left import why_left
from workers.filing.protocol import Filer
from workers.filing.report import FilingReport
from workers.index.engine import MetadataIndex, open_index
from workers.index.tables import pair as pair_table
from workers.index.tables import series, study
from workers.measuring import Measures, Timed
from workers.pairing.failing import note_death, note_failure
from workers.spool.batches import EntryName, entries_of, is_batch_name

_AWAY_SECONDS = 1.0

log = get_logger(__name__)


class Workplace:
    """What the jobs of one worker process share; opened at the first job, after any fork."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.read_facts = FactsMemory()
        self._index: MetadataIndex | None = None
        self._filer: Filer | None = None
        self.measures = Measures(settings.layout, "worker")
        self._judged: dict[int, float] = {}
        self._index_away = False

    @property
    def index(self) -> MetadataIndex:
        if self._index is None:
            self._index = open_index(self.settings)
        return self._index

    @property
    def filer(self) -> Filer:
        if self._filer is None:
            self._filer = Filer(self.index, self.settings)
        return self._filer

    def judge(self, studies: set[int], touched: set[int]) -> list[PairWish]:
        """Judge studies, and remember for a while that they were."""
        wishes = judge_studies(
            self.index, self.settings, studies, touched, read_facts=self.read_facts
        )
        now = clock.monotonic()
        recent = {one: at for one, at in self._judged.items() if now - at < FRESH_SECONDS}
        self._judged = recent | dict.fromkeys(studies, now)
        return wishes

    def judged_ago(self, study_id: int) -> float | None:
        """Return how many seconds ago this process judged a study, None for long ago or never."""
        at = self._judged.get(study_id)
        return None if at is None else clock.monotonic() - at

    def index_is_away(self, error: IndexAway) -> None:
        """Say once that a server is away, and let its restart pass; the sweeper asks again."""
        if not self._index_away:
            log.warning("index-away", reason=str(error))
        self._index_away = True
        time.sleep(_AWAY_SECONDS)

    def index_answers(self) -> None:
        if self._index_away:
            log.info("index-answers-again")
        self._index_away = False

    def close(self) -> None:
        self.measures.close()
        if self._index is not None:
            self._index.close()
        self._index = self._filer = None


# RQ calls plain functions, so the process has one place where its jobs find their settings
_workplaces: list[Workplace] = []


def configure(settings: Settings) -> Workplace:
    """Give the jobs of this process their settings; called once by the worker before it works."""
    for old in _workplaces:
        old.close()
    _workplaces[:] = [Workplace(settings)]
    return _workplaces[0]


def _workplace() -> Workplace:
    if not _workplaces:
        raise WorkersError("a job was started outside a worker of petct-ingest")
    return _workplaces[0]


def file_entries(version: int, batches: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """File entries (job): {batch: [identifier, …]}; then judge what they touched."""
    place = _workplace()
    if version != queues.JOB_VERSION:
        return {}
    try:
        return file_now(place, list(_entries(place.settings, batches)))
    except StoreUnavailable as error:  # the sweeper asks again; trying at once is no use
        log.warning("store-unavailable", queue=queues.FILING, reason=str(error))
        return {}
    except IndexAway as error:
        place.index_is_away(error)
        return {}


def pair_study(version: int, pair: int, generation: int) -> str:
    """Make one generation of a pair (job)."""
    from workers.pairing.making import make_pair  # SimpleITK loads only where pairs are made

    place = _workplace()
    if version != queues.JOB_VERSION:
        return "foreign"
    try:
        made = make_pair(place.index, place.settings, pair, generation)
        if made == "ready":
            _time_pair(place, pair)
        return made
    except StoreUnavailable as error:
        log.warning("store-unavailable", queue=queues.PAIRING, reason=str(error))
        return "unavailable"
    except IndexAway as error:
        place.index_is_away(error)
        return "unavailable"
    except Exception as error:  # whatever it is: a person must see why the pair does not come
        with suppress(sa.exc.DBAPIError, IndexUnusable):
            note_failure(place.index, pair, generation, why_left(error))
        raise


def _time_pair(place: Workplace, pair: int) -> None:
    """Measure from the last instance that a pair needed to the pair in its place."""
    with place.index.read() as connection:
        asked = sa.select(pair_table.c.needed_at, pair_table.c.ready_at)
        row = connection.execute(asked.where(pair_table.c.id == pair)).one()
    if row.needed_at and row.ready_at:
        place.measures.observe(Timed.PAIR, clock.seconds_between(row.needed_at, row.ready_at))
    place.measures.close()  # this process ends with its job


def pair_maker_died(settings: Settings, arguments: Mapping[str, Any], reason: str) -> None:
    """Note that the process of a pairing job died; for the worker that had forked it.

    The index is closed again: no later fork may inherit it.
    """
    from workers.pairing.making import memory_words  # loaded already, where pairs are made

    with suppress(sa.exc.DBAPIError, WorkersError), closing(open_index(settings)) as index:
        pair, generation = arguments["pair"], arguments["generation"]
        note_death(index, pair, generation, reason, memory_words(index, settings, pair))


def file_now(place: Workplace, entries: Sequence[EntryName]) -> dict[str, int]:
    """File entries, judge, and ask for the pairs that are due."""
    report = place.filer.file_entries(entries)
    for text, facts in report.facts:
        place.read_facts.remember(text, facts)
    studies = _studies_to_judge(place, report)
    if studies:
        ask_for_pairs(place.settings, place.judge(studies, report.touched_series))
    place.index_answers()
    for seconds in report.seconds:
        place.measures.observe(Timed.FILE, seconds)
    place.measures.flush()
    log.info("filed", left=report.left, **report.outcomes)
    return report.outcomes


def ask_for_pairs(settings: Settings, wishes: Sequence[PairWish]) -> None:
    """Queue pairs; a server that is away is no harm, the sweeper asks again."""
    if not wishes:
        return
    try:
        with queues.connect(settings) as connection:
            for wish in wishes:
                queues.enqueue_pairing(connection, wish.pair_id, wish.generation)
    except redis.RedisError as error:
        log.warning("pairs-not-queued", pairs=len(wishes), reason=queues.why(error))


def _entries(settings: Settings, batches: Mapping[str, Any]) -> Iterator[EntryName]:
    """Find the entries that identifiers stand for; names in the queue are not used as paths."""
    if not isinstance(batches, Mapping):
        return
    for batch, identifiers in batches.items():
        if not is_batch_name(batch) or not isinstance(identifiers, list):
            continue
        wanted = {one for one in identifiers if isinstance(one, str)}
        for entry in entries_of(settings.layout, batch):
            if not wanted:
                break  # the rest of a large batch belongs to other jobs
            if entry.identifier in wanted:
                wanted.discard(entry.identifier)
                yield entry


@cache
def _touched_series() -> sa.Select[Any]:
    touched: sa.BindParameter[Any] = sa.bindparam("touched", expanding=True)
    pet = series.alias()
    whole = sa.exists().where(
        pet.c.study_id == series.c.study_id,
        pet.c.modality == "PT",
        pet.c.state == str(SeriesState.COMPLETE),
    )
    return (
        sa.select(series.c.id, series.c.study_id, series.c.modality, series.c.role,
                  series.c.instances, series.c.expected, study.c.two_patients,
                  whole.label("beside_whole_pet"))
        .join(study, study.c.id == series.c.study_id)
        .where(series.c.id.in_(touched))
        .order_by(series.c.study_id)
    )  # fmt: skip


def _studies_to_judge(place: Workplace, report: FilingReport) -> set[int]:
    """Return the studies of a filed batch, but for those that may wait for the rest of it."""
    if not report.touched_series:
        return set()
    with place.index.read() as connection:
        asked = {"touched": sorted(report.touched_series)}
        rows = connection.execute(_touched_series(), asked).all()
    due = set()
    for study_id, mine in groupby(rows, key=lambda row: int(row.study_id)):
        touched = list(mine)
        grown = [
            GrownSeries(row.modality, row.role, row.instances, row.expected, row.two_patients,
                        row.beside_whole_pet)
            for row in touched
        ]  # fmt: skip
        replaced = any(row.id in report.replaced_in for row in touched)
        ago = place.judged_ago(study_id)
        if replaced or not may_wait(grown, more_comes=report.more_comes, judged_ago=ago):
            due.add(study_id)
    return due
