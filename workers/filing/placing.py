"""Where an instance goes: its study, series and folder in the index, made on first sight.

Names and digits once given are kept: a study that the index knows keeps its first two folders, a
known series all four (also those that a vendor gave), and two values whose names look alike get
different folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.errors import DataError
from workers.filing import names
from workers.filing.labels import Labels
from workers.header.facts import InstanceFacts
from workers.index.engine import insert_new
from workers.index.tables import component, folder, series, study

_CLASH_ATTEMPTS = 100
_NO_LABELS = Labels()


@dataclass(frozen=True, slots=True)
class Place:
    """Study, series and folder of an instance, as rows of the index and as a path."""

    study_id: int
    series_id: int
    folder_id: int
    home: str
    digits: str

    @property
    def folder(self) -> str:
        """The instance's folder, relative to the archive."""
        return f"{self.home}/studies/{self.digits}"


def place_instance(
    connection: Connection,
    facts: InstanceFacts,
    *,
    prefix: str,
    source: str,
    at: str,
    labels: Labels = _NO_LABELS,
) -> tuple[Place, bool]:
    """Find or make the place of an instance; tell whether its series is new.

    Runs in a writing transaction. Raises DataError when no folder can be found.
    """
    patient = names.patient_name(facts.patient_id, facts.study_instance_uid, prefix)
    accession = names.accession_name(facts.accession_number, facts.study_instance_uid)
    study_id = _study(connection, facts, _shown(patient), at)
    series_id, new = _series(connection, facts, study_id, source, at, labels)
    joined = _adopted_place(connection, facts, series_id, _shown(patient))
    if joined is not None:
        return joined, new
    patient_component = _component(connection, "", patient)
    home = f"{patient_component}/{_component(connection, patient_component, accession)}"
    folder_id, digits = _folder(connection, facts, study_id, series_id, home)
    return Place(study_id, series_id, folder_id, home, digits), new


def find_place(connection: Connection, facts: InstanceFacts, *, prefix: str) -> Place | None:
    """Find the place of an instance; None where anything must be made or noted for it first."""
    patient = names.patient_name(facts.patient_id, facts.study_instance_uid, prefix)
    accession = names.accession_name(facts.accession_number, facts.study_instance_uid)
    known = connection.execute(
        _series_of_patient(),
        {
            "study_uid": facts.study_instance_uid,
            "series_uid": facts.series_instance_uid,
            "shown": _shown(patient),
        },
    ).first()
    if known is None:
        return None
    joined = _adopted_place(connection, facts, known.id, _shown(patient))
    if joined is not None:
        return joined
    above = _known_component(connection, "", patient)
    below = None if above is None else _known_component(connection, above, accession)
    if below is None:
        return None
    home = f"{above}/{below}"
    found = connection.execute(_folder_of(), {"series": known.id, "home": home}).first()
    if found is None:
        return None
    return Place(known.study_id, known.id, int(found.id), home, str(found.digits))


@cache
def _series_of_patient() -> sa.Select[Any]:
    return (
        sa.select(series.c.id, series.c.study_id)
        .join(study, study.c.id == series.c.study_id)
        .where(
            study.c.study == sa.bindparam("study_uid"),
            series.c.series == sa.bindparam("series_uid"),
            sa.or_(study.c["patient_ID"] == sa.bindparam("shown"), study.c.two_patients),
        )
    )


def place_adopted(
    connection: Connection,
    facts: InstanceFacts,
    home: str,
    digits: str,
    *,
    prefix: str = "",
    source: str,
    at: str,
    labels: Labels = _NO_LABELS,
) -> tuple[Place, bool]:
    """Make the place of an instance what it is: a delivery's own folders; tell whether its series
    is new.

    The delivery's names stand from now on for the header's values, where nothing else does: what
    arrives later for this patient, accession and series joins them.
    """
    patient = names.patient_name(facts.patient_id, facts.study_instance_uid, prefix)
    accession = names.accession_name(facts.accession_number, facts.study_instance_uid)
    study_id = _study(connection, facts, _shown(patient), at)
    series_id, new = _series(connection, facts, study_id, source, at, labels)
    patient_folder, _, accession_folder = home.partition("/")
    for parent, name, value in (
        ("", patient_folder, patient.value),
        (patient_folder, accession_folder, accession.value),
    ):
        insert_new(
            connection, component, parent=parent, folded=name.lower(), name=name, value=value
        )
    insert_new(
        connection,
        folder,
        series_id=series_id,
        home=home,
        digits=digits,
        accession_number=facts.accession_number,
        adopted=True,
    )
    folder_id = connection.execute(
        sa.select(folder.c.id).where(
            folder.c.series_id == series_id, folder.c.home == home, folder.c.digits == digits
        )
    ).scalar_one()
    return Place(study_id, series_id, int(folder_id), home, digits), new


def _adopted_place(
    connection: Connection, facts: InstanceFacts, series_id: int, shown: str
) -> Place | None:
    """Find the folder of a delivery that a known series lies in, whatever the delivery calls it.

    None where it is not the folder of this very patient and accession number.
    """
    asked = {"series": series_id, "accession": facts.accession_number, "shown": shown}
    found = connection.execute(_adopted_folder(), asked).first()
    if found is None:
        return None
    return Place(found.study_id, series_id, int(found.id), str(found.home), str(found.digits))


