"""Hand files of the tree that no row knows to filing, through the spool: the one way of writing
rows.

The entry is a second name of the file (a copy where spool and tree lie on two file systems). Filing
finds its final name taken by the same bytes, and adopts them. Killed in between, the entry waits in
the spool, and filing or the next check ends it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from config.settings import Settings
from workers import clock, durable
from workers.checking.rows import instances_by_uid
from workers.checking.scene import Scene
from workers.checking.walking import series_folder
from workers.errors import DataError
from workers.filing.placing import place_instance
from workers.header.facts import InstanceFacts
from workers.index.engine import MetadataIndex
from workers.spool.batches import BatchSource, BatchWriter, EntryName


@dataclass(frozen=True, slots=True)
class Stray:
    """A file of the tree without a row."""

    path: str
    facts: InstanceFacts | None
    why: str = ""
    """Why it cannot be read."""


def hand_to_filing(scene: Scene, strays: Sequence[Stray]) -> list[tuple[Stray, str | None]]:
    """File what lies where it belongs; return each with None, or in words why it was left."""
    if not strays:
        return []
    from workers.jobs import Workplace, file_now  # RQ loads only where something is mended

    said: list[tuple[Stray, str | None]] = []
    by_source: dict[BatchSource, list[Stray]] = {}
    for stray in strays:
        source = _source_for(scene, stray)
        if source is None:
            words = "filing would put it elsewhere: the index does not know this patient's folder"
            said.append((stray, words))
        else:
            by_source.setdefault(source, []).append(stray)
    place = Workplace(scene.settings)
    try:
        for source, some in by_source.items():
            file_now(place, _lay_into_spool(scene, source, some))
            said += [(stray, _why_not(scene, stray)) for stray in some]
    finally:
        place.close()
    return said


def _lay_into_spool(scene: Scene, source: BatchSource, strays: Sequence[Stray]) -> list[EntryName]:
    layout, entries = scene.layout, []
    with BatchWriter(layout, source) as batch:
        for number, stray in enumerate(strays):
            file = layout.archive / stray.path
            temporary = layout.incoming / f"check-{secrets.token_hex(8)}"
            try:
                os.link(file, temporary, follow_symlinks=False)
            except OSError as error:
                if error.errno not in durable.NO_LINK_ERRORS:
                    raise
                durable.copy_new(file, temporary, layout.file_mode)
            entries.append(batch.adopt(temporary, f"{number}/{os.path.basename(stray.path)}"))
    return entries


def _why_not(scene: Scene, stray: Stray) -> str | None:
    uid = _facts(stray).sop_instance_uid
    row = instances_by_uid(scene.index, [uid]).get(uid)
    if row is None:
        return "filing did not take it: see `petct-ingest quarantine`, or it waits in the spool"
    return None if row.path == stray.path else f"it was filed as {row.path}"


def _source_for(scene: Scene, stray: Stray) -> BatchSource | None:
    """Return a source under which filing puts this file where it lies, None where none does.

    Where it once came from is not known; what a source decides is the prefix of the PatientID.
    """
    place = series_folder(os.path.dirname(stray.path))
    if place is None:
        return None
    wanted = os.path.dirname(stray.path)
    for source in _sources(scene.settings):
        policy = scene.settings.policy(
            calling_ae=source.calling_ae,
            called_ae=source.called_ae,
            address=source.address,
            folder=source.folder,
        )
        prefix = policy.patient_id_prefix
        if policy.deidentify != "off":
            continue  # what lies in the tree was de-identified once, and never is again
        if _folder_of(scene.index, _facts(stray), prefix, source.key) == wanted:
            return source
    return None


def _sources(settings: Settings) -> list[BatchSource]:
    archive = os.fspath(settings.layout.archive)
    plain = BatchSource(kind="folder", folder=archive)
    root = settings.root.absolute()
    return [
        plain,
        *(
            BatchSource(
                kind="folder",
                calling_ae=policy.calling_ae or "",
                called_ae=policy.called_ae or "",
                address=policy.address or "",
                folder=os.fspath(root / policy.folder) if policy.folder else archive,
            )
            for policy in settings.sources
            if policy.patient_id_prefix
        ),
    ]


def _folder_of(index: MetadataIndex, facts: InstanceFacts, prefix: str, source: str) -> str | None:
    """Ask filing where it would put an instance; nothing of what it writes is kept."""
    with index.engine.connect().execution_options(writes=True) as connection:
        transaction = connection.begin()
        try:
            place, _ = place_instance(
                connection, facts, prefix=prefix, source=source, at=clock.utc_now()
            )
        except DataError:
            return None
        finally:
            transaction.rollback()
    return place.folder


def _facts(stray: Stray) -> InstanceFacts:
    if stray.facts is None:
        raise LookupError("a file that cannot be read is never handed over")
    return stray.facts
