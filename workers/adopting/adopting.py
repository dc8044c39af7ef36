"""Take one folder of a delivery into the index, in one transaction, touching no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers import clock
from workers.adopting.origins import ADOPTED, Origin
from workers.adopting.reading import ReadFile
from workers.adopting.walking import Finding, FindingCode, FoundFile, Leaf
from workers.errors import DataError
from workers.filing import names
from workers.filing.placing import Place, place_adopted
from workers.filing.rows import (
    KnownInstance,
    insert_event,
    instance_values,
    known_instances,
)
from workers.header.facts import InstanceFacts
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, series

_UIDS_A_QUERY = 500


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that the index has in a folder."""

    id: int
    size: int
    mtime_ns: int | None

    def is_unchanged(self, file: FoundFile) -> bool:
        """Tell whether the file need not be opened again."""
        return (self.size, self.mtime_ns) == (file.size, file.mtime_ns)


@dataclass(slots=True)
class Adoption:
    """What became of the files of one folder."""

    adopted: int = 0
    findings: list[Finding] = field(default_factory=list)


def known_files(index: MetadataIndex, leaf: Leaf) -> dict[str, KnownFile]:
    """Return what the index has in a folder, by file name."""
    with index.read() as connection:
        rows = connection.execute(
            sa.select(instance.c.id, instance.c.file_name, instance.c.size, instance.c.mtime_ns)
            .join(folder, folder.c.id == instance.c.folder_id)
            .where(folder.c.home == leaf.home, folder.c.digits == leaf.digits)
        )
        return {row.file_name: KnownFile(row.id, row.size, row.mtime_ns) for row in rows}


def adopt_folder(
    index: MetadataIndex,
    archive: Path,
    leaf: Leaf,
    found: Sequence[ReadFile],
    origins: dict[tuple[str, str], Origin],
) -> Adoption:
    """Commit what was read in one folder; `origins` is of each (study, series), from the journal.

    Headers say what an instance is, the folder says where it lies. Runs again with the same result.
    """
    done = Adoption()
    with index.write() as connection:
        known = _known(connection, found)
        places: dict[tuple[str, str], Place | DataError] = {}
        counts: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        at = clock.utc_now()
        for one in found:
            facts = one.instance.facts
            path = f"{leaf.path}/{one.file.name}"
            before = known.get(facts.sop_instance_uid)
            if before is not None:
                _meet(connection, archive, leaf, one, before, done)
                continue
            if any(row["instance_uid"] == facts.sop_instance_uid for row in rows):
                words = "the same SOPInstanceUID twice in this folder"
                done.findings.append(Finding(FindingCode.DUPLICATE, path, words))
                continue
            place = _place(connection, leaf, facts, origins, places, at)
            if isinstance(place, DataError):
                done.findings.append(Finding(FindingCode.NOT_ADOPTED, path, str(place)))
                continue
            rows.append(
                instance_values(one.instance, place, one.file.name, at, one.columns)
                | {"mtime_ns": one.file.mtime_ns}
            )
            counts[place.series_id] = counts.get(place.series_id, 0) + 1
        if rows:
            connection.execute(instance.insert(), rows)
        for place in places.values():
            if isinstance(place, Place):
                _count(connection, place, counts.get(place.series_id, 0), at)
    done.adopted = len(rows)
    done.findings += _disagreements(leaf, found)
    return done


def _known(connection: Connection, found: Sequence[ReadFile]) -> dict[str, KnownInstance]:
    uids = [one.instance.facts.sop_instance_uid for one in found]
    known: dict[str, KnownInstance] = {}
    for at in range(0, len(uids), _UIDS_A_QUERY):
        known |= known_instances(connection, uids[at : at + _UIDS_A_QUERY])
    return known


def _place(
    connection: Connection,
    leaf: Leaf,
    facts: InstanceFacts,
    origins: dict[tuple[str, str], Origin],
    places: dict[tuple[str, str], Place | DataError],
    at: str,
) -> Place | DataError:
    key = (facts.study_instance_uid, facts.series_instance_uid)
    if key not in places:
        origin = origins.get(key, Origin())
        try:
            places[key], _ = place_adopted(
                connection,
                facts,
                leaf.home,
                leaf.digits,
                source=origin.source,
                at=at,
                labels=origin.labels,
            )
        except DataError as error:
            places[key] = error
    return places[key]


