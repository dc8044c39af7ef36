"""Studies are filtered, series found by any column, one study shown whole."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filing_world import FOLDER, World, a_world, changed, encoded, make_world, other_pixels
from typer.testing import CliRunner, Result

from daemon.cli.app import app
from workers.completeness.judging import judge_studies
from workers.errors import ExportFailed
from workers.export.dictionary import COLUMNS, dictionary_rows
from workers.export.matching import find_rows
from workers.index import searching
from workers.index.searching import WantedStudies, find_studies
from workers.index.tables import pair, series, study
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

PAIRED = make_study(PhantomSpec(size="tiny"))
ALONE = make_study(PhantomSpec(size="tiny", patient_number=2))
CT, PET = PAIRED.named("CT IMAGES"), PAIRED.named("PET AC")
HOSTILE = "a[red]b\x1b[31mc"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, module_database: str) -> Iterator[World]:
    """One study paired with a conflict in quarantine, one with a CT alone and a hostile name."""
    world = make_world(tmp_path_factory.mktemp("finding") / "site")
    first = {f"{p.name}/{i}": encoded(p.dataset(i)) for p in (CT, PET) for i in range(p.count)}
    world.put({f"S1/imaging/S1_a/{path}": content for path, content in first.items()}, FOLDER)
    scout = changed(encoded(ALONE.named("CT IMAGES").dataset(0)), SeriesDescription=HOSTILE)
    world.put({"other": scout})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    row = world.rows(pair)[0]
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    world.put({"conflict": other_pixels(next(iter(first.values())))})
    world.file()
    with world.index.write() as connection:
        connection.execute(
            study.update().where(study.c.study == ALONE.study_uid)
            .values(last_at="2020-01-01T00:00:00+00:00")
        )  # fmt: skip
    yield world
    world.close()


def invoke(world: World, *arguments: object) -> Result:
    words = [*map(str, arguments), "--root", str(world.layout.root)]
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, words)


def run(world: World, *arguments: object) -> str:
    result = invoke(world, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def found(world: World, *arguments: object) -> list[str]:
    told = json.loads(run(world, "studies", "--json", *arguments))
    return [one["study"] for one in told]


# studies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [PAIRED, ALONE]),
        (("--modality", "PT"), [PAIRED]),
        (("--modality", "CT"), [PAIRED, ALONE]),
        (("--role", "pet_ac"), [PAIRED]),
        (("--state", "ready"), [PAIRED]),
        (("--state", "held"), []),
        (("--patient", PAIRED.named("PET AC").dataset(0).PatientID), [PAIRED]),
        (("--patient", "PHANTOM-*"), [PAIRED, ALONE]),
        (("--patient", "PHANTOM"), []),
        (("--since", "2020-06-01"), [PAIRED]),
        (("--until", "2020-06-01"), [ALONE]),
        (("--modality", "CT", "--until", "2020-06-01"), [ALONE]),
        (("--limit", "1"), [PAIRED]),
    ],
)
@pytest.mark.both_databases
def test_studies_are_filtered_by_what_is_known_of_them(
    site: World, arguments: tuple[str, ...], expected: list[Any]
) -> None:
    assert found(site, *arguments) == [one.study_uid for one in expected]


def test_a_role_or_time_that_is_none_is_refused(site: World) -> None:
    assert invoke(site, "studies", "--role", "pet").exit_code == 2
    assert invoke(site, "studies", "--since", "yesterday").exit_code == 2


@pytest.mark.both_databases
def test_pages_leave_out_no_study_and_repeat_none(
    site: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(limit: int) -> list[str]:
        return [one["study"] for one in find_studies(site.index, WantedStudies(), limit)]

    whole = all_of(100)
    monkeypatch.setattr(searching, "_STUDIES_A_PAGE", 1)
    assert all_of(100) == whole == [PAIRED.study_uid, ALONE.study_uid]
    with site.index.write() as connection:  # equal times: the id decides
        before = connection.execute(
            sa.select(study.c.last_at).where(study.c.study == ALONE.study_uid)
        ).scalar_one()
        connection.execute(study.update().values(last_at=before))
    assert sorted(all_of(100)) == sorted(whole)
    with site.index.write() as connection:
        connection.execute(
            study.update().where(study.c.study == PAIRED.study_uid)
            .values(last_at="2026-01-01T00:00:00+00:00")
        )  # fmt: skip


# find --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["series", "instance"])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.both_databases
def test_every_row_is_found_by_every_column(site: World, column: str, level: Any) -> None:
    rows = list(dictionary_rows(site.index, level))
    for value in {row[column] for row in rows}:
        asked = "" if value is None else str(value)
        expected = [row for row in rows if row[column] == value]
        assert list(find_rows(site.index, {column: asked}, level)) == expected
        if asked and "*" not in asked:
            start = f"{asked[:-1]}*"
            among = list(find_rows(site.index, {column: start}, level))
            assert [row for row in among if row[column] == value] == expected


@pytest.mark.both_databases
def test_a_star_stands_for_anything_and_other_signs_for_themselves(site: World) -> None:
    def of(**asked: str) -> set[str]:
        return {row["series"] for row in find_rows(site.index, asked)}

    everything = {row["series"] for row in dictionary_rows(site.index)}
    assert of(series_description="*") == everything
    assert of(series_description="PET*") == {PET.series_uid}
    assert of(series_description="pet*") == set()
    assert of(series_description="%") == of(series_description="PET_AC") == set()
    assert of(series_description="a[red]*") == everything - {CT.series_uid, PET.series_uid}
    assert of(modality="CT", instances=str(CT.count)) == {CT.series_uid}


@pytest.mark.parametrize("length", [12, 256, 257, 30_000])
@pytest.mark.both_databases
def test_a_study_is_found_by_a_description_of_any_length(tmp_path: Path, length: int) -> None:
    """PostgreSQL indexes no long text; digits at random, which it cannot make short."""
    words = random.Random(length).randbytes(length).hex()[:length]
    with a_world(tmp_path / "site") as world:
        world.put({"one": encoded(ALONE.named("CT IMAGES").dataset(0))})
        world.file()
        with world.index.write() as connection:
            connection.execute(study.update().values(study_description=words))
        assert len(list(find_studies(world.index, WantedStudies(term=words), 9))) == 1
        assert len(list(find_studies(world.index, WantedStudies(term=f"{words[:9]}*"), 9))) == 1
        assert not list(find_studies(world.index, WantedStudies(term=words[1:]), 9))


def test_an_instance_is_found_by_its_uid(site: World) -> None:
    uid = PET.dataset(3).SOPInstanceUID
    (row,) = json.loads(run(site, "find", f"instance_uid={uid}", "--json"))
    assert row["series"] == PET.series_uid
    assert (site.layout.archive / row["file_path"]).is_file()
    (same,) = json.loads(run(site, "find", f"file_path={row['file_path']}", "--json"))
    assert same == row


@pytest.mark.both_databases
def test_a_reference_is_found_by_series_and_by_instance(tmp_path: Path) -> None:
    from test_export import referring

    world = make_world(tmp_path / "site")
    target = encoded(CT.dataset(0))
    uid = CT.dataset(0).SOPInstanceUID
    frame = CT.dataset(0).FrameOfReferenceUID
    world.put({"a": referring(encoded(PET.dataset(0)), uid, frame)})
    world.file()
    assert [row["reference_ct"] for row in find_rows(world.index, {"reference_ct": uid})] == [uid]
    world.put({"b": target})
    world.file()
    by_series = list(find_rows(world.index, {"reference_ct": CT.series_uid}))
    assert len(by_series) == 1
    assert list(find_rows(world.index, {"reference_ct": f"{CT.series_uid[:-1]}*"})) == by_series
    world.close()


def test_an_unknown_column_names_the_nearest(site: World) -> None:
    with pytest.raises(ExportFailed, match="nearest is patient_ID"):
        next(find_rows(site.index, {"PatientID": "x"}))
    with pytest.raises(ExportFailed, match="nearest is modality"):
        next(find_rows(site.index, {"Modality": "x"}))
    assert invoke(site, "find", "modality").exit_code == 2
    assert invoke(site, "find", "modality=CT", "modality=PT").exit_code == 2


@pytest.mark.both_databases
def test_find_prints_what_csv_exports(site: World) -> None:
    table = csv.DictReader(io.StringIO(run(site, "export", "csv", "-", "--level", "instance")))
    wanted = [row["file_path"] for row in table if row["modality"] == "PT"]
    told = json.loads(run(site, "find", "modality=PT", "--level", "instance", "--json"))
    assert [row["file_path"] for row in told] == wanted
    few = run(site, "find", "modality=PT", "--level", "instance", "--limit", "2")
    assert "--limit N" in few


# show --------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_study_is_shown_whole(site: World) -> None:
    told = json.loads(run(site, "show", PAIRED.study_uid, "--files", "--json"))
    by_uid = {one["series"]: one for one in told["series"]}
    assert set(by_uid) == {CT.series_uid, PET.series_uid}
    pet = by_uid[PET.series_uid]
    assert (pet["role"], pet["state"], pet["subject"], pet["session"]) == (
        "pet_ac", "complete", "S1", "S1_a",
    )  # fmt: skip
    assert pet["role_reasons"]
    assert sum(place["files"] for place in pet["folders"]) == PET.count
    assert (site.layout.archive / pet["folders"][0]["folder"]).is_dir()
    assert len(told["files"]) == CT.count + PET.count
    assert told["pair"]["state"] == "ready"
    assert told["pair"]["suv"]["status"] == "ok"
    assert told["pair"]["suv"]["factor"] > 0
    assert [one["outcome"] for one in told["quarantine"]] == ["conflict"]

    text = run(site, "show", PAIRED.study_uid)
    for word in (PET.series_uid, "pet_ac", "suvbw", "set aside", pet["folders"][0]["folder"]):
        assert word in text
    assert "factor     [" not in text


@pytest.mark.both_databases
def test_a_study_without_pet_and_an_unknown_one(site: World) -> None:
    told = json.loads(run(site, "show", ALONE.study_uid, "--json"))
    assert told["pair"] is None or told["pair"]["state"] == "no_pair"
    assert told["quarantine"] == []
    assert isinstance(invoke(site, "show", "1.2.3").exception, ExportFailed)


def test_tables_fit_eighty_columns_and_hostile_text_is_escaped(site: World) -> None:
    for arguments in (
        ("studies",),
        ("find", "modality=*", "orientation=*"),
        ("show", ALONE.study_uid),
    ):
        text = run(site, *arguments)
        assert "\x1b" not in text
        if arguments[0] != "show":
            assert max(map(len, text.splitlines())) <= 80
        if arguments[0] != "studies":
            assert "a[red]b" in text.replace("\n", "")
    with site.index.read() as connection:
        assert connection.execute(
            sa.select(series.c.id).where(series.c.series_description == HOSTILE)
        ).scalar()
