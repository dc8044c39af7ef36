"""The closed filing protocol: from the spool into the tree and the index, killable at any line.

For a batch of entries (design.md 2.4):

1. lock each entry (flock; busy or gone: skip) and examine it;
2. commit study, series and folder;
3. link(2) each entry to its final name: never rename, never overwrite;
4. make the folders durable;
5. commit instance, event and arrival of the whole batch in one transaction;
6. unlink the entries.

Whatever is killed between two of these, running again gives the same result: the entry is still in
the spool until the index knows its arrival, and an arrival is known once. Only errors of the data
send an entry to quarantine; errors of the system leave it where it is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from rq.timeouts import BaseTimeoutException

from config.logs import get_logger
from config.settings import Settings
from config.tables import SourcePolicy
from workers import clock, durable, rooted
from workers.completeness.series import SeriesState
from workers.errors import BadIdentity, DataError, Identifiable, IndexUnusable, StoreUnavailable
from workers.filing import quarantine
from workers.filing.examining import Instance, Skip, examine
from workers.filing.expanding import is_archive
from workers.filing.journal import append_facts
from workers.filing.labels import labels_of
from workers.filing.left import forget_left, note_left, why_left
from workers.filing.linking import Linker, same_bytes, same_file
from workers.filing.meeting import Homes, Meeting
from workers.filing.placing import Place, place_instance
from workers.filing.poison import Hand
from workers.filing.rows import (
    ArrivalRow,
    KnownInstance,
    folders_in_use,
    header_columns,
    insert_arrivals,
    insert_event,
    instance_values,
    known_arrivals,
    known_instances,
    study_ids,
)
from workers.filing.work import Work, lock_entry, quarantine_work
from workers.identity import (
    check_archive,
    check_identity,
    check_takes_instances,
    check_writable,
)
from workers.index.engine import MetadataIndex, insert_new_rows
from workers.index.queries import SET_ASIDE
from workers.index.tables import instance, series
from workers.spool.batches import BatchSource, EntryName, read_source, remove_if_empty

if TYPE_CHECKING:
    from workers.deidentify.entry import EntryDeidentifier

log = get_logger(__name__)


@dataclass(slots=True)
class FilingReport:
    """What a call of `file_entries` did."""

    outcomes: dict[str, int] = field(default_factory=dict)
    touched_series: set[int] = field(default_factory=set)
    touched_studies: set[int] = field(default_factory=set)
    replaced_in: set[int] = field(default_factory=set)
    """Series in which another file took an instance's place."""
    left: int = 0
    """Entries that were busy, gone, or left for later by an error of the system."""
    more_comes: bool = False
    """Every batch is open still, or has entries that are not filed."""
    seconds: list[float] = field(default_factory=list)
    """How long each entry took from the spool into the index."""

    def count(self, row: ArrivalRow) -> None:
        self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
        if row.received_at is not None:
            self.seconds.append(clock.seconds_between(row.received_at, row.at))


