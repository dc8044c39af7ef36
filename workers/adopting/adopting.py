"""Take folders of a delivery into the index, in one transaction, touching no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers import clock
from workers.adopting.origins import ADOPTED, Origin
from workers.adopting.reading import ReadFile
from workers.adopting.walking import Finding, FindingCode, Leaf
from workers.errors import DataError
from workers.filing import names
from workers.filing.examining import Digests
from workers.filing.placing import Place, place_adopted
from workers.filing.rows import (
    KnownInstance,
    insert_event,
    instance_values,
    known_instances,
)
from workers.header.facts import InstanceFacts
from workers.index.engine import MetadataIndex
from workers.index.inserting import insert_new_rows
from workers.index.tables import folder, instance, series

_UIDS_A_QUERY = 500


@dataclass(slots=True)
class Adoption:
    """What became of the files of some folders."""

    adopted: int = 0
    findings: list[Finding] = field(default_factory=list)

    def tell(self, code: FindingCode, path: str, words: str) -> None:
        self.findings.append(Finding(code, path, words))


def adopt_folders(
    index: MetadataIndex,
    archive: Path,
    folders: Sequence[tuple[Leaf, Sequence[ReadFile]]],
    origins: dict[tuple[str, str], Origin],
    prefixes: Collection[str] = (),
) -> Adoption:
    """Commit what was read in whole folders; `origins` is of each (study, series), of the journal.

    `prefixes` are those that sources put before PatientIDs: a patient's folder that has one was
    named by us. Headers say what an instance is, the folder says where it lies. Runs again with the
    same result.
    """
    done = Adoption()
    with index.write() as connection:
        known = _known(connection, [one for _, found in folders for one in found])
        new: dict[str, ReadFile] = {}
        rows: list[dict[str, Any]] = []
        series_of: dict[str, tuple[int, int]] = {}
        at = clock.utc_now()
        for leaf, found in folders:
            places: dict[tuple[str, str], Place | DataError] = {}
            for one in found:
                facts = one.instance.facts
                before = known.get(facts.sop_instance_uid)
                if before is not None:
                    _meet(connection, archive, leaf, one, before, done, prefixes)
                    continue
                if facts.sop_instance_uid in new:
                    earlier = new[facts.sop_instance_uid]
                    _tell_copy(done, one, earlier.path, earlier.instance.digests)
                    continue
                place = _place(connection, leaf, facts, origins, prefixes, places, at)
                if isinstance(place, DataError):
                    done.tell(FindingCode.NOT_ADOPTED, one.path, str(place))
                    continue
                new[facts.sop_instance_uid] = one
                rows.append(instance_values(one.instance, place, one.file.name, at, one.columns))
                series_of[facts.sop_instance_uid] = place.study_id, place.series_id
            done.findings += _disagreements(leaf, found, prefixes)
        inserted = insert_new_rows(connection, instance, rows, instance.c.instance_uid)
        # on PostgreSQL another reindex may have been faster with some
        counts = Counter(series_of[uid] for uid in inserted)
        for (study_id, series_id), count in counts.items():
            _count(connection, study_id, series_id, count, at)
    done.adopted = len(inserted)
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
    prefixes: Collection[str],
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
                prefix=_prefix_of(leaf, facts, prefixes),
                source=origin.source,
                at=at,
                labels=origin.labels,
            )
        except DataError as error:
            places[key] = error
    return places[key]


def _count(connection: Connection, study_id: int, series_id: int, count: int, at: str) -> None:
    connection.execute(
        series.update()
        .where(series.c.id == series_id)
        .values(
            instances=series.c.instances + count,
            last_boot=ADOPTED,
            last_monotonic=0.0,
            quiet=False,
            state="receiving",
            last_at=at,
        )
    )
    insert_event(connection, ADOPTED, at, study_id=study_id, series_id=series_id,
                 source=ADOPTED, instances=count)  # fmt: skip


def _tell_copy(done: Adoption, one: ReadFile, earlier: str, digests: Digests) -> None:
    if one.instance.digests.dataset == digests.dataset:
        done.tell(FindingCode.DUPLICATE, one.path, f"equal to {earlier}")
    else:
        done.tell(FindingCode.CONFLICT, one.path, f"another instance of its UID is {earlier}")


def _meet(
    connection: Connection,
    archive: Path,
    leaf: Leaf,
    one: ReadFile,
    before: KnownInstance,
    done: Adoption,
    prefixes: Collection[str],
) -> None:
    """An instance that the index has: this file itself, a copy of it, or another one."""
    digests = one.instance.digests
    if str(before.path) != one.path and (archive / before.path).is_file():
        _tell_copy(done, one, str(before.path), before.digests)
        return
    values: dict[str, Any] = {"size": one.instance.size, "mtime_ns": one.instance.mtime_ns}
    facts = one.instance.facts
    if digests.file != before.digests.file:
        if not _is_adopted(connection, before):
            words = "other bytes than were filed: see `petct-ingest check --checksums`"
            done.tell(FindingCode.CHANGED, one.path, words)
            return
        if not before.is_home_of(facts):
            words = "its header now names another patient, study or series: index it anew"
            done.tell(FindingCode.CONFLICT, one.path, words)
            return
        done.tell(FindingCode.CHANGED, one.path, "other bytes than before")
        values |= {"sha256": digests.file, "dataset_sha256": digests.dataset}
        values |= one.columns
        connection.execute(
            series.update()
            .where(series.c.id == before.series_id)
            .values(last_boot=ADOPTED, quiet=False, state="receiving")
        )
        insert_event(connection, "changed", clock.utc_now(), study_id=before.study_id,
                     series_id=before.series_id, source=ADOPTED)  # fmt: skip
    if str(before.path) != one.path:  # moved within the archive
        place, _ = place_adopted(
            connection, facts, leaf.home, leaf.digits, prefix=_prefix_of(leaf, facts, prefixes),
            source=ADOPTED, at=clock.utc_now(),
        )  # fmt: skip
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


def _prefix_of(leaf: Leaf, facts: InstanceFacts, prefixes: Collection[str]) -> str:
    """Return the prefix that a folder's name has before its PatientID, "" where it has none."""
    folder_name = leaf.home.partition("/")[0]
    for prefix in ("", *prefixes):
        patient = names.patient_name(facts.patient_id, facts.study_instance_uid, prefix)
        if folder_name in (patient.name, names.with_suffix(patient)):
            return prefix
    return ""


def _disagreements(
    leaf: Leaf, found: Sequence[ReadFile], prefixes: Collection[str]
) -> list[Finding]:
    """Name the folder once where its headers would call it otherwise."""
    for one in found:
        facts = one.instance.facts
        prefix = _prefix_of(leaf, facts, prefixes)
        patient = names.patient_name(facts.patient_id, facts.study_instance_uid, prefix)
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
