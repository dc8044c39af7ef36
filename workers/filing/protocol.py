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

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import sqlalchemy as sa
from rq.timeouts import BaseTimeoutException

from config.logs import get_logger, short
from config.settings import Settings
from workers import clock, durable
from workers.completeness.series import SeriesState
from workers.errors import BadIdentity, DataError, IndexUnusable, StoreUnavailable
from workers.filing import quarantine
from workers.filing.comparing import Comparison, Likeness, compare_files
from workers.filing.examining import Instance, Skip, examine
from workers.filing.journal import append_facts
from workers.filing.placing import Place, place_instance
from workers.filing.poison import Hand
from workers.filing.rows import (
    ArrivalRow,
    KnownInstance,
    folders_in_use,
    folders_of,
    header_columns,
    insert_arrivals,
    insert_event,
    instance_values,
    known_arrivals,
    known_instances,
)
from workers.identity import check_identity
from workers.index.engine import MetadataIndex, insert_new_rows
from workers.index.queries import SET_ASIDE
from workers.index.tables import instance, series
from workers.spool.batches import BatchSource, EntryName, read_source, remove_if_empty

log = get_logger(__name__)


_Homes = dict[tuple[str, str], list[PurePosixPath]]
"""The folders of series, by StudyInstanceUID and SeriesInstanceUID."""


@dataclass(slots=True)
class FilingReport:
    """What a call of `file_entries` did."""

    outcomes: dict[str, int] = field(default_factory=dict)
    touched_series: set[int] = field(default_factory=set)
    touched_studies: set[int] = field(default_factory=set)
    left: int = 0
    """Entries that were busy, gone, or left for later by an error of the system."""

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


@dataclass(slots=True)
class _Work:
    """One entry in hand: locked, examined, on its way."""

    entry: EntryName
    path: Path
    file: BinaryIO
    source: BatchSource
    found: Instance | None = None
    place: Place | None = None
    target: Path | None = None
    adopted: Instance | None = None
    """What the file in the tree is, where equal elements in other bytes lay there already."""
    row: ArrivalRow | None = None
    replaces: KnownInstance | None = None

    @property
    def identifier(self) -> str:
        return self.entry.identifier

    @property
    def instance(self) -> Instance:
        if self.found is None:
            raise LookupError("this entry was not examined yet, or is no instance")
        return self.found

    @property
    def uid(self) -> str:
        return self.instance.facts.sop_instance_uid

    @property
    def home(self) -> tuple[str, ...]:
        """What decides its folder: equal for all instances that go there together."""
        facts = self.instance.facts
        return (
            facts.study_instance_uid,
            facts.series_instance_uid,
            facts.patient_id,
            facts.accession_number,
            self.entry.batch,
        )


