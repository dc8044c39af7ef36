"""Take entries out of the spool: locked, with where they come from, examined.

Steps 1 and 6 of the filing protocol (protocol.py). Only errors of the data send an entry to
quarantine here; errors of the system are the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from config.logs import get_logger
from config.settings import Settings
from config.tables.intake import SourcePolicy
from workers.deidentify.notes import forget_note
from workers.errors import CannotDeidentify, DataError, Identifiable, StoreUnavailable
from workers.filing.examining import Instance, Skip, examine
from workers.filing.expanding import is_archive
from workers.filing.labels import labels_of
from workers.filing.left import forget_left, note_left, noted, why_left
from workers.filing.poison import Hand
from workers.filing.provenance import is_lost, provenance_of
from workers.filing.rows import known_arrivals
from workers.filing.work import Work, lock_entry, quarantine_work
from workers.index.engine import MetadataIndex
from workers.spool.batches import BatchSource, EntryName

if TYPE_CHECKING:
    from workers.deidentify.entry import EntryDeidentifier

log = get_logger(__name__)


class _Poison(DataError):
    """Reading this entry killed workers."""

    code = "poison"


class Taker:
    """Lock and examine entries for one worker, and let them go when they are done."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._deidentifier: EntryDeidentifier | None = None
        self._left: frozenset[str] = frozenset()

    def take(
        self, names: Sequence[EntryName], stack: ExitStack, hand: Hand
    ) -> tuple[list[Work], int]:
        """Lock entries until the stack ends; return those to file, and how many were not to be had.

        What a killed worker had committed is let go here.
        """
        works = []
        self._left = noted(self._layout)
        sources: dict[str, tuple[BatchSource, SourcePolicy]] = {}
        for name in names:
            path = name.where(self._layout)
            # an archive has a thread of its own (filing/expanding.py), without a job's time limit
            file = None if is_archive(name, path) else lock_entry(path)
            if file is None:
                continue
            stack.enter_context(file)
            if name.batch not in sources:
                sources[name.batch] = provenance_of(self._settings, name.batch)
            source, policy = sources[name.batch]
            labels = labels_of(name.path, self._settings.labels.pattern)
            works.append(Work(name, path, file, source, policy=policy, labels=labels))
        with self._index.read() as connection:
            done = known_arrivals(connection, [work.identifier for work in works])
        for work in works:
            if work.identifier in done:  # killed between commit and unlink
                self.let_go(work, hand)
        return [work for work in works if work.identifier not in done], len(names) - len(works)

    def let_go(self, work: Work, hand: Hand) -> None:
        """Unlink an entry whose arrival the index knows."""
        if work.policy.deidentify != "off":
            forget_note(self._layout, work.identifier)
        with suppress(FileNotFoundError):
            os.unlink(work.path)
        hand.forget(work.identifier)
        if work.identifier in self._left:
            forget_left(self._layout, work.identifier)

    def examine(self, works: Sequence[Work], stack: ExitStack, hand: Hand) -> int:
        """Read what each entry is; what cannot be filed is skipped or set aside.

        What cannot be de-identified now is noted and left; return how many. Raises
        CannotDeidentify where that is all there is.
        """
        left: list[CannotDeidentify] = []
        deadly = self._settings.filing.poison_deaths
        with hand.holding() as hold:
            for work in works:
                try:
                    if hand.deaths(work.identifier) >= deadly:
                        raise _Poison(f"{deadly} workers died while they read it")
                    hold(work.identifier)
                    result = self._read(work, stack)
                    if isinstance(result, Skip):
                        work.becomes("skipped", reason=result.reason)
                    else:
                        work.found = result
                except CannotDeidentify as error:
                    note_left(self._layout, work.entry, str(error))
                    left.append(error)
                except DataError as error:
                    quarantine_work(
                        self._layout.quarantine, work, "quarantined", error.code, str(error)
                    )
        if left and len(left) == len(works):
            raise left[0]
        if left:
            log.warning("cannot-deidentify", entries=len(left), reason=str(left[0]))
        return len(left)

    def _read(self, work: Work, stack: ExitStack) -> Instance | Skip:
        """Examine an entry, de-identified first where its source asks for that."""
        path = work.entry.path
        result = examine(work.file, path, work.source)
        if work.policy.deidentify == "off" or isinstance(result, Skip):
            return result
        if is_lost(work.source):
            raise Identifiable("where it came from is lost, and it may be one to de-identify")
        subject = work.labels.subject if work.policy.patient_id == "subject" else None
        if subject == "":
            raise Identifiable("its path names no subject to take the place of the PatientID")
        try:
            with_key = self._deidentify_with()
            done = with_key.deidentify(work.path, work.file, work.identifier, subject)
        except StoreUnavailable as error:
            raise CannotDeidentify(str(error)) from error
        except OSError as error:
            raise CannotDeidentify(f"it cannot be de-identified: {why_left(error)}") from error
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
