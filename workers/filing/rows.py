"""The rows that filing writes: instances, arrivals, events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.filing.examining import Digests, Instance
from workers.filing.placing import Place
from workers.header.facts import InstanceFacts
from workers.index.inserting import insert_new_rows
from workers.index.tables import arrival, event, folder, instance, series, study

DEFAULT_SUBSERIES = "1"
"""Stands for an absent AcquisitionNumber in the metadata dictionary."""


@dataclass(frozen=True, slots=True)
class KnownInstance:
    """A committed instance with a SOPInstanceUID that came again."""

    id: int
    study: str
    series: str
    study_id: int
    series_id: int
    path: PurePosixPath
    """Relative to the archive."""
    digests: Digests
    transfer_syntax_uid: str
    facts_json: str

    def is_home_of(self, facts: InstanceFacts) -> bool:
        """Tell whether another instance of this UID would be filed in the same folder."""
        mine = InstanceFacts.from_json(self.facts_json)
        return (self.study, self.series, mine.patient_id, mine.accession_number) == (
            facts.study_instance_uid,
            facts.series_instance_uid,
            facts.patient_id,
            facts.accession_number,
        )


@dataclass(frozen=True, slots=True)
class ArrivalRow:
    """What became of one entry."""

    entry: str
    outcome: str
    source: str
    at: str
    received_at: str | None = None
    size: int = 0
    instance_uid: str | None = None
    dataset_sha256: str | None = None
    code: str | None = None
    reason: str | None = None


_values_of = attrgetter(*ArrivalRow.__dataclass_fields__)


def known_arrivals(connection: Connection, entries: Sequence[str]) -> set[str]:
    """Return which of these entries are done already."""
    return set(connection.execute(_arrivals_of(), {"entries": list(entries)}).scalars())


@cache
def _arrivals_of() -> sa.Select[Any]:
    wanted: sa.BindParameter[Any] = sa.bindparam("entries", expanding=True)
    return sa.select(arrival.c.entry).where(arrival.c.entry.in_(wanted))


def known_instances(connection: Connection, wanted: Iterable[str]) -> dict[str, KnownInstance]:
    """Look up instances by SOPInstanceUID."""
    found: Any = connection.execute(_instances_of(), {"wanted": list(wanted)})
    return {
        row.instance_uid: KnownInstance(
            id=row.id,
            study=row.study,
            series=row.series,
            study_id=row.study_id,
            series_id=row.series_id,
            path=PurePosixPath(row.home, "studies", row.digits, row.file_name),
            digests=Digests(row.sha256, row.dataset_sha256),
            transfer_syntax_uid=row.transfer_syntax_uid,
            facts_json=row.facts,
        )
        for row in found
    }


@cache
def _instances_of() -> sa.Select[Any]:
    wanted: sa.BindParameter[Any] = sa.bindparam("wanted", expanding=True)
    return (
        sa.select(instance, series.c.series, series.c.study_id, study.c.study, folder.c.home,
                  folder.c.digits)
        .join(series, series.c.id == instance.c.series_id)
        .join(study, study.c.id == series.c.study_id)
        .join(folder, folder.c.id == instance.c.folder_id)
        .where(instance.c.instance_uid.in_(wanted))
    )  # fmt: skip


def study_ids(connection: Connection, wanted: Iterable[str]) -> dict[str, int]:
    """Look up studies by StudyInstanceUID."""
    found = connection.execute(
        sa.select(study.c.study, study.c.id).where(study.c.study.in_(list(wanted)))
    )
    return {row.study: row.id for row in found}


def folders_of(connection: Connection, study_uid: str, series_uid: str) -> list[PurePosixPath]:
    """Return every folder that filing ever gave a series, relative to the archive."""
    found = connection.execute(
        sa.select(folder.c.home, folder.c.digits)
        .join(series, series.c.id == folder.c.series_id)
        .join(study, study.c.id == series.c.study_id)
        .where(series.c.series == series_uid, study.c.study == study_uid, ~folder.c.adopted)
    )
    return [PurePosixPath(row.home, "studies", row.digits) for row in found]


def folders_in_use(connection: Connection, folder_ids: Sequence[int]) -> set[int]:
    """Return which of these folders hold a committed instance."""
    return {one for one in folder_ids if connection.execute(_one_inside(), {"folder": one}).first()}


@cache
def _one_inside() -> sa.Select[Any]:
    return sa.select(instance.c.id).where(instance.c.folder_id == sa.bindparam("folder")).limit(1)


def instance_values(
    found: Instance, place: Place, file_name: str, at: str, columns: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the columns of an instance, every dictionary column among them.

    `columns` are those of the header, where somebody made them already.
    """
    facts = found.facts
    return {
        "series_id": place.series_id,
        "folder_id": place.folder_id,
        "instance_uid": facts.sop_instance_uid,
        "file_name": file_name,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "sha256": found.digests.file,
        "dataset_sha256": found.digests.dataset,
        "filed_at": at,
        **(header_columns(facts) if columns is None else columns),
    }


def header_columns(facts: InstanceFacts) -> dict[str, Any]:
    """Return the columns that come from the header."""
    orientation = facts.image_orientation_patient
    number = facts.acquisition_number
    return {
        "sop_class_uid": facts.sop_class_uid,
        "transfer_syntax_uid": facts.transfer_syntax_uid,
        "subseries": DEFAULT_SUBSERIES if number is None else str(number),
        "instance_number": facts.instance_number,
        "orientation": "\\".join(f"{value:g}" for value in orientation) if orientation else None,
        "orientation_type": facts.anatomical_orientation_type,
        "reference_ct": facts.reference_ct,
        "reference_rs": facts.reference_rs,
        "reference_pl": facts.reference_pl,
        "reference_frame": facts.reference_frame,
        "MR_repetition_time": facts.repetition_time,
        "MR_echo_time": facts.echo_time,
        "MR_scan_sequence": "\\".join(facts.scanning_sequence) or None,
        "MR_magnetic_field_strength": facts.magnetic_field_strength,
        "MR_imaged_nucleus": facts.imaged_nucleus,
        "facts": facts.to_json(),
    }


def insert_arrivals(connection: Connection, rows: Sequence[ArrivalRow], host: str) -> None:
    """Insert what became of entries, each once; `host` has them, "" where hosts have no names."""
    names = (*ArrivalRow.__dataclass_fields__, "host")
    values = [dict(zip(names, (*_values_of(row), host or None), strict=True)) for row in rows]
    insert_new_rows(connection, arrival, values, arrival.c.entry)


def insert_event(
    connection: Connection,
    kind: str,
    at: str,
    *,
    study_id: int | None = None,
    series_id: int | None = None,
    source: str | None = None,
    entry: str | None = None,
    **details: Any,
) -> None:
    """Append one line to the audit."""
    values = {
        "at": at,
        "kind": kind,
        "study_id": study_id,
        "series_id": series_id,
        "source": source,
        "entry": entry,
        "details": json.dumps(details, default=str),
    }
    connection.execute(event.insert(), values)