def _count(connection: Connection, place: Place, count: int, at: str) -> None:
    if not count:
        return
    connection.execute(
        series.update()
        .where(series.c.id == place.series_id)
        .values(
            instances=series.c.instances + count,
            last_boot=ADOPTED,
            last_monotonic=0.0,
            quiet=False,
            state="receiving",
            last_at=at,
        )
    )
    insert_event(connection, ADOPTED, at, study_id=place.study_id, series_id=place.series_id,
                 source=ADOPTED, instances=count)  # fmt: skip


def _meet(
    connection: Connection,
    archive: Path,
    leaf: Leaf,
    one: ReadFile,
    before: KnownInstance,
    done: Adoption,
) -> None:
    """An instance that the index has: this file itself, a copy of it, or another one."""
    path = f"{leaf.path}/{one.file.name}"
    digests = one.instance.digests
    if str(before.path) != path and (archive / before.path).is_file():
        if digests.dataset == before.digests.dataset:
            code, words = FindingCode.DUPLICATE, f"equal to {before.path}"
        else:
            code, words = FindingCode.CONFLICT, f"another instance of its UID is {before.path}"
        done.findings.append(Finding(code, path, words))
        return
    values: dict[str, Any] = {"size": one.file.size, "mtime_ns": one.file.mtime_ns}
    facts = one.instance.facts
    if digests.file != before.digests.file:
        if not _is_adopted(connection, before):
            words = "other bytes than were filed: see `petct-ingest check --checksums`"
            done.findings.append(Finding(FindingCode.CHANGED, path, words))
            return
        if not before.is_home_of(facts):
            words = "its header now names another patient, study or series: index it anew"
            done.findings.append(Finding(FindingCode.CONFLICT, path, words))
            return
        done.findings.append(Finding(FindingCode.CHANGED, path, "other bytes than before"))
        values |= {"sha256": digests.file, "dataset_sha256": digests.dataset}
        values |= one.columns
        connection.execute(
            series.update()
            .where(series.c.id == before.series_id)
            .values(last_boot=ADOPTED, quiet=False, state="receiving")
        )
        insert_event(connection, "changed", clock.utc_now(), study_id=before.study_id,
                     series_id=before.series_id, source=ADOPTED)  # fmt: skip
    if str(before.path) != path:  # moved within the archive
        place, _ = place_adopted(
            connection, facts, leaf.home, leaf.digits, source=ADOPTED, at=clock.utc_now()
        )
        values |= {"folder_id": place.folder_id, "file_name": one.file.name}
    connection.execute(instance.update().where(instance.c.id == before.id).values(values))


def _is_adopted(connection: Connection, known: KnownInstance) -> bool:
    """Tell whether a file is a delivery's own: what we filed ourselves has its digest for good."""
    found = connection.execute(
        sa.select(folder.c.adopted)
        .join(instance, instance.c.folder_id == folder.c.id)
        .where(instance.c.id == known.id)
    )
    return bool(found.scalar())


def _disagreements(leaf: Leaf, found: Sequence[ReadFile]) -> list[Finding]:
    """Name the folder once where its headers would call it otherwise."""
    for one in found:
        facts = one.instance.facts
        patient = names.patient_name(facts.patient_id, facts.study_instance_uid)
        accession = names.accession_name(facts.accession_number, facts.study_instance_uid)
        folders = leaf.home.split("/")
        wrong = [
            keyword
            for keyword, name, named in zip(
                ("PatientID", "AccessionNumber"), folders, (patient, accession), strict=True
            )
            if name not in (named.name, names.with_suffix(named))
        ]
        if wrong:
            words = f"{' and '.join(wrong)} of the header differ from the folder's name"
            return [Finding(FindingCode.HEADERS_DISAGREE, leaf.path, words)]
    return []
