"""What leaves the system for others: the dictionary's tables, datalists, samples with notebooks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from conftest import PROJECT
from filing_world import World, changed, encoded, make_world, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from daemon.cli.app import app
from workers.completeness.judging import judge_studies
from workers.errors import ExportFailed, StoreUnavailable
from workers.export.datalist import ReadyPair, split_by_patient
from workers.export.dictionary import COLUMNS, dictionary_rows
from workers.export.sample import export_sample
from workers.index.tables import pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

STUDY = make_study(PhantomSpec(size="tiny"))
CT, PET = STUDY.named("CT IMAGES"), STUDY.named("PET AC")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, module_database: str) -> Iterator[World]:
    """An installation with one study, paired."""
    world = make_world(tmp_path_factory.mktemp("paired") / "site")
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in (CT, PET) for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    row = world.rows(pair)[0]
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    yield world
    world.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path / "site")
    yield world
    world.close()


def run(world: World, *arguments: object) -> str:
    words = [*map(str, arguments), "--root", str(world.layout.root)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(world: World, level: Any = "series") -> list[dict[str, Any]]:
    return list(dictionary_rows(world.index, level))


# the metadata dictionary --------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_row_a_series_with_the_names_of_the_dictionary(paired: World) -> None:
    table = list(csv.DictReader(io.StringIO(run(paired, "export", "csv", "-"))))
    assert tuple(table[0]) == COLUMNS
    by_series = {row["series"]: row for row in table}
    assert set(by_series) == {CT.series_uid, PET.series_uid}
    ct = by_series[CT.series_uid]
    first = CT.dataset(0)
    assert ct["patient_ID"] == first.PatientID
    assert (ct["study"], ct["modality"], ct["subseries"]) == (STUDY.study_uid, "CT", "1")
    assert ct["instances"] == str(CT.count)
    assert ct["reference_frame"] == first.FrameOfReferenceUID
    assert ct["MR_echo_time"] == ""
    path = paired.layout.archive / ct["file_path"]
    assert path.is_file()
    assert str(path.parent.relative_to(paired.layout.archive)) == ct["folder"]


@pytest.mark.both_databases
def test_the_instance_of_a_series_is_its_lowest_slice(paired: World) -> None:
    places = {d.SOPInstanceUID: float(d.ImagePositionPatient[2]) for d in datasets(CT)}
    row = next(row for row in rows_of(paired) if row["series"] == CT.series_uid)
    assert places[row["instance_uid"]] == min(places.values())


@pytest.mark.both_databases
def test_a_row_an_instance_in_slice_order(paired: World) -> None:
    places = {d.SOPInstanceUID: float(d.ImagePositionPatient[2]) for d in datasets(PET)}
    rows = [row for row in rows_of(paired, "instance") if row["series"] == PET.series_uid]
    assert [places[row["instance_uid"]] for row in rows] == sorted(places.values())


def datasets(series: Any) -> Iterator[Dataset]:
    return (series.dataset(number) for number in range(series.count))


@pytest.mark.both_databases
def test_acquisitions_of_a_series_are_subseries_of_their_own(world: World) -> None:
    contents = [encoded(tiny("CT IMAGES", number)) for number in range(3)]
    world.put(
        {
            "a": changed(contents[0], AcquisitionNumber=2),
            "b": changed(contents[1], AcquisitionNumber=10),
            "c": changed(contents[2], AcquisitionNumber=10),
        }
    )
    world.file()
    assert [(row["subseries"], row["instances"]) for row in rows_of(world)] == [("2", 1), ("10", 2)]


def referring(content: bytes, to: str, frame: str) -> bytes:
    """A structure set that refers to an image."""
    item = Dataset()
    item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    item.ReferencedSOPInstanceUID = to
    return changed(
        content,
        SOPInstanceUID=generate_uid(),
        SeriesInstanceUID=frame,
        Modality="PR",
        ReferencedImageSequence=[item],
    )


@pytest.mark.parametrize("first", ["the image", "what refers to it"])
@pytest.mark.both_databases
def test_a_reference_names_the_series_whatever_arrived_first(world: World, first: str) -> None:
    image = encoded(tiny("CT IMAGES"))
    uid = str(dcmread(io.BytesIO(image)).SOPInstanceUID)
    other = referring(image, uid, generate_uid())
    files = [image, other] if first == "the image" else [other, image]
    seen = []
    for content in files:
        world.put({"one": content})
        world.file()
        seen.append({row["modality"]: row["reference_ct"] for row in rows_of(world)})
    assert seen[-1]["PR"] == CT.series_uid
    if first != "the image":
        assert seen[0]["PR"] == uid  # the UID itself as long as its series is unknown


def test_the_order_of_arrival_does_not_show(tmp_path: Path) -> None:
    contents = {f"{p.name}/{i}": encoded(p.dataset(i)) for p in (CT, PET) for i in range(4)}
    tables = []
    for name, order in (("one", sorted(contents)), ("two", sorted(contents, reverse=True))):
        world = make_world(tmp_path / name)
        world.put({key: contents[key] for key in order})
        world.file()
        tables.append(rows_of(world, "instance"))
        world.close()
    assert tables[0] == tables[1]


@pytest.mark.both_databases
def test_csv_and_parquet_say_the_same(paired: World, tmp_path: Path) -> None:
    for level in ("series", "instance"):
        tables = [tmp_path / "t.csv", tmp_path / "t.parquet"]
        told = [
            json.loads(run(paired, "export", one.suffix[1:], one, "--level", level, "--json"))
            for one in tables
        ]
        with open(tmp_path / "t.csv", newline="") as file:
            plain = list(csv.DictReader(file))
        typed = pq.read_table(tmp_path / "t.parquet").to_pylist()
        assert [[str(v) if v is not None else "" for v in row.values()] for row in typed] == [
            list(row.values()) for row in plain
        ]
        assert isinstance(typed[0]["instances"], int)
        assert told == [{"out": str(one), "rows": len(plain)} for one in tables]
    assert sorted(os.listdir(tmp_path)) == ["t.csv", "t.parquet"]


def test_a_table_that_fails_leaves_the_old_one(paired: World, tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    words = ["export", "csv", str(folder / "t.csv"), "--root", str(paired.layout.root)]
    with pytest.raises(ExportFailed, match="cannot be written"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert folder.read_text() == "in the way"


# the datalist -------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_datalist_is_what_a_training_script_loads(paired: World, tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    told = run(paired, "export", "datalist", target, "--validation", 0, "--json")
    assert json.loads(told) == {"out": str(target), "training": 1, "validation": 0,
                                "other_units": 0}  # fmt: skip
    found = json.loads(target.read_text())
    assert set(found) == {"training", "validation"}
    (item,) = found["training"]
    assert set(item) == {"ct", "pet", "study"}
    assert item["study"] == STUDY.study_uid
    assert np.load(item["ct"]).shape == np.load(item["pet"]).shape
    run(paired, "export", "datalist", target, "--relative", "--validation", 1)
    (item,) = json.loads(target.read_text())["validation"]
    assert not Path(item["pet"]).is_absolute()
    assert (tmp_path / item["pet"]).is_file()


def read_decathlon(path: Path, part: str) -> list[dict[str, str]]:
    """Read a part as MONAI's load_decathlon_datalist does (1.6, with is_segmentation).

    "image" and "label" count from the list's folder; any other text does where that is there.
    """
    read = []
    for item in json.loads(path.read_text())[part]:
        found = {}
        for key, value in item.items():
            place = os.path.normpath(os.path.join(path.parent, value))
            joined = key in ("image", "label") or os.path.exists(place)
            found[key] = place if joined else value
        read.append(found)
    return read


@pytest.mark.parametrize("options", [(), ("--relative",)])
def test_the_datalist_is_read_as_the_decathlons_are(
    paired: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    target = tmp_path / "lists" / "list.json"
    run(paired, "export", "datalist", target, "--validation", 0, *options)
    monkeypatch.chdir("/")  # whoever reads it stands anywhere
    (item,) = read_decathlon(target, "training")
    assert read_decathlon(target, "validation") == []
    assert item["study"] == STUDY.study_uid
    with paired.index.read() as connection:
        folder = paired.layout.archive / connection.execute(sa.select(pair.c.folder)).scalar_one()
    for name in ("ct", "pet"):
        assert os.path.samefile(item[name], folder / f"{name}.npy")


PAIRS = st.lists(
    st.builds(
        ReadyPair,
        study=st.uuids().map(str),
        patient=st.sampled_from([f"P{number}" for number in range(30)]),
        folder=st.just(Path("/x")),
        units=st.sampled_from(["suvbw", "suvbw_adapted", "BQML"]),
    ),
    max_size=60,
)


@given(pairs=PAIRS, share=st.floats(0, 1), seed=st.integers(0, 9), more=PAIRS)
@settings(max_examples=60)
def test_a_patient_is_in_one_part_and_stays_there(
    pairs: list[ReadyPair], share: float, seed: int, more: list[ReadyPair]
) -> None:
    found = split_by_patient(pairs, validation=share, seed=seed)
    training = {one.patient for one in found.training}
    validation = {one.patient for one in found.validation}
    assert not training & validation
    assert len(found.training) + len(found.validation) + found.other_units == len(pairs)
    later = split_by_patient([*more, *pairs], validation=share, seed=seed)
    assert training <= {one.patient for one in later.training}
    assert validation <= {one.patient for one in later.validation}


def test_about_the_asked_share_validates() -> None:
    pairs = [ReadyPair(str(n), f"P{n}", Path("/x"), "suvbw") for n in range(2000)]
    found = split_by_patient(pairs, validation=0.2, seed=7)
    assert 340 <= len(found.validation) <= 460
    assert split_by_patient(pairs, validation=0.2, seed=8) != found


# the sample ---------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_sample_is_complete_and_its_notebooks_run(
    paired: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sample"
    told = json.loads(run(paired, "export", "sample", STUDY.study_uid, out, "--json"))
    assert told == {"out": str(out), "study": STUDY.study_uid, "files": CT.count + PET.count}
    assert sorted(os.listdir(out)) == ["Auto-Paired", "DICOM", "read_dicom.ipynb", "read_npy.ipynb"]
    assert {"ct.npy", "pet.npy", "pair.json"} <= set(os.listdir(out / "Auto-Paired"))
    assert len(os.listdir(out / "DICOM")) == CT.count + PET.count
    monkeypatch.delenv("MPLBACKEND", raising=False)
    npy, pictures = execute(out / "read_npy.ipynb")
    assert "suvbw" in npy
    assert "HU" in npy
    assert pictures == 2
    dicom, pictures = execute(out / "read_dicom.ipynb")
    assert f"{CT.count} CT files, {PET.count} PET files" in dicom
    assert "PatientWeight" in dicom
    assert pictures == 1


def execute(path: Path) -> tuple[str, int]:
    """Run a notebook where it lies, away from our packages; return its text and its pictures."""
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_notebooks_are_kept_without_outputs_and_of_our_program_know_nothing() -> None:
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        assert not any(cell.get("outputs") for cell in cells)
        assert not any("from workers" in cell.source for cell in cells)


@pytest.mark.both_databases
def test_a_sample_of_what_is_not_there_says_so(paired: World, tmp_path: Path) -> None:
    site, books = paired.layout, PROJECT / "notebooks"
    with pytest.raises(ExportFailed, match="no study"):
        export_sample(paired.index, site, "1.2.3", tmp_path / "a", books)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("kept")
    with pytest.raises(ExportFailed, match="not empty"):
        export_sample(paired.index, site, STUDY.study_uid, tmp_path / "b", books)
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("words", [("datalist", "x"), ("omidb", "x"), ("sample", "STUDY", "x")])
def test_what_needs_the_tree_is_refused_where_the_archive_is_another_one(
    paired: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PETCT_INGEST_PATHS__ARCHIVE", str(tmp_path / "elsewhere"))
    *first, out = words
    arguments = ["export", *first, str(tmp_path / out), "--root", str(paired.layout.root)]
    with pytest.raises(StoreUnavailable, match="identity"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / out).exists()
