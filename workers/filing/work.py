"""One entry on its way from the spool into the tree: what is known of it, what became of it."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from config.logs import get_logger
from config.tables.intake import SourcePolicy
from workers import clock, durable
from workers.errors import Identifiable
from workers.filing import quarantine
from workers.filing.examining import Instance
from workers.filing.labels import Labels
from workers.filing.placing import Place
from workers.filing.rows import ArrivalRow, KnownInstance
from workers.header.read import announced_uid
from workers.spool.batches import BatchSource, EntryName

log = get_logger(__name__)


@dataclass(slots=True)
class Work:
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
    received_at: str = ""
    """When it came into the spool: linking it into the tree will change its st_ctime."""
    policy: SourcePolicy = field(default_factory=SourcePolicy.nowhere)
    labels: Labels = field(default_factory=Labels)
    received: str = ""
    """Keyed digest of the data set as it was received, where it was de-identified."""
    identifier: str = field(init=False)

    def __post_init__(self) -> None:
        self.identifier = self.entry.identifier
        self.received_at = clock.utc_of(os.fstat(self.file.fileno()).st_ctime)

    @property
    def instance(self) -> Instance:
        if self.found is None:
            raise LookupError("this entry was not examined yet, or is no instance")
        return self.found

    @property
    def uid(self) -> str:
        return self.instance.facts.sop_instance_uid

    @property
    def study_uid(self) -> str:
        return self.instance.facts.study_instance_uid

    @property
    def home(self) -> tuple[str, ...]:
        """What decides its folder: equal for all instances that go there together."""
        facts = self.instance.facts
        return (
            facts.study_instance_uid,
            facts.series_instance_uid,
            facts.patient_id,
            facts.accession_number,
            self.policy.patient_id_prefix,
        )

    @property
    def names_somebody(self) -> bool:
        """Tell whether it is to be de-identified, and was not yet: nothing of it is told."""
        return self.policy.deidentify != "off" and not self.received

    def becomes(self, outcome: str, *, code: str | None = None, reason: str | None = None) -> None:
        """Say what became of the entry; the row is committed with its batch."""
        found = self.found
        self.row = ArrivalRow(
            entry=self.identifier,
            outcome=outcome,
            source=self.source.key,
            at=clock.utc_now(),
            received_at=self.received_at,
            size=found.size if found else os.fstat(self.file.fileno()).st_size,
            instance_uid=self._told_uid(),
            dataset_sha256=self.received or (found.digests.dataset if found else None),
            code=code,
            reason=reason,
        )

    def _told_uid(self) -> str | None:
        if self.names_somebody:
            return None
        return self.found.facts.sop_instance_uid if self.found else announced_uid(self.file)


def lock_entry(path: Path) -> BinaryIO | None:
    """Open and lock an entry; None when it is busy, gone, or no file."""
    try:
        descriptor = durable.no_follow(os.fspath(path), os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return None
        raise
    taken = False
    try:
        taken = durable.try_lock(descriptor) and _is_still(descriptor, path)
    finally:
        if not taken:
            os.close(descriptor)
    # unbuffered: who reads it does so in large pieces
    return open(descriptor, "rb", buffering=0) if taken else None


def _is_still(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is a regular one, and still what its name stands for."""
    facts = os.fstat(descriptor)
    try:
        return stat.S_ISREG(facts.st_mode) and os.path.samestat(facts, os.stat(path))
    except FileNotFoundError:
        return False  # unlinked between open and lock: another worker is done with it


def quarantine_work(
    place: Path,
    work: Work,
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
        received=work.received,
    )
    quarantine.set_aside(place, work.path, words)
    if work.names_somebody and code != Identifiable.code:
        reason = f"{code}: in words beside the file in quarantine, for they may name somebody"
    work.becomes(outcome, code=code, reason=reason)
    log.warning("quarantined", entry=work.identifier, outcome=outcome, code=code)
