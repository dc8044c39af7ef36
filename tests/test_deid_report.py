"""What de-identification would change is told by keyword and count, and nothing is changed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from filing_world import changed, encoded, tiny
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage
from typer.testing import CliRunner, Result

from daemon.cli.app import app
from daemon.errors import DaemonError
from workers.deidentify.entry import blaming_the_data
from workers.deidentify.reporting import Outcome, report_path
from workers.deidentify.rules import Deidentifier
from workers.deidentify.secret import throw_away_seed

NAME = "Secret^Value"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """Two instances, one that is held, one that is no DICOM, litter, a link."""
    folder = tmp_path / "drop" / "S1" / "imaging" / "S1_a"
    folder.mkdir(parents=True)
    content = encoded(tiny())
    known: dict[str, Any] = {"PatientName": NAME, "PatientBirthDate": "19500101"}
    (folder / "a.dcm").write_bytes(changed(content, **known))
    (folder / "b.dcm").write_bytes(
        changed(
            content, **known, Occupation=NAME, PatientComments=NAME, ContentDate="19990909"
        ).replace(b"19990909", b"1999 9 9")
    )
    (folder / "burned.dcm").write_bytes(changed(content, BurnedInAnnotation="YES"))
    (folder / "notes.txt").write_text(NAME)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "link").symlink_to("a.dcm")
    capture = changed(content, SOPClassUID=SecondaryCaptureImageStorage)
    (tmp_path / "drop" / "loose.dcm").write_bytes(capture)
    return tmp_path / "drop"


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["deid-report", *map(str, arguments)])


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = [folder, *folder.rglob("*")]
    facts = {str(path): path.lstat() for path in found}
    return {path: (one.st_ino, one.st_mtime_ns, one.st_size) for path, one in facts.items()}


def test_a_report_counts_by_file_and_by_attribute(drop: Path) -> None:
    before = state_of(drop)
    result = invoke(drop, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["deidentified"], told["held"], told["skipped"]) == (2, 3, 1)
    attributes = told["attributes"]
    assert attributes["replaced"]["PatientName"] == 2
    assert attributes["replaced"]["PatientBirthDate"] == 2
    assert attributes["removed"] == {"Occupation": 1, "PatientComments": 1}
    assert attributes["emptied"] == {"ContentDate": 1}
    files = {one["path"]: one for one in told["files"]}
    assert files["S1/imaging/S1_a/b.dcm"]["removed"] == 2
    assert files["S1/imaging/S1_a/a.dcm"]["removed"] == 0
    held = files["S1/imaging/S1_a/burned.dcm"]
    assert held["code"] == "identifiable"
    assert "BurnedInAnnotation" in held["reason"]
    assert "secondary capture" in files["loose.dcm"]["reason"]
    assert files["S1/imaging/S1_a/notes.txt"]["code"] == "not-dicom"
    assert "S1/imaging/S1_a/link" not in files
    assert state_of(drop) == before


def test_no_value_is_told_and_the_table_fits(drop: Path) -> None:
    for arguments in ((drop,), (drop, "--json")):
        text = invoke(*arguments).stdout
        assert NAME not in text
        assert "1950" not in text
    assert "PatientName" in invoke(drop).stdout
    assert max(map(len, invoke(drop).stdout.splitlines())) <= 110  # reasons are sentences


def test_the_report_says_what_the_rules_then_do(drop: Path) -> None:
    path = drop / "S1" / "imaging" / "S1_a" / "b.dcm"
    (one,) = report_path(path, throw_away_seed())
    dataset = dcmread(io.BytesIO(path.read_bytes()))
    with blaming_the_data():
        assert Deidentifier(throw_away_seed()).apply(dataset) == one.changes
    assert one.outcome is Outcome.DEIDENTIFIED


def test_a_path_without_subject_is_held_where_it_takes_the_patients_place(drop: Path) -> None:
    told = json.loads(invoke(drop, "--subject", "--json").stdout)
    files = {one["path"]: one for one in told["files"]}
    assert files["S1/imaging/S1_a/a.dcm"]["outcome"] == "deidentified"
    assert "names no subject" in files["loose.dcm"]["reason"]


def test_no_seed_is_made_and_one_that_is_open_to_others_is_told(drop: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert invoke(drop, "--root", root).exit_code == 0
    assert not root.exists()
    root.mkdir()
    seed = root / "deidentify.seed"
    seed.write_text("0123456789abcdef" * 4)
    seed.chmod(0o644)
    assert "chmod 600" in str(invoke(drop, "--root", root).exception)
    seed.chmod(0o600)
    assert invoke(drop, "--root", root).exit_code == 0
    assert sorted(os.listdir(root)) == ["deidentify.seed"]


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert isinstance(invoke(tmp_path / "absent").exception, DaemonError)