@cache
def _adopted_folder() -> sa.Select[Any]:
    return (
        sa.select(series.c.study_id, folder.c.id, folder.c.home, folder.c.digits)
        .join(series, series.c.id == folder.c.series_id)
        .join(study, study.c.id == series.c.study_id)
        .where(
            folder.c.series_id == sa.bindparam("series"),
            folder.c.adopted,
            folder.c.accession_number == sa.bindparam("accession"),
            study.c["patient_ID"] == sa.bindparam("shown"),
            ~study.c.two_patients,
        )
        .order_by(folder.c.id)
        .limit(1)
    )


def _shown(patient: names.Named) -> str:
    """Return the PatientID of a study's row: none where the name is ours, for an empty one."""
    return "" if patient.value.startswith(" ") else patient.value


def _study(connection: Connection, facts: InstanceFacts, shown: str, at: str) -> int:
    uid = facts.study_instance_uid
    insert_new(
        connection,
        study,
        study=uid,
        patient_ID=shown,
        issuer_of_patient_id=facts.issuer_of_patient_id,
        study_description=facts.study_description,
        study_date=facts.study_date,
        study_time=facts.study_time,
        two_patients=False,
        first_at=at,
        last_at=at,
    )
    row = connection.execute(
        sa.select(study.c.id, study.c["patient_ID"], study.c.two_patients).where(
            study.c.study == uid
        )
    ).one()
    changes: dict[str, object] = {"last_at": at}
    if row[1] != shown and not row.two_patients:
        changes["two_patients"] = True
    connection.execute(study.update().where(study.c.id == row.id).values(changes))
    return int(row.id)


def _series(
    connection: Connection,
    facts: InstanceFacts,
    study_id: int,
    source: str,
    at: str,
    labels: Labels,
) -> tuple[int, bool]:
    new = insert_new(
        connection,
        series,
        study_id=study_id,
        series=facts.series_instance_uid,
        series_description=facts.series_description,
        series_number=facts.series_number,
        modality=facts.modality,
        frame_of_reference_uid=facts.frame_of_reference_uid,
        source=source,
        subject=labels.subject,
        session=labels.session,
        first_at=at,
        last_at=at,
    )
    found = connection.execute(
        sa.select(series.c.id).where(
            series.c.study_id == study_id, series.c.series == facts.series_instance_uid
        )
    )
    return int(found.scalar_one()), new


def _component(connection: Connection, parent: str, named: names.Named) -> str:
    """Return the component of a value; twins that differ only in case get a hash suffix."""
    for name in (named.name, names.with_suffix(named)):
        found = _known_component(connection, parent, named)
        if found is not None:
            return found
        insert_new(
            connection, component, parent=parent, folded=name.lower(), name=name, value=named.value
        )
    found = _known_component(connection, parent, named)
    if found is None:
        raise DataError(f"no free folder name for {named.name!r}: its twins have taken both")
    return found


def _known_component(connection: Connection, parent: str, named: names.Named) -> str | None:
    asked = {"parent": parent, "value": named.value}
    found: str | None = connection.execute(_component_of(), asked).scalar()
    return found


@cache
def _component_of() -> sa.Select[Any]:
    return sa.select(component.c.name).where(
        component.c.parent == sa.bindparam("parent"), component.c.value == sa.bindparam("value")
    )


def _folder(
    connection: Connection, facts: InstanceFacts, study_id: int, series_id: int, home: str
) -> tuple[int, str]:
    mine = {"series": series_id, "home": home}
    found = connection.execute(_folder_of(), mine).first()
    if found is not None:
        return int(found.id), str(found.digits)
    first_two = _study_digits(connection, facts.study_instance_uid, study_id, home)
    for attempt in range(_CLASH_ATTEMPTS):
        third, fourth = names.uid_digits(facts.series_instance_uid, attempt)
        digits = f"{first_two}/{third}/{fourth}"
        taken = sa.select(folder.c.id).where(folder.c.home == home, folder.c.digits == digits)
        if connection.execute(taken.limit(1)).first() is not None:
            continue  # also by an adopted folder, which no constraint forbids
        insert_new(
            connection,
            folder,
            series_id=series_id,
            home=home,
            digits=digits,
            accession_number=facts.accession_number,
        )
        found = connection.execute(_folder_of(), mine).first()
        if found is not None:
            return int(found.id), str(found.digits)
    raise DataError("no free folder for this series: every one is taken by another series")


@cache
def _folder_of() -> sa.Select[Any]:
    return (
        sa.select(folder.c.id, folder.c.digits)
        .where(folder.c.series_id == sa.bindparam("series"), folder.c.home == sa.bindparam("home"))
        .order_by(folder.c.id)
        .limit(1)
    )


def _study_digits(connection: Connection, study_uid: str, study_id: int, home: str) -> str:
    """Return the first two folders of a study here: those it has, else its UID's digits."""
    known = connection.execute(
        sa.select(folder.c.digits)
        .join(series, series.c.id == folder.c.series_id)
        .where(series.c.study_id == study_id, folder.c.home == home)
        .order_by(folder.c.id)
        .limit(1)
    ).scalar()
    if known is not None and str(known).count("/") > 1:  # an adopted one may be less deep
        return "/".join(str(known).split("/")[:2])
    taken = sa.select(folder.c.id).join(series, series.c.id == folder.c.series_id)
    for attempt in range(_CLASH_ATTEMPTS):
        digits = "/".join(names.uid_digits(study_uid, attempt))
        other = connection.execute(
            taken.where(
                folder.c.home == home,
                folder.c.digits.like(f"{digits}/%"),
                series.c.study_id != study_id,
            ).limit(1)
        ).first()
        if other is None:
            return digits
    raise DataError("no free folder for this study: every one is taken by another study")
