"""An OMI-DB is written, and read back by its public reader."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import omidb
import pytest
from databases import remove_index
from filing_world import World, changed, encoded, make_world, other_pixels, tiny, uid_of
from loguru import logger
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from daemon.cli.app import app
from workers.errors import ExportFailed
from workers.export.clients import Clients
from workers.export.omidb import DERIVED, export_omidb
from workers.index.engine import prepare_index
from workers.index.tables import client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path / "site")
    yield world
    world.close()


@pytest.fixture(autouse=True)
def quiet() -> None:
    logger.remove()


def fill(world: World, *patients: int, slices: int = 2) -> list[bytes]:
    contents = [
        encoded(tiny(name, number, patient_number=patient))
        for patient in patients
        for name in ("CT IMAGES", "PET AC")
        for number in range(slices)
    ]
    world.put({str(number): one for number, one in enumerate(contents)})
    world.file()
    return contents


def read_back(out: Path) -> dict[str, dict[str, list[str]]]:
    """Every client's studies and images, as the public reader yields them, each one loaded."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in omidb.DB(out / "data", out / "images"):
        studies = found.setdefault(one.id, {})
        for episode in one.episodes:
            for study in episode.studies:
                for series in study.series:
                    for image in series.images:
                        assert image.dcm.SOPInstanceUID == image.id
                        assert image.attributes["00080018"]["Value"] == [image.id]
                        assert "7FE00010" not in image.attributes
                        assert image.dcm.SeriesInstanceUID == series.id
                        studies.setdefault(study.id, []).append(image.id)
    return found


@pytest.mark.both_databases
def test_the_public_reader_yields_every_client_study_series_and_image(
    world: World, tmp_path: Path
) -> None:
    contents = fill(world, 1, 2)
    out = tmp_path / "omi"
    words = ["export", "omidb", str(out), "--root", str(world.layout.root)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "2 clients, 8 images, 8 new" in done.stdout.replace("\n", " ")
    found = read_back(out)
    assert set(found) == {"optm1", "optm2"}
    images = sorted(uid for studies in found.values() for uids in studies.values() for uid in uids)
    assert images == sorted(uid_of(one) for one in contents)
    for uid in images:
        (copy,) = (out / "images").rglob(f"{uid}.dcm")
        assert copy.read_bytes() == world.path_of(uid).read_bytes()
        assert copy.stat().st_ino != world.path_of(uid).stat().st_ino
    nbss = json.loads((out / "data" / "optm1" / "nbss_optm1.json").read_text())
    assert [set(one) for one in nbss.values()] == [{"EpisodeOpenedDate", "Source"}]
    assert {one["Source"] for one in nbss.values()} == {DERIVED}
    again = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    told = {"clients": 2, "images": 8, "written": 0, "undated": [], "unlinked": []}
    assert json.loads(again.stdout) == {"out": str(out), **told}


@pytest.mark.both_databases
def test_a_second_run_writes_only_what_is_new(world: World, tmp_path: Path) -> None:
    fill(world, 1)
    out = tmp_path / "omi"
    assert export_omidb(world.index, world.layout, out).written == 4
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.dcm")}
    assert export_omidb(world.index, world.layout, out).written == 0
    fill(world, 2)
    report = export_omidb(world.index, world.layout, out)
    assert (report.clients, report.images, report.written) == (2, 8, 4)
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.dcm")}.items()
    )
    (gone,) = list((out / "data").rglob("imagedb_optm1.json"))
    gone.unlink()
    export_omidb(world.index, world.layout, out)
    assert set(read_back(out)) == {"optm1", "optm2"}


def test_hard_links_are_made_on_request_alone(world: World, tmp_path: Path) -> None:
    (content, *_) = fill(world, 1)
    export_omidb(world.index, world.layout, tmp_path / "omi", hard_links=True)
    (shared,) = (tmp_path / "omi").rglob(f"{uid_of(content)}.dcm")
    assert shared.stat().st_ino == world.path_of(uid_of(content)).stat().st_ino
    assert export_omidb(world.index, world.layout, tmp_path / "omi", hard_links=True).written == 0
    assert not list((tmp_path / "omi").rglob(".*"))


@pytest.mark.both_databases
def test_a_clients_number_is_kept_also_when_the_index_is_lost(world: World) -> None:
    clients = Clients(world.index, world.layout)
    numbers = {name: clients.number_of(name) for name in ("B", "A", "C")}
    assert numbers == {"B": 1, "A": 2, "C": 3}
    world.close()
    remove_index(world.settings)
    prepare_index(world.settings).close()
    again = Clients(world.index, world.layout)
    assert {name: again.number_of(name) for name in ("A", "B", "C", "D")} == numbers | {"D": 4}
    assert len(world.rows(client)) == 4


@pytest.mark.both_databases
def test_who_has_no_patient_id_is_a_client_of_their_own(world: World, tmp_path: Path) -> None:
    for number in range(2):
        content = changed(
            encoded(tiny("CT IMAGES", number)), PatientID="",
            StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(),
        )  # fmt: skip
        world.put({str(number): content})
    world.file()
    assert export_omidb(world.index, world.layout, tmp_path / "omi").clients == 2


@pytest.mark.both_databases
def test_a_record_of_nbss_is_passed_through_and_linked_by_date(
    world: World, tmp_path: Path
) -> None:
    fill(world, 1, 2)
    first = tiny("CT IMAGES", patient_number=1)
    day = f"{first.StudyDate[:4]}-{first.StudyDate[4:6]}-{first.StudyDate[6:]}"
    nbss = tmp_path / "nbss"
    nbss.mkdir()
    record = {
        "7": {"EpisodeType": "F", "CLINICAL": {"L": {"1": {"DatePerformed": day}}}},
        "8": {"EpisodeType": "R", "EpisodeOpenedDate": "1990-01-01"},
    }
    (nbss / f"{first.PatientID}.json").write_text(json.dumps(record))
    report = export_omidb(world.index, world.layout, tmp_path / "omi", nbss=nbss)
    assert report.unlinked == []
    written = json.loads((tmp_path / "omi/data/optm1/nbss_optm1.json").read_text())
    assert written == record
    assert len(read_back(tmp_path / "omi")["optm1"]) == 1
    (nbss / f"{first.PatientID}.json").write_text("[1, 2]")
    with pytest.raises(ExportFailed, match="no record of episodes"):
        export_omidb(world.index, world.layout, tmp_path / "omi", nbss=nbss)


def test_what_cannot_be_exported_is_said(world: World, tmp_path: Path) -> None:
    content, *_ = fill(world, 1)
    with pytest.raises(ExportFailed, match="four lower-case letters"):
        export_omidb(world.index, world.layout, tmp_path / "omi", prefix="../x")
    undated = changed(
        encoded(tiny("CT IMAGES", 1)), StudyDate="", StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(), SOPInstanceUID=generate_uid(),
    )  # fmt: skip
    world.put({"a": undated})
    world.file()
    assert len(export_omidb(world.index, world.layout, tmp_path / "omi").undated) == 1
    world.path_of(uid_of(content)).unlink()
    with pytest.raises(ExportFailed, match="missing in the tree"):
        export_omidb(world.index, world.layout, tmp_path / "other")


@pytest.mark.both_databases
def test_an_image_that_was_replaced_is_written_again(world: World, tmp_path: Path) -> None:
    content, *_ = fill(world, 1)
    export_omidb(world.index, world.layout, tmp_path / "omi")
    path = world.path_of(uid_of(content))
    path.write_bytes(other_pixels(path.read_bytes()))
    os.utime(path)
    assert export_omidb(world.index, world.layout, tmp_path / "omi").written == 1
