"""Take settled files into the spool, so that a kill at any line loses nothing and doubles nothing.

    same file system, one link   lease, fsync, rename into the batch
    otherwise, mode "move"       rename to a private name beside the source (it carries the batch),
                                 copy, fsync, rename into the batch, unlink the private name
    mode "copy"                  ledger, copy, fsync, rename into the batch, ledger

An inode in the spool is never shared with a user: what has several links, or stays where it is, is
copied. A private name found by a scan is a claim that was cut off: it goes into the batch that it
names, as the entry that it would have been, so that the index knows it again if it was filed
already.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from config.layout import Layout
from daemon.watcher.gate import SpoolGate
from daemon.watcher.grouping import GroupedBatch
from daemon.watcher.ledger import Ledger
from daemon.watcher.names import NameKind, claim_name, entry_path, read_claim
from daemon.watcher.outcomes import NotNow, Outcome, Result, result_of
from daemon.watcher.scanning import Found
from daemon.watcher.settling import FileState
from daemon.watcher.sources import OpenedSource, is_at, open_source, removed, renamed_back
from workers import durable
from workers.spool.batches import BatchSource, BatchWriter, EntryName


class Claimer:
    """Take files of one watched folder into batches of the spool.

    Parameters
    ----------
    root : str
        The watched folder's real path; the files' paths are relative to it.
    ledger : Ledger or None
        Given in mode "copy", where the sources stay.
    gate : SpoolGate
        Says whether the spool has room for what must be copied.
    offer : callable
        Is told each entry after it is durable.
    """

    def __init__(
        self,
        layout: Layout,
        source: BatchSource,
        root: str,
        ledger: Ledger | None,
        gate: SpoolGate,
        offer: Callable[[EntryName], None],
    ) -> None:
        self._layout = layout
        self._source = source
        self._root = root
        self._ledger = ledger
        self._gate = gate
        self._offer = offer
        self._device = os.stat(layout.incoming).st_dev

    def take(self, files: Sequence[Found], keep_on: Callable[[], bool]) -> list[Result]:
        """Take settled files, all new ones into one batch; ends early when `keep_on` says no.

        Errors of single files become results; raises OSError (`SPOOL_ERRORS`) when the spool is
        full.
        """
        results = [
            result_of(found, self._resume)
            for found in files
            if found.kind is NameKind.CLAIM and keep_on()
        ]
        self.resume_copies()
        fresh = [found for found in files if found.kind is not NameKind.CLAIM]
        if fresh and keep_on():
            take = self._move_all if self._ledger is None else self._copy_all
            results += take(fresh, keep_on)
        return results

    def resume_copies(self) -> int:
        """Finish the batches of mode "copy" that a kill cut off; return how many files."""
        if self._ledger is None:
            return 0
        taken = 0
        for name, files in self._ledger.unfinished().items():
            found = [Found(path, state) for path, state in files.items()]
            with BatchWriter(self._layout, self._source, name) as batch:
                taken += sum(
                    result.outcome is Outcome.TAKEN
                    for result in self._copy_into(batch, found, lambda: True)
                )
        return taken

    def _move_all(self, files: Sequence[Found], keep_on: Callable[[], bool]) -> list[Result]:
        results = []
        aside: list[tuple[Found, str]] = []
        with GroupedBatch(self._layout, self._source, self._offer) as batch:

            def move(found: Found) -> Outcome:
                claim = self._move(batch, found)
                if claim is not None:
                    aside.append((found, claim))
                return Outcome.TAKEN

            for found in files:
                if not keep_on():
                    break
                result = result_of(found, move)
                if not (aside and aside[-1][0] is found):
                    results.append(result)
            batch.flush()
            results += self._finish_all(batch, aside, keep_on)
        return results

    def _finish_all(
        self, batch: GroupedBatch, aside: Sequence[tuple[Found, str]], keep_on: Callable[[], bool]
    ) -> list[Result]:
        """Copy what was set aside; what a stop leaves is found again as claims."""
        results = []
        for folder in {os.path.dirname(self._full(claim)) for _, claim in aside}:
            durable.fsync_folder(folder)  # else a power cut brings the old names back
        for found, claim in aside:
            if not keep_on():
                break

            def finish(_: Found, claim: str = claim) -> Outcome:
                return self._finish(batch.writer, claim, entry_path(_entry_of(claim)))

            results.append(result_of(found, finish))
        return results

    def _move(self, batch: GroupedBatch, found: Found) -> str | None:
        """Rename a file into the batch, or aside where it must be copied: then return that path."""
        source = Path(self._full(found.path))
        with open_source(source, found.state) as file:
            if not file.may_become_ours(self._device):
                return self._set_aside(batch.writer, found, file)
            os.fsync(file.descriptor)
            if not (file.undisturbed() and is_at(source, file)):
                raise NotNow(Outcome.CHANGED)
            try:
                entry = batch.adopt(source, entry_path(found.path))
            except OSError as error:
                if error.errno != errno.EXDEV:  # mounts of one device, subvolumes
                    raise
                return self._set_aside(batch.writer, found, file)
            target = entry.where(self._layout)
            kept = file.undisturbed() and is_at(target, file)
            # between look and rename somebody opened, linked or replaced it: give it back
            if not kept and (renamed_back(target, source) or removed(target)):
                raise NotNow(Outcome.CHANGED)
        batch.adopted(entry)
        return None

    def _set_aside(self, batch: BatchWriter, found: Found, file: OpenedSource) -> str:
        folder, name = os.path.split(found.path)
        claim = os.path.join(folder, claim_name(batch.name, name))
        source, aside = Path(self._full(found.path)), Path(self._full(claim))
        os.rename(source, aside)
        if not is_at(aside, file) and (renamed_back(aside, source) or removed(aside)):
            raise NotNow(Outcome.CHANGED)  # it was replaced between look and rename
        return claim

    def _resume(self, found: Found) -> Outcome:
        claim = read_claim(os.path.basename(found.path))
        if claim is None:
            return Outcome.GONE
        with BatchWriter(self._layout, self._source, claim.batch) as batch:
            return self._finish(batch, found.path, entry_path(_entry_of(found.path)))

    def _finish(self, batch: BatchWriter, claim: str, path: str) -> Outcome:
        """Copy a claim into its batch and remove it."""
        source = Path(self._full(claim))
        entry = self._copy_in(batch, source, None, path)
        os.unlink(source)
        self._offer(entry)
        return Outcome.TAKEN

    def _copy_all(self, files: Sequence[Found], keep_on: Callable[[], bool]) -> list[Result]:
        results, free = [], []
        for found in files:
            if self._ledger is not None and self._ledger.knows(found):
                results.append(Result(found, Outcome.TAKEN))  # by the batch that was resumed
                continue
            result = result_of(found, self._try_open)
            if result.outcome is Outcome.TAKEN:
                free.append(found)
            else:
                results.append(result)
        if free:
            with BatchWriter(self._layout, self._source) as batch:
                self._known(batch.name, free)
                results += self._copy_into(batch, free, keep_on)
        return results

    def _try_open(self, found: Found) -> Outcome:
        with open_source(Path(self._full(found.path)), found.state):
            return Outcome.TAKEN

    def _known(self, batch: str, files: Sequence[Found]) -> None:
        if self._ledger is not None:
            self._ledger.begin(batch, files)

    def _copy_into(
        self, batch: BatchWriter, files: Sequence[Found], keep_on: Callable[[], bool]
    ) -> list[Result]:
        """Copy files whose batch is in the ledger; an early end leaves them to be resumed."""
        results: list[Result] = []

        def copy(found: Found) -> Outcome:
            source = Path(self._full(found.path))
            self._offer(self._copy_in(batch, source, found.state, entry_path(found.path)))
            return Outcome.TAKEN

        stopped = False
        try:
            for found in files:
                if not keep_on():
                    stopped = True
                    break
                results.append(result_of(found, copy))
        finally:
            taken = {result.found.path for result in results if result.outcome is Outcome.TAKEN}
            if self._ledger is not None and not stopped:
                self._ledger.finish(
                    batch.name, (found.path for found in files if found.path not in taken)
                )
        return results

    def _copy_in(
        self, batch: BatchWriter, source: Path, state: FileState | None, path: str
    ) -> EntryName:
        """Copy one file into a batch under `path`, unless it lies there already."""
        if batch.has(path):
            return self._same_as_published(batch, source, path)
        mark = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
        temporary = self._layout.incoming / f"{batch.name}.{mark}"
        temporary.unlink(missing_ok=True)  # ours by its name, from before a kill
        with open_source(source, state) as file:
            if lacks := self._gate.reason(file.facts.st_size):
                raise NotNow(Outcome.TROUBLE, OSError(errno.ENOSPC, lacks))
            durable.copy_new(source, temporary, self._layout.file_mode)
            try:
                if not (file.undisturbed() and is_at(source, file)):
                    raise NotNow(Outcome.CHANGED)
                entry = batch.adopt(temporary, path)
                self._gate.took(file.facts.st_size)
                return entry
            finally:
                temporary.unlink(missing_ok=True)

    def _same_as_published(self, batch: BatchWriter, source: Path, path: str) -> EntryName:
        entry = EntryName(batch.name, path)
        try:
            same = durable.sha256_of(entry.where(self._layout)) == durable.sha256_of(source)
        except FileNotFoundError:
            raise NotNow(Outcome.CHANGED) from None  # it was filed this moment: look again
        if not same:
            raise FileExistsError(errno.EEXIST, "another file is published as this one", path)
        return entry

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path)


def _entry_of(claim: str) -> str:
    """Return the path that a claim stands for."""
    folder, name = os.path.split(claim)
    known = read_claim(name)
    return os.path.join(folder, known.name) if known else claim
