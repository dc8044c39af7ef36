"""What the index knows of a study, gathered for the decisions."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.header.facts import InstanceFacts
from workers.index.tables import instance, series, study

_IMAGING = ("PT", "CT")
_REMEMBERED = 2900
_LONGEST_REMEMBERED = 8192

ReadFacts = Callable[[str], InstanceFacts]


class FactsMemory:
    """Read facts, and remember the last ones by a digest of their text.

    A series that grows is judged again and again, and most of its instances were read before, or
    filed by this very process.
    """

    def __init__(self) -> None:
        self._facts: OrderedDict[bytes, InstanceFacts] = OrderedDict()

    def __call__(self, text: str) -> InstanceFacts:
        key = _digest(text)
        facts = self._facts.get(key)
        if facts is None:
            facts = InstanceFacts.from_json(text)
            self._keep(key, text, facts)
        else:
            self._facts.move_to_end(key)
        return facts

    def remember(self, text: str, facts: InstanceFacts) -> None:
        """Remember facts that were written, so that they need not be read."""
        self._keep(_digest(text), text, facts)

    def _keep(self, key: bytes, text: str, facts: InstanceFacts) -> None:
        if len(text) > _LONGEST_REMEMBERED:  # of many frames
            return
        self._facts[key] = facts
        if len(self._facts) > _REMEMBERED:
            self._facts.popitem(last=False)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A series as the index has it."""

    id: int
    study_id: int
    uid: str
    study_uid: str
    modality: str
    instances: int
    quiet: bool
    state: str
    role: str | None

    @property
    def version(self) -> tuple[int, int, bool]:
        """Changes whenever a verdict on this series may change."""
        return (self.id, self.instances, self.quiet)


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as the index has it."""

    id: int
    uid: str
    patient_id: str
    two_patients: bool


@dataclass(frozen=True, slots=True)
class StudyEvidence:
    """A snapshot of all that a study's pair depends on."""

    study: StudyRow
    series: tuple[SeriesRow, ...]
    elsewhere: tuple[SeriesRow, ...]
    """CT series of the patient's other studies that share a frame of reference with a PET here."""
    facts: dict[int, tuple[InstanceFacts, ...]]
    """By series id; of PT and CT series, and of those that were asked for."""

    @property
    def version(self) -> tuple[object, ...]:
        rows = (*self.series, *self.elsewhere)
        return (self.study.two_patients, *(row.version for row in rows))


def gather(
    connection: Connection,
    study_id: int,
    also: Sequence[int] = (),
    read_facts: ReadFacts = InstanceFacts.from_json,
) -> StudyEvidence:
    """Read the evidence of a study in one snapshot.

    `also` names series whose facts are wanted although they are neither PT nor CT.
    """
    row = connection.execute(sa.select(study).where(study.c.id == study_id)).one()
    here = _series(connection, series.c.study_id == study_id)
    elsewhere = _elsewhere(connection, study_id, row.patient_ID)
    wanted = [
        one.id for one in (*here, *elsewhere) if one.modality in _IMAGING or one.id in set(also)
    ]
    return StudyEvidence(
        StudyRow(row.id, row.study, row.patient_ID, bool(row.two_patients)),
        here,
        elsewhere,
        {series_id: _facts(connection, series_id, read_facts) for series_id in wanted},
    )


def current_version(connection: Connection, study_id: int) -> tuple[object, ...]:
    """Return what `StudyEvidence.version` would be now, without reading any facts."""
    row = connection.execute(sa.select(study).where(study.c.id == study_id)).one()
    rows = (
        *_series(connection, series.c.study_id == study_id),
        *_elsewhere(connection, study_id, row.patient_ID),
    )
    return (bool(row.two_patients), *(one.version for one in rows))


def _series(connection: Connection, condition: sa.ColumnElement[bool]) -> tuple[SeriesRow, ...]:
    found = connection.execute(
        sa.select(series, study.c.study)
        .join(study, study.c.id == series.c.study_id)
        .where(condition, series.c.instances > 0)
        .order_by(series.c.id)
    )
    return tuple(
        SeriesRow(
            id=row.id,
            study_id=row.study_id,
            uid=row.series,
            study_uid=row.study,
            modality=row.modality,
            instances=row.instances,
            quiet=bool(row.quiet),
            state=row.state,
            role=row.role,
        )
        for row in found
    )


def _elsewhere(connection: Connection, study_id: int, patient: str) -> tuple[SeriesRow, ...]:
    if not patient:
        return ()
    frames = sa.select(series.c.frame_of_reference_uid).where(
        series.c.study_id == study_id,
        series.c.modality == "PT",
        series.c.frame_of_reference_uid.is_not(None),
    )
    others = sa.select(study.c.id).where(study.c["patient_ID"] == patient, study.c.id != study_id)
    return _series(
        connection,
        sa.and_(
            series.c.modality == "CT",
            series.c.study_id.in_(others),
            series.c.frame_of_reference_uid.in_(frames),
        ),
    )


def _facts(
    connection: Connection, series_id: int, read_facts: ReadFacts
) -> tuple[InstanceFacts, ...]:
    found = connection.execute(
        sa.select(instance.c.facts)
        .where(instance.c.series_id == series_id)
        .order_by(instance.c.instance_uid)
    )
    return tuple(map(read_facts, found.scalars()))
