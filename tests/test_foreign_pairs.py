"""Auto-Paired folders that another system made: never destroyed, never filed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import World, encoded, make_world, tiny
from test_reindex import adopt, deliver

from workers.adopting.finishing import take_over_pairs, wished_pairs
from workers.completeness.judging import judge_studies
from workers.index.tables import arrival, pair
from workers.pairing import build, making
from workers.pairing.claiming import is_free
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

STUDY = make_study(PhantomSpec(size="tiny"))
CT, PET = STUDY.named("CT IMAGES"), STUDY.named("PET AC")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is nine tenths of a tiny pair's time, and tested elsewhere."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path / "site")
    yield world
    world.close()


def lay(folder: Path) -> dict[str, bytes]:
    """Lay what another system made."""
    folder.mkdir(parents=True)
    contents = {"ct.npy": b"theirs", "pet.npy": b"theirs", "pair.json": b'{"study": "1.2"}'}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def filed(world: World) -> Any:
    """File and judge the study; return the row of its pair."""
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in (CT, PET) for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    return world.rows(pair)[0]


def home_of(world: World) -> Path:
    return world.path_of(PET.dataset(0).SOPInstanceUID).parents[5]


def test_a_delivery_with_foreign_pairs_keeps_them(tmp_path: Path) -> None:
    world = make_world(tmp_path / "site")
    deliver(world.layout.archive, 1, only=("CT IMAGES", "PET AC"))
    (home,) = world.layout.archive.glob("*/*/studies")
    theirs = lay(home.parent / "Auto-Paired")
    lay(home.parent / "Auto-Paired 2")
    report = adopt(world)
    assert report.findings == []
    assert take_over_pairs(world.index, world.settings) == 0
    (wish,) = wished_pairs(world.index)
    assert make_pair(world.index, world.settings, wish.pair_id, wish.generation) == "ready"
    (row,) = world.rows(pair)
    digits = next(home.iterdir()).name, next(next(home.iterdir()).iterdir()).name
    assert row.folder.endswith(f"/Auto-Paired-{'-'.join(digits)}")
    assert load_pair(world.layout.archive / row.folder).meta.study == STUDY.study_uid
    assert content_of(home.parent / "Auto-Paired") == theirs
    world.close()


def test_every_taken_name_is_left_and_the_next_one_used(world: World) -> None:
    row = filed(world)
    home = home_of(world)
    digits = "-".join(world.path_of(PET.dataset(0).SOPInstanceUID).parts[-5:-3])
    kept = {name: lay(home / name) for name in ("Auto-Paired", f"Auto-Paired-{digits}")}
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    assert world.rows(pair)[0].folder.endswith(f"/Auto-Paired-{digits}-2")
    assert {name: content_of(home / name) for name in kept} == kept


def test_a_folder_laid_there_while_the_pair_is_made_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = filed(world)
    theirs = {}
    real = making.build_pair

    def build_and_lay(*arguments: Any) -> Any:
        summary = real(*arguments)
        if not theirs:
            theirs.update(lay(home_of(world) / "Auto-Paired"))
        return summary

    monkeypatch.setattr(making, "build_pair", build_and_lay)
    assert make_pair(world.index, world.settings, row.id, row.generation) == "stale"
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    assert content_of(home_of(world) / "Auto-Paired") == theirs
    assert world.rows(pair)[0].folder != row.folder


def test_an_older_pair_of_the_same_study_is_ours_and_replaced(world: World) -> None:
    row = filed(world)
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    place = world.layout.archive / world.rows(pair)[0].folder
    assert is_free(place, STUDY.study_uid)
    assert not is_free(place, "1.2.3")
    with world.index.write() as connection:  # as an index made anew, with other settings
        connection.execute(
            pair.update().values(folder=None, done_generation=0, revision=0, state="pending")
        )
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    assert world.layout.archive / world.rows(pair)[0].folder == place
    assert [path.name for path in place.parent.iterdir() if "Paired" in path.name] == [place.name]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"study": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_record_of_ours_is_somebody_elses(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pair.json").write_bytes(content)
    assert not is_free(tmp_path, "1.2")
    shutil.copy(tmp_path / "pair.json", tmp_path / "ct.npy")
    (tmp_path / "pair.json").unlink()
    assert not is_free(tmp_path, "1.2")
    (tmp_path / "ct.npy").unlink()
    assert is_free(tmp_path, "1.2")
    assert is_free(tmp_path / "absent", "1.2")


def test_dropped_pairs_of_another_system_are_kept_in_quarantine_by_name(world: World) -> None:
    home = "P1/A1/Auto-Paired"
    world.put(
        {
            f"{home}/ct.npy": b"\x93NUMPY",
            f"{home}-12345/pet.npy": b"\x93NUMPY",
            f"{home}/pair.json": json.dumps({}).encode(),
            f"{home}/qc.png": b"\x89PNG",
            f"{home}/slice.npy": encoded(tiny()),
            f"{home}/notes.txt": b"a person's",
            "P1/A1/other/ct.npy": b"\x93NUMPY",
        }
    )
    world.file()
    assert world.outcomes() == {"filed": 1, "quarantined": 6}
    reasons = [row.reason for row in world.rows(arrival) if row.outcome == "quarantined"]
    assert sum("a pair that was made before" in reason for reason in reasons) == 4
