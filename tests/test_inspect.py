"""Inspect: every file accounted for, every verdict with its reasons, in one JSON object."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from workers.inspecting import inspect_path
from workers.phantom.spec import PhantomSpec
from workers.phantom.study import write_study

SPEC = PhantomSpec(size="tiny")
Inspected = dict[str, Any]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_study(SPEC, folder)
    return folder


@pytest.fixture
def own(phantom: Path, tmp_path: Path) -> Path:
    """A phantom study that a test may change."""
    return Path(shutil.copytree(phantom, tmp_path / "own"))


def inspected(path: Path) -> Inspected:
    return dict(json.loads(json.dumps(inspect_path(path).to_json_object())))


def study_of(path: Path) -> Inspected:
    found = inspected(path)
    assert len(found["studies"]) == 1
    return dict(found["studies"][0])


def reasons(path: Path) -> dict[str, str]:
    return {Path(one["path"]).name: one["reason"] for one in inspected(path)["rejected"]}


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)


def files_under(path: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(path))


def accounted(found: Inspected) -> int:
    read = sum(series["instances"] for study in found["studies"] for series in study["series"])
    return int(read + len(found["rejected"]))


def test_a_phantom_study_has_its_roles_completeness_suv_and_pair(phantom: Path) -> None:
    study = study_of(phantom)
    assert set(study) == {"study", "patient_ID", "series", "pair"}
    roles = sorted(series["role"] for series in study["series"])
    assert roles == ["ct", "ct_reformatted", "ct_reformatted", "ct_scout", "pet_ac", "pet_mip",
                     "pet_nac"]  # fmt: skip
    by_role = {series["role"]: series for series in study["series"]}
    ac = by_role["pet_ac"]
    assert set(ac) == {"series", "modality", "series_description", "instances", "role",
                       "role_reasons", "completeness", "suv"}  # fmt: skip
    assert ac["completeness"]["state"] == "complete"
    assert ac["completeness"]["expected"] == ac["completeness"]["received"] == ac["instances"]
    assert set(ac["suv"]) == {"status", "factor", "method", "reference_time", "reasons"}
    assert ac["suv"]["status"] == "ok"
    assert by_role["pet_nac"]["suv"]["status"] == "refused"
    assert by_role["ct"]["suv"] is None
    assert study["pair"]["state"] == "ready"
    assert (study["pair"]["pet"], study["pair"]["ct"]) == (ac["series"], by_role["ct"]["series"])


def test_the_suv_factor_of_the_phantom_is_the_one_it_was_made_with(phantom: Path) -> None:
    from workers.phantom.study import make_study

    truth = make_study(SPEC).truth
    ac = next(one for one in study_of(phantom)["series"] if one["role"] == "pet_ac")
    assert ac["suv"]["factor"] == pytest.approx(truth.suv_factor, rel=1e-6)


def test_one_file_can_be_inspected(phantom: Path) -> None:
    study = study_of(phantom / "PET AC" / "0001.dcm")
    (series,) = study["series"]
    assert series["role"] == "pet_ac"
    assert series["completeness"]["state"] == "inconsistent"
    assert series["completeness"]["reasons"][0].startswith("PET 1 of 8")
    assert study["pair"]["state"] == "none"


def test_a_missing_slice_is_held_in_words(own: Path) -> None:
    (own / "PET AC" / "0004.dcm").unlink()
    pair = study_of(own)["pair"]
    assert pair["state"] == "held"
    assert "PET 7 of 8, gap at z =" in pair["reasons"][0]


def test_what_is_no_dicom_is_rejected_with_its_reason(own: Path) -> None:
    (own / "notes.txt").write_text("no DICOM")
    (own / "empty.dcm").touch()
    (own / "cut.dcm").write_bytes((own / "PET AC" / "0001.dcm").read_bytes()[:700])
    (own / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (own / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    rejected = reasons(own)
    assert rejected["notes.txt"].startswith("not-dicom: ")
    assert rejected["empty.dcm"] == "not-dicom: the file is empty"
    assert rejected["cut.dcm"].startswith("truncated: ")
    assert rejected[".DS_Store"] == rejected["Thumbs.db"]
    assert rejected[".DS_Store"].startswith("skipped: ")
    assert accounted(inspected(own)) == files_under(own)


def test_the_same_instance_twice_counts_once_and_a_conflict_is_named(own: Path) -> None:
    shutil.copy(own / "PET AC" / "0001.dcm", own / "again.dcm")
    shutil.copy(own / "PET AC" / "0002.dcm", own / "other.dcm")
    rewrite(own / "other.dcm", lambda dataset: setattr(dataset, "PatientWeight", 12.0))
    before = {one["series"]: one["instances"] for one in study_of(own)["series"]}
    rejected = inspected(own)["rejected"]
    assert sorted(one["reason"].split(":")[0] for one in rejected) == ["conflict", "duplicate"]
    assert sum(before.values()) + 2 == files_under(own)


def test_links_and_pipes_are_accounted_for(own: Path) -> None:
    (own / "link.dcm").symlink_to(own / "PET AC" / "0001.dcm")
    (own / "folder").symlink_to(own / "PET AC")
    os.mkfifo(own / "pipe.dcm")
    rejected = reasons(own)
    assert rejected["link.dcm"] == rejected["folder"] == "skipped: a symbolic link"
    assert rejected["pipe.dcm"] == "skipped: not a regular file"


def test_a_link_that_the_user_names_is_followed(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(phantom)
    assert inspected(tmp_path / "link")["rejected"] == []
    assert len(inspected(tmp_path / "link")["studies"]) == 1


def test_a_name_that_is_no_text_can_be_shown(own: Path) -> None:
    (own / os.fsdecode(b"not\xe9.txt")).write_text("no DICOM")
    (shown,) = [one["path"] for one in inspected(own)["rejected"]]
    assert shown.endswith("not\\xe9.txt")
    shown.encode("utf-8")


def test_a_path_that_is_not_there_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_path(tmp_path / "nothing")


def test_an_empty_folder_is_an_empty_inspection(tmp_path: Path) -> None:
    assert inspected(tmp_path) == {"studies": [], "rejected": []}


def test_two_patients_in_one_study_are_held(own: Path) -> None:
    for path in (own / "CT IMAGES").iterdir():
        rewrite(path, lambda dataset: setattr(dataset, "PatientID", "SOMEBODY-ELSE"))
    pair = study_of(own)["pair"]
    assert pair["state"] == "held"
    assert "two PatientIDs" in pair["reasons"][0]


def test_a_ct_of_another_study_of_the_patient_is_borrowed(own: Path) -> None:
    for path in (own / "CT IMAGES").iterdir():
        rewrite(path, lambda dataset: setattr(dataset, "StudyInstanceUID", "1.2.826.99"))
    studies = {len(one["series"]): one for one in inspected(own)["studies"]}
    assert studies[6]["pair"]["state"] == "ready"
    assert studies[1]["pair"]["state"] == "none"
    assert "of another study of the patient" in studies[6]["pair"]["reasons"]


def test_progress_counts_the_files(phantom: Path) -> None:
    counts: list[int] = []
    inspect_path(phantom, progress=counts.append)
    assert counts == list(range(1, files_under(phantom) + 1))


@pytest.mark.parametrize("folder", ["pet-slices", "dro", "references", "odd", "studies"])
def test_every_real_file_is_accounted_for(test_data: Path, folder: str) -> None:
    found = inspected(test_data / folder)
    assert accounted(found) == files_under(test_data / folder)
    assert all(one["reason"] for one in found["rejected"])
    for study in found["studies"]:
        assert study["pair"]["reasons"]
        for series in study["series"]:
            assert series["role_reasons"]
            assert series["completeness"]["reasons"]


def test_real_studies_give_their_pairs(test_data: Path) -> None:
    studies = inspected(test_data / "studies")["studies"]
    assert [one["pair"]["state"] for one in studies] == ["ready", "ready"]
    for study in studies:
        pet = next(one for one in study["series"] if one["role"] == "pet_ac")
        assert pet["suv"]["factor"] == 1.0
        assert study["pair"]["pet"] == pet["series"]


def test_the_same_instance_in_another_transfer_syntax_is_a_duplicate(own: Path) -> None:
    write_study(replace(SPEC, transfer_syntax_uid=RLELossless), own / "rle", only=["PET AC"])
    rejected = inspected(own)["rejected"]
    assert len(rejected) == 8
    assert all("in another transfer syntax" in one["reason"] for one in rejected)
