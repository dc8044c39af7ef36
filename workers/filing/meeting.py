"""The same SOPInstanceUID again: a duplicate, a variant, a conflict, or a run that was killed."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from config.logs import get_logger, short
from config.settings import Settings
from workers import clock, durable
from workers.errors import DataError
from workers.filing import quarantine
from workers.filing.comparing import Comparison, Likeness, compare_files
from workers.filing.examining import Skip, examine
from workers.filing.linking import Linker, is_there
from workers.filing.rows import KnownInstance, folders_of
from workers.filing.work import Work, quarantine_work
from workers.index.engine import MetadataIndex
from workers.rooted import is_file
from workers.spool.batches import BatchSource

log = get_logger(__name__)

Homes = dict[tuple[str, str], list[PurePosixPath]]
"""Where the instances of (study, series) may lie, by what the index knows."""


class Meeting:
    """Judge entries whose SOPInstanceUID is in the tree already."""

    def __init__(self, index: MetadataIndex, settings: Settings, linker: Linker) -> None:
        self._index = index
        self._layout = settings.layout
        self._policy = settings.filing.duplicates
        self._linker = linker

    def meet_known(self, work: Work, known: KnownInstance, homes: Homes) -> None:
        """Judge an entry whose SOPInstanceUID the index knows."""
        kept = self._layout.archive / known.path
        there = is_file(self._layout.archive, known.path)
        self._remove_strays(work, kept, homes)
        facts, policy = work.instance.facts, self._policy
        if not there:
            if work.instance.digests.dataset == known.digests.dataset:
                self._linker.link(work, kept)
                durable.fsync_folder(kept.parent)
                log.warning("instance-restored", instance=short(work.uid))
                work.replaces = known  # its file meta may differ from that of the file that was
                work.becomes("duplicate", reason="the file was missing: restored")
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
            if durable.sha256_of(kept) == known.digests.file:
                comparison = Comparison(Likeness.DUPLICATE, "equal bytes")
            else:  # then this may be the only whole one
                comparison = Comparison(
                    Likeness.CONFLICT,
                    "equal to what was filed, but the file in the tree is damaged",
                )
        else:
            comparison = compare_files(kept, work.path)
        if comparison.likeness is Likeness.DUPLICATE and policy != "quarantine":
            work.becomes("duplicate", reason=comparison.reason)
        elif policy == "replace" and there and known.is_home_of(facts):
            self._replace(work, known, kept, comparison)
        else:
            self._set_aside(work, comparison, known)

    def meet_unknown(self, work: Work, target: Path) -> None:
        """Judge an entry whose final name is taken by other bytes that no row knows.

        Another worker may be about to commit them, or a lost index knew them.
        """
        comparison = compare_files(target, work.path)
        if comparison.likeness is not Likeness.DUPLICATE:
            self._set_aside(work, comparison, None)
            return
        try:
            with open(target, "rb", opener=durable.no_follow) as there:
                found = examine(there, target.name, BatchSource(kind="folder"))
        except DataError as error:
            found = Skip(str(error))
        if isinstance(found, Skip):
            reason = f"the file in the tree cannot be filed: {found.reason}"
            self._set_aside(work, Comparison(Likeness.CONFLICT, reason), None)
        else:
            durable.fsync_file(target)  # who wrote it may not have: the entry goes
            work.adopted, work.target = found, target

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process that replaces instances of this archive."""
        with open(self._layout.archive_private / "replacing.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _is_there(self, work: Work, path: Path) -> bool:
        return is_there(self._layout.archive, work, path)

    def _remove_strays(self, work: Work, kept: Path, homes: Homes) -> None:
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

    def _set_aside(self, work: Work, comparison: Comparison, known: KnownInstance | None) -> None:
        kept: dict[str, object] = {}
        if known is not None:
            kept = {"path": str(known.path), **asdict(known.digests)}
        quarantine_work(
            self._layout.quarantine,
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
        self, work: Work, known: KnownInstance, kept: Path, comparison: Comparison
    ) -> None:
        """Put the newer instance in the place of the first, which goes to quarantine whole.

        One process at a time replaces (`alone`): else two would each set aside the same first one.
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
            received=work.received,
        )
        quarantine.set_aside(self._layout.quarantine, kept, old)
        self._linker.replace(work, kept)
        work.replaces = known
        work.becomes("replaced", reason=comparison.reason)

    def _finish_replacing(self, work: Work, known: KnownInstance) -> None:
        """Commit a file that a run put into the tree before it was killed."""
        work.replaces = known
        set_aside = quarantine.file_of(self._layout.quarantine, work.identifier).exists()
        outcome = "replaced" if set_aside else "duplicate"
        work.becomes(outcome, reason="its file was in the tree already")
