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

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from rq.timeouts import BaseTimeoutException

from config.logs import get_logger
from config.settings import Settings
from workers import clock, durable
from workers.errors import CannotDeidentify, IndexUnusable, StoreUnavailable
from workers.filing.committing import commit_batch
from workers.filing.entering import Entrance
from workers.filing.left import note_left, why_left
from workers.filing.linking import Linker
from workers.filing.meeting import Meeting
from workers.filing.poison import Hand
from workers.filing.report import FilingReport
from workers.filing.rows import insert_event
from workers.filing.taking import Taker
from workers.identity import (
    check_archive,
    check_identity,
    check_takes_instances,
    check_writable,
)
from workers.index.engine import MetadataIndex
from workers.spool.batches import EntryName, remove_if_empty

log = get_logger(__name__)


class Filer:
    """File entries of one installation; one object a worker process."""

    def __init__(self, index: MetadataIndex, settings: Settings) -> None:
        self._index = index
        self._settings = settings
        self._layout = settings.layout
        self._identities = index.identities()
        linker = Linker(self._layout)
        self._meeting = Meeting(index, settings, linker)
        self._entrance = Entrance(index, settings, linker, self._meeting)
        self._taker = Taker(index, settings)

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
            except CannotDeidentify as error:  # noted; one of another source can be filed
                failed = error
                report.left += 1
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
            works, left = self._taker.take(names, stack, hand)
            report.left += left
            if not works:
                return
            report.left += self._taker.examine(works, stack, hand)
            known = self._entrance.place(works)
            if known and self._settings.filing.duplicates == "replace":
                stack.enter_context(self._meeting.alone())
                known = self._entrance.known(works)
            again = self._entrance.link(works, known, hand)
            # unmounted meanwhile, it is below the mount point that they were linked
            check_archive(self._layout, self._identities.archive)
            again += commit_batch(self._index, self._layout.quarantine, works, report)
            for work in works:
                if work.row is not None:
                    self._taker.let_go(work, hand)
        for work in again:  # another worker committed the same SOPInstanceUID first
            self._file([work.entry], hand, report)


def _stop_if_full(error: Exception) -> None:
    """Every other entry would meet a full disk too: the batch ends, its entries wait."""
    if why := durable.why_full(error):
        reason = f"archive, quarantine or index cannot be written: {why}"
        raise StoreUnavailable(reason) from error