class Filer:
    """File entries of one installation; one object a worker process."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._identities = index.identities()

    def file_entries(self, entries: Iterable[EntryName]) -> FilingReport:
        """File a batch; where it fails as a whole, entry by entry.

        Raises StoreUnavailable when a store is not the one that the index knows, and the error of
        the system when a single entry fails: it stays in the spool.
        """
        names = list(entries)
        report = FilingReport()
        self._check_stores()
        with Hand(self._layout.spool_private) as hand:
            hand.count_the_dead()
            try:
                self._file(names, hand, report)
            except (StoreUnavailable, IndexUnusable, BaseTimeoutException):
                raise
            except Exception as error:  # whatever it is, one entry must not hold up the others
                if len(names) == 1:
                    raise
                log.warning("batch-failed", entries=len(names), error=type(error).__name__)
                self._one_by_one(names, hand, report)
        for batch in {name.batch for name in names}:
            remove_if_empty(self._layout, batch)
        return report

    def _one_by_one(self, names: Sequence[EntryName], hand: Hand, report: FilingReport) -> None:
        failed: Exception | None = None
        for name in names:
            try:
                self._file([name], hand, report)
            except (StoreUnavailable, IndexUnusable, BaseTimeoutException):
                raise
            except Exception as error:  # noqa: BLE001 - logged, and the last one is raised below
                failed = error
                report.left += 1
                log.warning("entry-left", entry=name.identifier, error=type(error).__name__)
        if failed is not None and not report.outcomes:
            raise failed  # nothing went: the whole system is at fault, not an entry

    def _check_stores(self) -> None:
        check_identity(self._layout.archive, self._identities.archive, "archive")
        check_identity(self._layout.spool, self._identities.spool, "spool")

    def _file(self, names: Sequence[EntryName], hand: Hand, report: FilingReport) -> None:
        with ExitStack() as stack:
            works = self._take(names, stack, hand, report)
            if not works:
                return
            self._examine(works, hand)
            self._place(works)
            known = self._known(works)
            if known and self._settings.filing.duplicates == "replace":
                stack.enter_context(self._alone())
                known = self._known(works)
            again = self._link(works, known, hand)
            self._commit(works, again, report)
            for work in works:
                if work.row is not None:
                    work.path.unlink(missing_ok=True)
                    hand.forget(work.identifier)
        for work in again:  # another worker committed the same SOPInstanceUID first
            self._file([work.entry], hand, report)

    # 1. lock and examine --------------------------------------------------------------------------

    def _take(
        self, names: Sequence[EntryName], stack: ExitStack, hand: Hand, report: FilingReport
    ) -> list[_Work]:
        works = []
        sources: dict[str, BatchSource] = {}
        for name in names:
            path = name.where(self._layout)
            file = _lock(path)
            if file is None:
                report.left += 1
                continue
            stack.enter_context(file)
            if name.batch not in sources:
                sources[name.batch] = self._source_of(name.batch)
            works.append(_Work(name, path, file, sources[name.batch]))
        with self._index.read() as connection:
            done = known_arrivals(connection, [work.identifier for work in works])
        for work in works:
            if work.identifier in done:  # killed between commit and unlink
                work.path.unlink(missing_ok=True)
                hand.forget(work.identifier)
        return [work for work in works if work.identifier not in done]

    def _source_of(self, batch: str) -> BatchSource:
        try:
            return read_source(self._layout, batch)
        except (FileNotFoundError, ValueError, TypeError):  # it was deleted, or is damaged
            log.warning("batch-without-description", batch=batch)
            return BatchSource(kind="folder")

    def _examine(self, works: Sequence[_Work], hand: Hand) -> None:
        deadly = self._settings.filing.poison_deaths
        for work in works:
            try:
                if hand.deaths(work.identifier) >= deadly:
                    raise _Poison(f"{deadly} workers died while they read it")
                with hand.holding(work.identifier):
                    result = examine(work.file, os.path.basename(work.entry.path), work.source)
                if isinstance(result, Skip):
                    work.row = self._row(work, "skipped", reason=result.reason)
                else:
                    work.found = result
            except DataError as error:
                self._quarantine(work, "quarantined", error.code, str(error))

    # 2. study, series, folder ---------------------------------------------------------------------

    def _place(self, works: Sequence[_Work]) -> None:
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
            append_facts(self._layout.archive, fresh)
        for work in found:
            refused = places.get(work.home)
            if isinstance(refused, DataError) and work.uid not in known:
                self._quarantine(work, "quarantined", refused.code, str(refused))

    def _place_of(
        self, connection: sa.Connection, work: _Work, fresh: list[dict[str, object]]
    ) -> Place | DataError:
        """Find or make the place of an entry; a new series' source is noted in `fresh`."""
        facts, source = work.instance.facts, work.source
        policy = self._settings.policy(
            calling_ae=source.calling_ae,
            called_ae=source.called_ae,
            address=source.address,
            folder=source.folder,
        )
        try:
            place, new = place_instance(
                connection,
                facts,
                prefix=policy.patient_id_prefix,
                source=source.key,
                at=clock.utc_now(),
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
                }
            )
        return place

    # 3. and 4. link, and make the folders durable -------------------------------------------------

    def _known(self, works: Sequence[_Work]) -> dict[str, KnownInstance]:
        wanted = {work.uid for work in works if work.found and work.row is None}
        with self._index.read() as connection:
            return known_instances(connection, wanted)

    def _link(
        self, works: Sequence[_Work], known: Mapping[str, KnownInstance], hand: Hand
    ) -> list[_Work]:
        """Link what is new, compare what is known; return what must be looked at again."""
        again = []
        folders: dict[Path, int] = {}
        homes: _Homes = {}
        seen: set[str] = set()
        for work in works:
            if work.found is None or work.row is not None:
                continue
            if work.uid in known:
                with hand.holding(work.identifier):
                    self._meet_known(work, known[work.uid], homes)
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

    def _link_new(self, work: _Work) -> None:
        """Link an entry that no row knows to its final name."""
        if work.place is None:
            raise LookupError("this entry has no place yet")
        folder = self._layout.archive / work.place.folder
        target = folder / f"{work.uid}.dcm"
        if not os.path.normpath(target).startswith(f"{os.path.normpath(self._layout.archive)}/"):
            reason = f"its folder would lie outside the archive: {work.place.home!r}"
            self._quarantine(work, "quarantined", BadIdentity.code, reason)
            return
        durable.make_folders(folder)
        try:
            self._link_to(work, target)
        except FileExistsError:
            if not self._same_file(work, target) and not _same_bytes(work, target):
                self._meet_unknown(work, target)
                return
        work.target = target

    def _link_to(self, work: _Work, target: Path) -> None:
        temporary = self._temporary(work)
        temporary.unlink(missing_ok=True)  # of a run that was killed
        try:
            os.link(work.path, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in durable.NO_LINK_ERRORS:
                raise
            try:  # spool and archive on two file systems
                temporary.parent.mkdir(exist_ok=True)
                durable.copy_new(work.path, temporary, 0o644)
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def _temporary(self, work: _Work, kind: str = "") -> Path:
        """Name a half-made file of an entry; nobody else makes one, for the entry is locked."""
        return self._layout.archive_private / "tmp" / f"{work.identifier}{kind}.tmp"

    def _same_file(self, work: _Work, target: Path) -> bool:
        return os.path.samestat(os.fstat(work.file.fileno()), os.stat(target))

    # the same SOPInstanceUID again ----------------------------------------------------------------

    def _meet_known(self, work: _Work, known: KnownInstance, homes: _Homes) -> None:
        """Judge an entry whose SOPInstanceUID the index knows."""
        kept = self._layout.archive / known.path
        self._remove_strays(work, kept, homes)
        facts, policy = work.instance.facts, self._settings.filing.duplicates
        if not kept.exists():
            if work.instance.digests.dataset == known.digests.dataset:
                durable.make_folders(kept.parent)
                self._link_to(work, kept)
                durable.fsync_folder(kept.parent)
                log.warning("instance-restored", instance=short(work.uid))
                work.replaces = known  # its file meta may differ from that of the file that was
                work.row = self._row(work, "duplicate", reason="the file was missing: restored")
                return
            comparison = Comparison(Likeness.CONFLICT, "the file in the tree is missing")
        elif (facts.study_instance_uid, facts.series_instance_uid) != (known.study, known.series):
            where = "study" if facts.study_instance_uid != known.study else "series"
            comparison = Comparison(
                Likeness.CONFLICT, f"the same SOPInstanceUID is filed in another {where}"
            )
        elif work.instance.digests.file != known.digests.file and self._is_there(work, kept):
            self._finish_replacing(work, known)
            return
        elif (
            work.instance.digests.dataset == known.digests.dataset
            and facts.transfer_syntax_uid == known.transfer_syntax_uid
        ):
            comparison = Comparison(Likeness.DUPLICATE, "equal bytes")
        else:
            comparison = compare_files(kept, work.path)
        if comparison.likeness is Likeness.DUPLICATE and policy != "quarantine":
            work.row = self._row(work, "duplicate", reason=comparison.reason)
        elif policy == "replace" and kept.exists() and known.is_home_of(facts):
            self._replace(work, known, kept, comparison)
        else:
            self._set_aside(work, comparison, known)

    def _meet_unknown(self, work: _Work, target: Path) -> None:
        """Judge an entry whose final name is taken by other bytes that no row knows.

        Another worker may be about to commit them, or a lost index knew them.
        """
        comparison = compare_files(target, work.path)
        if comparison.likeness is not Likeness.DUPLICATE:
            self._set_aside(work, comparison, None)
            return
        try:
            with open(target, "rb") as there:
                found = examine(there, target.name, BatchSource(kind="folder"))
        except DataError as error:
            found = Skip(str(error))
        if isinstance(found, Skip):
            reason = f"the file in the tree cannot be filed: {found.reason}"
            self._set_aside(work, Comparison(Likeness.CONFLICT, reason), None)
        else:
            work.adopted, work.target = found, target

    def _remove_strays(self, work: _Work, kept: Path, homes: _Homes) -> None:
        """Remove the entry's bytes from where no row knows them: a run that lost a race left them.

        A SOPInstanceUID has one row, and so one file.
        """
        facts = work.instance.facts
        home = facts.study_instance_uid, facts.series_instance_uid
        if home not in homes:
            with self._index.read() as connection:
                homes[home] = folders_of(connection, *home)
        for folder in homes[home]:
            stray = self._layout.archive / folder / f"{work.uid}.dcm"
            if stray != kept and self._is_there(work, stray):
                stray.unlink(missing_ok=True)

    def _is_there(self, work: _Work, path: Path) -> bool:
        """Tell whether a file of the tree is this entry, or a copy of it."""
        try:
            return self._same_file(work, path) or _same_bytes(work, path)
        except FileNotFoundError:
            return False

    def _set_aside(self, work: _Work, comparison: Comparison, known: KnownInstance | None) -> None:
        kept: dict[str, object] = {}
        if known is not None:
            kept = {"path": str(known.path), **asdict(known.digests)}
        self._quarantine(
            work,
            str(comparison.likeness)
            if comparison.likeness is not Likeness.DUPLICATE
            else "quarantined",
            str(comparison.likeness),
            comparison.reason,
            kept=kept,
            changed=comparison.changed,
        )

    def _replace(
        self, work: _Work, known: KnownInstance, kept: Path, comparison: Comparison
    ) -> None:
        """Put the newer instance in the place of the first, which goes to quarantine whole.

        One process at a time replaces (`_alone`): else two would each set aside the same first one.
        """
        old = quarantine.Reason(
            entry=work.identifier,
            outcome="replaced",
            code="replaced",
            reason=f"replaced by a newer one: {comparison.reason}",
            at=clock.utc_now(),
            source=asdict(work.source),
            original_path=str(known.path),
            size=kept.stat().st_size,
            sha256=known.digests.file,
            dataset_sha256=known.digests.dataset,
            instance_uid=work.uid,
            changed=comparison.changed,
        )
        quarantine.set_aside(self._layout.quarantine, kept, old)
        beside = self._temporary(work, ".new")
        beside.parent.mkdir(exist_ok=True)
        beside.unlink(missing_ok=True)
        self._link_to(work, beside)
        os.replace(beside, kept)
        durable.fsync_folder(kept.parent)
        work.replaces = known
        work.row = self._row(work, "replaced", reason=comparison.reason)

    def _finish_replacing(self, work: _Work, known: KnownInstance) -> None:
        """Commit a file that a run put into the tree before it was killed."""
        work.replaces = known
        set_aside = quarantine.file_of(self._layout.quarantine, work.identifier).exists()
        outcome = "replaced" if set_aside else "duplicate"
        work.row = self._row(work, outcome, reason="its file was in the tree already")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only process that replaces instances of this archive."""
        with open(self._layout.archive_private / "replacing.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # 5. commit ------------------------------------------------------------------------------------

    def _commit(self, works: Sequence[_Work], again: list[_Work], report: FilingReport) -> None:
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
                    work.row = self._row(work, "filed")
                    key = (work.place.study_id, work.place.series_id, work.source.key)
                    filed[key] = filed.get(key, 0) + 1
            insert_arrivals(connection, [work.row for work in works if work.row is not None])
            for work in works:
                if work.replaces is not None:
                    self._update_instance(connection, work, work.replaces)
                if work.row is not None and work.row.outcome in SET_ASIDE:
                    insert_event(
                        connection,
                        work.row.outcome,
                        at,
                        source=work.source.key,
                        entry=work.identifier,
                        code=work.row.code,
                    )
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
                report.count(work.row.outcome)
            if work.replaces is not None:
                report.touched_series.add(work.replaces.series_id)
        report.touched_studies.update(study_id for study_id, _, _ in filed)
        report.touched_series.update(series_id for _, series_id, _ in filed)

    def _withdraw(self, works: Sequence[_Work]) -> None:
        """Take back from quarantine what a killed run set aside and this one judges otherwise."""
        for work in works:
            outcome = work.row.outcome if work.row is not None else "filed"
            if outcome not in SET_ASIDE:
                place = self._layout.quarantine
                if quarantine.reason_of(place, work.identifier).exists():
                    quarantine.remove(place, work.identifier)

    def _instance_row(self, work: _Work, at: str) -> dict[str, Any]:
        """Return the row of a linked instance."""
        if work.place is None or work.target is None:
            raise LookupError("this entry was not linked yet")
        return instance_values(work.adopted or work.instance, work.place, work.target.name, at)

    def _update_instance(
        self, connection: sa.Connection, work: _Work, known: KnownInstance
    ) -> None:
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

    # words ----------------------------------------------------------------------------------------

    def _quarantine(
        self,
        work: _Work,
        outcome: str,
        code: str,
        reason: str,
        *,
        kept: dict[str, object] | None = None,
        changed: tuple[str, ...] = (),
    ) -> None:
        """Keep an entry in quarantine with its reason; the arrival is committed with the batch."""
        found = work.found
        size = os.fstat(work.file.fileno()).st_size
        words = quarantine.Reason(
            entry=work.identifier,
            outcome=outcome,
            code=code,
            reason=reason,
            at=clock.utc_now(),
            source=asdict(work.source),
            original_path=work.entry.path,
            size=size,
            sha256=found.digests.file if found else "",
            dataset_sha256=found.digests.dataset if found else "",
            instance_uid=found.facts.sop_instance_uid if found else "",
            series=found.facts.series_instance_uid if found else "",
            study=found.facts.study_instance_uid if found else "",
            kept=dict(kept or {}),
            changed=changed,
        )
        quarantine.set_aside(self._layout.quarantine, work.path, words)
        work.row = self._row(work, outcome, code=code, reason=reason)
        log.warning("quarantined", entry=work.identifier, outcome=outcome, code=code)

    def _row(
        self, work: _Work, outcome: str, *, code: str | None = None, reason: str | None = None
    ) -> ArrivalRow:
        found = work.found
        return ArrivalRow(
            entry=work.identifier,
            outcome=outcome,
            source=work.source.key,
            at=clock.utc_now(),
            size=os.fstat(work.file.fileno()).st_size,
            instance_uid=found.facts.sop_instance_uid if found else None,
            dataset_sha256=found.digests.dataset if found else None,
            code=code,
            reason=reason,
        )


class _Poison(DataError):
    code = "poison"


def _lock(path: Path) -> BinaryIO | None:
    """Open and lock an entry; None when it is busy, gone, or no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    file = open(descriptor, "rb")  # noqa: SIM115 - closed by the caller's stack
    try:
        if durable.try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return file
    except FileNotFoundError:
        pass  # unlinked between open and lock: another worker is done with it
    file.close()
    return None


def _same_bytes(work: _Work, target: Path) -> bool:
    if os.stat(target).st_size != work.instance.size:
        return False
    return durable.sha256_of(target) == work.instance.digests.file