class Filer:
    """File entries of one installation; one object a worker process."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._identities = index.identities()
        self._linker = Linker(self._layout)
        self._meeting = Meeting(index, settings, self._linker)
        self._deidentifier: EntryDeidentifier | None = None

    def file_entries(self, entries: Iterable[EntryName]) -> FilingReport:
        """File a batch; where it fails as a whole, entry by entry.

        Raises StoreUnavailable when a store is not the one that the index knows, and the error of
        the system when a single entry fails: it stays in the spool.
        """
        names = list(entries)
        report = FilingReport()
        self._check_stores()
        with Hand(self._layout.spool_private) as hand:
            self._tell_of_deaths(hand.count_the_dead())
            try:
                self._file(names, hand, report)
            except (StoreUnavailable, IndexUnusable, BaseTimeoutException):
                raise
            except Exception as error:  # whatever it is, one entry must not hold up the others
                _stop_if_full(error)
                if len(names) == 1:
                    note_left(self._layout, names[0], why_left(error))
                    raise
                log.warning("batch-failed", entries=len(names), error=type(error).__name__)
                self._one_by_one(names, hand, report)
        gone = [remove_if_empty(self._layout, batch) for batch in {name.batch for name in names}]
        report.more_comes = not any(gone)
        return report

    def _tell_of_deaths(self, entries: Sequence[str]) -> None:
        if entries:
            with self._index.write() as connection:
                for entry in entries:
                    insert_event(connection, "worker-died", clock.utc_now(), entry=entry)

    def _one_by_one(self, names: Sequence[EntryName], hand: Hand, report: FilingReport) -> None:
        failed: Exception | None = None
        for name in names:
            try:
                self._file([name], hand, report)
            except (StoreUnavailable, IndexUnusable, BaseTimeoutException):
                raise
            except Exception as error:  # noqa: BLE001 - logged, and the last one is raised below
                _stop_if_full(error)
                failed = error
                report.left += 1
                note_left(self._layout, name, why_left(error))
                log.warning("entry-left", entry=name.identifier, error=type(error).__name__)
        if failed is not None and not report.outcomes:
            raise failed  # nothing went: the whole system is at fault, not an entry

    def _check_stores(self) -> None:
        check_archive(self._layout, self._identities.archive)
        check_identity(self._layout.spool, self._identities.spool, "spool")
        check_takes_instances(self._layout)
        check_writable(self._layout.spool, "spool")

    def _file(self, names: Sequence[EntryName], hand: Hand, report: FilingReport) -> None:
        with ExitStack() as stack:
            works = self._take(names, stack, hand, report)
            if not works:
                return
            self._examine(works, hand, stack)
            self._place(works)
            known = self._known(works)
            if known and self._settings.filing.duplicates == "replace":
                stack.enter_context(self._meeting.alone())
                known = self._known(works)
            again = self._link(works, known, hand)
            self._commit(works, again, report)
            for work in works:
                if work.row is not None:
                    self._let_go(work, hand)
        for work in again:  # another worker committed the same SOPInstanceUID first
            self._file([work.entry], hand, report)

    # 1. lock and examine --------------------------------------------------------------------------

    def _take(
        self, names: Sequence[EntryName], stack: ExitStack, hand: Hand, report: FilingReport
    ) -> list[Work]:
        works = []
        sources: dict[str, tuple[BatchSource, SourcePolicy]] = {}
        for name in names:
            path = name.where(self._layout)
            # an archive has a thread of its own (filing/expanding.py), without a job's time limit
            file = None if is_archive(name, path) else lock_entry(path)
            if file is None:
                report.left += 1
                continue
            stack.enter_context(file)
            if name.batch not in sources:
                sources[name.batch] = self._source_of(name.batch)
            source, policy = sources[name.batch]
            labels = labels_of(name.path, self._settings.labels.pattern)
            works.append(Work(name, path, file, source, policy=policy, labels=labels))
        with self._index.read() as connection:
            done = known_arrivals(connection, [work.identifier for work in works])
        for work in works:
            if work.identifier in done:  # killed between commit and unlink
                self._let_go(work, hand)
        return [work for work in works if work.identifier not in done]

    def _let_go(self, work: Work, hand: Hand) -> None:
        """Unlink an entry whose arrival the index knows."""
        if work.policy.deidentify != "off":
            self._deidentify_with().forget(work.identifier)
        work.path.unlink(missing_ok=True)
        hand.forget(work.identifier)
        forget_left(self._layout, work.identifier)

    def _source_of(self, batch: str) -> tuple[BatchSource, SourcePolicy]:
        """Return where a batch came from, and what is done with what comes from there."""
        try:
            source = read_source(self._layout, batch)
        except (FileNotFoundError, ValueError, TypeError):  # it was deleted, or is damaged
            log.warning("batch-without-description", batch=batch)
            return BatchSource(kind="folder"), self._strictest()
        return source, self._settings.policy(
            calling_ae=source.calling_ae,
            called_ae=source.called_ae,
            address=source.address,
            folder=source.folder,
        )

    def _strictest(self) -> SourcePolicy:
        """Return the policy for a batch of nobody knows where: it may be one to de-identify."""
        policy = SourcePolicy.nowhere()
        if any(one.deidentify != "off" for one in self._settings.sources):
            policy = policy.model_copy(update={"deidentify": "dicognito"})
        return policy

    def _examine(self, works: Sequence[Work], hand: Hand, stack: ExitStack) -> None:
        deadly = self._settings.filing.poison_deaths
        for work in works:
            try:
                if hand.deaths(work.identifier) >= deadly:
                    raise _Poison(f"{deadly} workers died while they read it")
                with hand.holding(work.identifier):
                    result = self._read(work, stack)
                if isinstance(result, Skip):
                    work.becomes("skipped", reason=result.reason)
                else:
                    work.found = result
            except DataError as error:
                quarantine_work(
                    self._layout.quarantine, work, "quarantined", error.code, str(error)
                )

    def _read(self, work: Work, stack: ExitStack) -> Instance | Skip:
        """Examine an entry, de-identified first where its source asks for that."""
        path = work.entry.path
        result = examine(work.file, path, work.source)
        if work.policy.deidentify == "off" or isinstance(result, Skip):
            return result
        if work.source.kind == "folder" and not work.source.folder:
            raise Identifiable("where it came from is lost, and it may be one to de-identify")
        subject = work.labels.subject if work.policy.patient_id == "subject" else None
        if subject == "":
            raise Identifiable("its path names no subject to take the place of the PatientID")
        with_key = self._deidentify_with()
        done = with_key.deidentify(work.path, work.file, work.identifier, subject)
        if done.file is not work.file:
            stack.enter_context(done.file)
            work.file = done.file
        work.received = done.received
        return examine(work.file, path, work.source)

    def _deidentify_with(self) -> EntryDeidentifier:
        """Open the de-identifier when it is first needed: it makes the seed."""
        if self._deidentifier is None:
            # dicognito takes a third of a second to load
            from workers.deidentify.entry import EntryDeidentifier

            self._deidentifier = EntryDeidentifier(self._layout, self._settings.seed_file)
        return self._deidentifier

    # 2. study, series, folder ---------------------------------------------------------------------

    def _place(self, works: Sequence[Work]) -> None:
        fresh: list[dict[str, object]] = []
        places: dict[tuple[str, ...], Place | DataError] = {}
        with self._index.write() as connection:
            found = [work for work in works if work.found is not None]
            known = known_instances(connection, {work.uid for work in found})
            for work in found:
                if work.uid in known:
                    continue
                if work.home not in places:
                    places[work.home] = self._place_of(connection, work, fresh)
                place = places[work.home]
                if isinstance(place, Place):
                    work.place = place
            append_facts(self._layout.output, fresh, self._layout.file_mode)
        for work in found:
            refused = places.get(work.home)
            if isinstance(refused, DataError) and work.uid not in known:
                quarantine_work(
                    self._layout.quarantine, work, "quarantined", refused.code, str(refused)
                )

    def _place_of(
        self, connection: sa.Connection, work: Work, fresh: list[dict[str, object]]
    ) -> Place | DataError:
        """Find or make the place of an entry; a new series' source is noted in `fresh`."""
        facts, source = work.instance.facts, work.source
        try:
            place, new = place_instance(
                connection,
                facts,
                prefix=work.policy.patient_id_prefix,
                source=source.key,
                at=clock.utc_now(),
                labels=work.labels,
            )
        except DataError as error:
            return error
        if new:
            fresh.append(
                {
                    "kind": "source",
                    "study": facts.study_instance_uid,
                    "series": facts.series_instance_uid,
                    "source": source.key,
                    **{key: text for key, text in asdict(work.labels).items() if text},
                }
            )
        return place

    # 3. and 4. link, and make the folders durable -------------------------------------------------

    def _known(self, works: Sequence[Work]) -> dict[str, KnownInstance]:
        wanted = {work.uid for work in works if work.found and work.row is None}
        with self._index.read() as connection:
            return known_instances(connection, wanted)

    def _link(
        self, works: Sequence[Work], known: Mapping[str, KnownInstance], hand: Hand
    ) -> list[Work]:
        """Link what is new, compare what is known; return what must be looked at again."""
        again = []
        folders: dict[Path, int] = {}
        homes: Homes = {}
        seen: set[str] = set()
        for work in works:
            if work.found is None or work.row is not None:
                continue
            if work.uid in known:
                with hand.holding(work.identifier):
                    self._meeting.meet_known(work, known[work.uid], homes)
            elif work.uid in seen or work.place is None:
                again.append(work)  # twice in one batch: the second after the first is committed
            else:
                seen.add(work.uid)
                with hand.holding(work.identifier):
                    self._link_new(work)
                if work.target is not None:
                    folders[work.target.parent] = work.place.folder_id
        self._make_durable(folders)
        return again

    def _make_durable(self, folders: Mapping[Path, int]) -> None:
        """Make the names in these folders durable; those of folders without a row yet too.

        A folder that exists was perhaps made by a run that was killed before it was durable.
        """
        if not folders:
            return
        with self._index.read() as connection:
            used = folders_in_use(connection, list(folders.values()))
        parents: set[Path] = set()
        for folder, folder_id in folders.items():
            durable.fsync_folder(folder)
            if folder_id not in used:
                inside = len(self._layout.archive.parts)
                parents.update(one for one in folder.parents if len(one.parts) >= inside)
        for parent in parents:
            durable.fsync_folder(parent)

    def _link_new(self, work: Work) -> None:
        """Link an entry that no row knows to its final name."""
        if work.place is None:
            raise LookupError("this entry has no place yet")
        folder = self._layout.archive / work.place.folder
        target = folder / f"{work.uid}.dcm"
        if not os.path.normpath(target).startswith(f"{os.path.normpath(self._layout.archive)}/"):
            self._refuse(work, BadIdentity.code, "its folder would lie outside the archive")
            return
        try:
            self._linker.link(work, target)
        except FileExistsError:
            rooted.is_file(self._layout.archive, target.relative_to(self._layout.archive))
            if not same_file(work, target):
                if not same_bytes(work, target):
                    self._meeting.meet_unknown(work, target)
                    return
                durable.fsync_file(target)  # who wrote it may not have: the entry goes
        work.target = target

    # the same SOPInstanceUID again ----------------------------------------------------------------

    def _refuse(self, work: Work, code: str, reason: str) -> None:
        quarantine_work(self._layout.quarantine, work, "quarantined", code, reason)

    # 5. commit ------------------------------------------------------------------------------------

    def _commit(self, works: Sequence[Work], again: list[Work], report: FilingReport) -> None:
        if not any(work.row is not None or work.target is not None for work in works):
            return
        self._withdraw(works)
        at = clock.utc_now()
        filed: dict[tuple[int, int, str], int] = {}
        linked = [work for work in works if work.row is None and work.target is not None]
        rows = [self._instance_row(work, at) for work in linked]
        with self._index.write() as connection:
            new = insert_new_rows(connection, instance, rows, instance.c.instance_uid)
            for work in linked:
                if work.uid not in new:
                    again.append(work)  # another worker was faster
                elif work.place is not None:
                    work.becomes("filed")
                    key = (work.place.study_id, work.place.series_id, work.source.key)
                    filed[key] = filed.get(key, 0) + 1
            insert_arrivals(connection, [work.row for work in works if work.row is not None])
            for work in works:
                if work.replaces is not None:
                    self._update_instance(connection, work, work.replaces)
            _tell_what_was_not_filed(connection, works, at)
            for (study_id, series_id, source), count in filed.items():
                connection.execute(
                    series.update()
                    .where(series.c.id == series_id)
                    .values(
                        instances=series.c.instances + count,
                        last_boot=clock.boot_id(),
                        last_monotonic=clock.monotonic(),
                        quiet=False,
                        state=str(SeriesState.RECEIVING),  # until it is judged again, by whomever
                        last_at=at,
                    )
                )
                insert_event(
                    connection, "filed", at, study_id=study_id, series_id=series_id,
                    source=source, instances=count,
                )  # fmt: skip
        for work in works:  # only now: what was rolled back was not done
            if work.row is not None:
                report.count(work.row)
            if work.replaces is not None:
                report.touched_series.add(work.replaces.series_id)
                report.replaced_in.add(work.replaces.series_id)
        report.touched_studies.update(study_id for study_id, _, _ in filed)
        report.touched_series.update(series_id for _, series_id, _ in filed)

    def _withdraw(self, works: Sequence[Work]) -> None:
        """Take back from quarantine what a killed run set aside and this one judges otherwise."""
        for work in works:
            outcome = work.row.outcome if work.row is not None else "filed"
            if outcome not in SET_ASIDE:
                place = self._layout.quarantine
                if quarantine.reason_of(place, work.identifier).exists():
                    quarantine.remove(place, work.identifier)

    def _instance_row(self, work: Work, at: str) -> dict[str, Any]:
        """Return the row of a linked instance."""
        if work.place is None or work.target is None:
            raise LookupError("this entry was not linked yet")
        return instance_values(work.adopted or work.instance, work.place, work.target.name, at)

    def _update_instance(self, connection: sa.Connection, work: Work, known: KnownInstance) -> None:
        connection.execute(
            series.update()
            .where(series.c.id == known.series_id)
            .values(state=str(SeriesState.RECEIVING))
        )
        connection.execute(
            instance.update()
            .where(instance.c.id == known.id)
            .values(
                size=work.instance.size,
                sha256=work.instance.digests.file,
                dataset_sha256=work.instance.digests.dataset,
                **header_columns(work.instance.facts),
            )
        )


def _tell_what_was_not_filed(connection: sa.Connection, works: Sequence[Work], at: str) -> None:
    """Write an event for each entry that was set aside, and one for the duplicates of a study."""
    known = study_ids(connection, {work.study_uid for work in works if work.found is not None})
    duplicates: Counter[tuple[int | None, str]] = Counter()
    for work in works:
        if work.row is None:
            continue
        study_id = known.get(work.study_uid) if work.found is not None else None
        if work.row.outcome == "duplicate":
            duplicates[study_id, work.source.key] += 1
        elif work.row.outcome in SET_ASIDE:
            insert_event(
                connection, work.row.outcome, at, study_id=study_id, source=work.source.key,
                entry=work.identifier, code=work.row.code,
            )  # fmt: skip
    for (study_id, source), count in duplicates.items():
        insert_event(connection, "duplicate", at, study_id=study_id, source=source, instances=count)


def _stop_if_full(error: Exception) -> None:
    """Every other entry would meet a full disk too: the batch ends, its entries wait."""
    if why := durable.why_full(error):
        reason = f"archive, quarantine or index cannot be written: {why}"
        raise StoreUnavailable(reason) from error


class _Poison(DataError):
    code = "poison"
