"""Expand archives that lie in the spool into batches of their members.

An archive is an entry like any other until the last of its members is durable in the spool; only
then its arrival is committed and it goes: away when every member could be read, else to quarantine
with what could not. The batch is named after the entry, and every member keeps its path, so that
an expansion which was killed is taken up again and nothing counts twice. Members are filed by the
workers while the rest is still being read, which waits for them (ahead.py).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config.logs import get_logger
from config.settings import Settings
from workers import clock, durable
from workers.archives.members import Finding
from workers.archives.opening import kind_by_bytes, kind_by_name, open_archive
from workers.errors import DataError, StoreUnavailable
from workers.filing.ahead import Ahead
from workers.filing.provenance import provenance_of
from workers.filing.rows import insert_arrivals, insert_event, known_arrivals
from workers.filing.work import Work, lock_entry, quarantine_work
from workers.identity import check_identity
from workers.index.engine import MetadataIndex
from workers.spool.batches import (
    BatchSource,
    BatchWriter,
    EntryName,
    remove_if_empty,
    waiting_entries,
)

CODE = "archive"
"""Code of an archive in quarantine: something in it could not be read."""

_HEAD_BYTES = 512
_PAUSE_SECONDS = 0.2
_FINDINGS_TOLD = 20
_FINDINGS_KEPT = 1000

log = get_logger(__name__)


@dataclass(slots=True)
class Expansion:
    """What came out of one archive."""

    batch: str
    members: int = 0
    lost: int = 0
    """Members that could not be read."""
    findings: list[Finding] = field(default_factory=list)
    """The first ones: a tar may hold a million links."""

    def note(self, finding: Finding) -> None:
        self.lost += finding.loses
        if len(self.findings) < _FINDINGS_KEPT:
            self.findings.append(finding)

    @property
    def is_whole(self) -> bool:
        """Whether every member could be read."""
        return not self.lost


@dataclass(frozen=True, slots=True)
class _Intake:
    """Whoever takes the members."""

    index: MetadataIndex
    refusal: Callable[[], str | None]
    offer: Callable[[EntryName], None]
    pause: Callable[[], object]
    ahead: Ahead

    def wait(self) -> None:
        """Return as soon as a member may come. Raises StoreUnavailable."""
        while True:
            if reason := self.refusal():
                raise StoreUnavailable(f"an archive waits to be expanded: {reason}")
            if not self.ahead.is_too_far():
                return
            self.pause()

    def took(self, batch: BatchWriter, path: str) -> bool:
        """Tell whether a member came before a kill or a refusal: it waits still, or is filed."""
        name = EntryName(batch.name, path)
        if batch.has(path):  # perhaps not durable yet
            durable.fsync_folder((batch.folder / path).parent)
            self.ahead.add(name)
            return True
        with self.index.read() as connection:
            return bool(known_arrivals(connection, [name.identifier]))


def is_archive(entry: EntryName, path: Path) -> bool:
    """Tell whether an entry is an archive: by its name and by its first bytes."""
    if kind_by_name(entry.path) is None:
        return False
    try:
        with open(path, "rb", opener=durable.no_follow) as file:
            return kind_by_bytes(file.read(_HEAD_BYTES)) is not None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return False  # gone, or no file: whoever locks it says so
        raise


def waiting_archives(settings: Settings) -> Iterator[EntryName]:
    """Yield the archives that wait in the spool."""
    for entry in waiting_entries(settings.layout):
        if is_archive(entry, entry.where(settings.layout)):
            yield entry


def expand_entry(
    index: MetadataIndex,
    settings: Settings,
    entry: EntryName,
    refusal: Callable[[], str | None] = lambda: None,
    offer: Callable[[EntryName], None] = lambda entry: None,
    pause: Callable[[], object] = lambda: time.sleep(_PAUSE_SECONDS),
    ahead: Ahead | None = None,
) -> Expansion | None:
    """Expand one archive and let it go; None when it is busy or gone.

    `refusal` says before each member why the spool takes nothing now, or None; `offer` is told each
    member as soon as it is durable; `pause` is called while filing has not kept up (`ahead`).
    Raises StoreUnavailable when the spool is another one or takes nothing, OSError as the system
    gives it. Running again goes on.
    """
    layout = settings.layout
    check_identity(layout.spool, index.identities().spool, "spool")
    path = entry.where(layout)
    file = lock_entry(path)
    if file is None:
        return None
    with file:
        with index.read() as connection:
            done = known_arrivals(connection, [entry.identifier])
        found = Expansion(_batch_name(entry))
        if not done:
            source, policy = provenance_of(settings, entry.batch)
            intake = _Intake(index, refusal, offer, pause, ahead or Ahead(layout))
            _expand(settings, entry, path, source, found, intake)
            _commit(index, settings, Work(entry, path, file, source, policy=policy), found)
        path.unlink(missing_ok=True)
        remove_if_empty(layout, entry.batch)
    log.info("archive-expanded", entry=entry.identifier, members=found.members,
             findings=len(found.findings))  # fmt: skip
    return found


def _expand(
    settings: Settings,
    entry: EntryName,
    path: Path,
    source: BatchSource,
    found: Expansion,
    intake: _Intake,
) -> None:
    layout = settings.layout
    inside = BatchSource(
        kind="archive",
        calling_ae=source.calling_ae,
        called_ae=source.called_ae,
        address=source.address,
        folder=source.folder,
        archive=entry.path,
    )
    temporary = layout.incoming / f"expand-{entry.identifier}"
    members = open_archive(path, scratch=layout.incoming)
    again = True
    with BatchWriter(layout, inside, name=found.batch) as batch:
        for one in members:
            if isinstance(one, Finding):
                found.note(one)
                continue
            intake.wait()
            place = f"{entry.path}/{one.path}"
            found.members += 1
            if again and intake.took(batch, place):
                continue
            temporary.unlink(missing_ok=True)
            try:
                durable.write_new(temporary, one.stream.chunks(), layout.file_mode)
            except DataError as error:
                found.members -= 1
                found.note(Finding(one.name, error.code, str(error)))
                continue
            again = False  # members are published in order: none behind this one ever was
            member = batch.adopt(temporary, place)
            intake.ahead.add(member)
            intake.offer(member)


def _commit(index: MetadataIndex, settings: Settings, work: Work, found: Expansion) -> None:
    if found.is_whole:
        work.becomes("expanded", reason=f"{found.members} members")
    else:
        quarantine_work(settings.layout.quarantine, work, "quarantined", CODE, _words(found))
    with index.write() as connection:
        done = [work.row] if work.row is not None else []
        insert_arrivals(connection, done, index.spool)
        insert_event(
            connection,
            "expanded",
            clock.utc_now(),
            source=work.source.key,
            entry=work.identifier,
            members=found.members,
            unreadable=found.lost,
        )


def _words(found: Expansion) -> str:
    lost = [finding for finding in found.findings if finding.loses]
    told = [
        f"{finding.name or 'the archive'}: {finding.words}" for finding in lost[:_FINDINGS_TOLD]
    ]
    more = f"; and {found.lost - len(told)} more" if found.lost > len(told) else ""
    words = f"{found.members} members were taken; not read: " + "; ".join(told) + more
    return words.encode("utf-8", "backslashreplace").decode()  # a tar's names may be any bytes


def _batch_name(entry: EntryName) -> str:
    """Name the batch of the members: always the same for an entry, and sorted beside it."""
    return f"a{entry.batch[1:14]}-{entry.identifier[:16]}"
