"""Where instances go: folders that clash, twins, accessions, patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from facts_builder import ct
from filing_world import World, a_world, changed, small_instances

from workers.errors import DataError
from workers.filing import names
from workers.filing.placing import Place, place_instance
from workers.header.facts import InstanceFacts
from workers.index.tables import folder, study

pytestmark = pytest.mark.both_databases


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def facts(
    study_uid: str = "1.1", series_uid: str = "1.1.1", patient: str = "P", accession: str = "A"
) -> InstanceFacts:
    return replace(
        ct(series=series_uid),
        study_instance_uid=study_uid,
        patient_id=patient,
        accession_number=accession,
    )


def place(world: World, one: InstanceFacts) -> Place:
    with world.index.write() as connection:
        return place_instance(connection, one, prefix="", source="test", at="now")[0]


def test_a_place_once_given_is_kept(world: World) -> None:
    first = place(world, facts())
    assert place(world, facts()) == first
    assert first.folder == "P/A/studies/" + "/".join(
        (*names.uid_digits("1.1"), *names.uid_digits("1.1.1"))
    )


def test_two_series_that_clash_get_two_folders_and_never_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = names.uid_digits

    def clashing(uid: str, attempt: int = 0) -> tuple[str, str]:
        return ("00000", "00001") if attempt == 0 else original(uid, attempt)

    monkeypatch.setattr(names, "uid_digits", clashing)
    places = [place(world, facts(series_uid=f"1.1.{number}")) for number in range(4)]
    assert len({one.folder for one in places}) == 4
    assert {one.digits[:11] for one in places} == {"00000/00001"}
    assert [place(world, facts(series_uid=f"1.1.{number}")) for number in range(4)] == places


def test_two_studies_that_clash_share_no_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = names.uid_digits

    def clashing(uid: str, attempt: int = 0) -> tuple[str, str]:
        return ("00000", "00001") if attempt == 0 else original(uid, attempt)

    monkeypatch.setattr(names, "uid_digits", clashing)
    first, second = (place(world, facts(f"1.{n}", f"1.{n}.1")) for n in (1, 2))
    assert first.home == second.home
    assert first.digits[:11] != second.digits[:11]
    again = place(world, facts("1.2", "1.2.2"))
    assert again.digits[:11] == second.digits[:11], "a study keeps its first two folders"


def test_what_finds_no_free_folder_is_an_error_of_the_data(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "uid_digits", lambda *_: ("00000", "00001"))
    place(world, facts())
    with pytest.raises(DataError, match="no free folder"):
        place(world, facts(series_uid="1.1.2"))
    with pytest.raises(DataError, match="no free folder"):
        place(world, facts("1.2", "1.2.1"))


def test_the_digits_of_a_vendor_are_kept(world: World) -> None:
    given = place(world, facts())
    with world.index.write() as connection:
        connection.execute(
            folder.update().where(folder.c.id == given.folder_id).values(digits="1/2/3/4")
        )
    assert place(world, facts()).digits == "1/2/3/4"
    assert place(world, facts(series_uid="1.1.2")).digits.startswith("1/2/")
    assert not place(world, facts("1.2", "1.2.1")).digits.startswith("1/2/")


def test_one_study_with_two_accessions_lies_in_two_folders(world: World, tmp_path: Path) -> None:
    first, second = small_instances(tmp_path / "made", 2)
    world.put({"1": changed(first, AccessionNumber="A1")})
    world.put({"2": changed(second, AccessionNumber="A2")})
    world.file_all()
    world.check()
    assert {path.split("/")[1] for path in world.tree()} == {"A1", "A2"}
    assert world.counts().studies == 1
    assert len({path.split("/studies/")[1].rsplit("/", 1)[0] for path in world.tree()}) == 1
    assert not world.rows(study)[0].two_patients


def test_a_study_under_two_patients_is_marked(world: World, tmp_path: Path) -> None:
    first, second = small_instances(tmp_path / "made", 2)
    world.put({"1": changed(first, PatientID="ONE"), "2": changed(second, PatientID="TWO")})
    world.file_all()
    world.check()
    assert {path.split("/")[0] for path in world.tree()} == {"ONE", "TWO"}
    (row,) = world.rows(study)
    assert row.two_patients


def test_an_absent_patient_and_one_who_is_called_like_its_folder_stay_apart(world: World) -> None:
    absent = place(world, facts(patient=""))
    called = absent.home.split("/")[0]
    spelled = place(world, facts("1.2", "1.2.1", patient=called))
    assert spelled.home.split("/")[0].lower() != called.lower()
    assert place(world, facts(patient="")) == absent


@pytest.mark.parametrize("number", range(3))
def test_twins_of_long_names_stay_apart(world: World, number: int) -> None:
    twins = ["x" * 70, "X" * 70, "x" * 69 + "X"]
    homes = {place(world, facts(patient=one)).home.split("/")[0].lower() for one in twins}
    assert len(homes) == 3
    crafted = names.encoded(twins[number])  # a short value that reads like a cut name
    assert place(world, facts(patient=crafted)).home.split("/")[0].lower() not in homes


def test_the_index_itself_forbids_two_series_in_one_folder(world: World) -> None:
    one, other = place(world, facts()), place(world, facts(series_uid="1.1.2"))
    with pytest.raises(sa.exc.IntegrityError), world.index.write() as connection:
        connection.execute(
            folder.update().where(folder.c.id == other.folder_id).values(digits=one.digits)
        )
