"""Series and studies are judged the same however their instances come in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import World, a_world, changed, encoded, tiny

from daemon.sweeper import Sweeper
from workers import clock
from workers.completeness import judging
from workers.completeness.judging import PairWish, judge_studies
from workers.index.tables import event, pair, series, study
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.both_databases

FAR = 1e6
"""Seconds after which everything is quiet."""


@pytest.fixture(scope="module")
def phantom() -> dict[str, list[bytes]]:
    """Every instance of a tiny study, by series."""
    made = make_study(PhantomSpec(size="tiny"))
    return {
        one.name: [encoded(one.dataset(number)) for number in range(one.count)]
        for one in made.series
    }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis={"url": "unix:///nonexistent.sock"}) as one:
        yield one


def file_and_judge(world: World, files: list[bytes]) -> list[PairWish]:
    world.put({str(number): content for number, content in enumerate(files)})
    report = world.file()
    return judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)


def make_quiet(world: World, after: float = FAR) -> list[PairWish]:
    return Sweeper(world.index, world.settings).judge_quiet_series(clock.monotonic() + after)


def verdicts(world: World) -> dict[str, tuple[Any, ...]]:
    return {
        row.series_description: (row.modality, row.role, row.state, row.expected, row.instances)
        for row in world.rows(series)
    }


def the_pair(world: World) -> Any:
    (row,) = world.rows(pair)
    return row


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_batches_end_with_the_same_verdicts(
    world: World, phantom: dict[str, list[bytes]], tmp_path: Path, seed: int
) -> None:
    files = [content for members in phantom.values() for content in members]
    straight = verdicts_of_all_at_once(tmp_path / "straight", files)
    lot = random.Random(seed)
    lot.shuffle(files)
    while files:
        size = lot.randint(1, 12)
        file_and_judge(world, files[:size])
        del files[:size]
    make_quiet(world)
    world.check()
    assert verdicts(world) == straight[0]
    row = the_pair(world)
    assert (row.pet, row.ct, row.wanted) == straight[1:]
    assert row.state == "pending"
    assert row.generation == 1
    assert make_quiet(world) == []
    assert the_pair(world).generation == 1


def verdicts_of_all_at_once(root: Path, files: list[bytes]) -> tuple[Any, ...]:
    with a_world(root, redis={"url": "unix:///nonexistent.sock"}) as world:
        file_and_judge(world, files)
        make_quiet(world)
        row = the_pair(world)
        assert row.generation == 1
        assert row.needed_at
        return verdicts(world), row.pet, row.ct, row.wanted


@pytest.mark.parametrize("order", [("PET AC", "CT IMAGES"), ("CT IMAGES", "PET AC")])
def test_a_pair_is_wished_for_once_when_both_are_there(
    world: World, phantom: dict[str, list[bytes]], order: tuple[str, str]
) -> None:
    assert file_and_judge(world, phantom[order[0]]) == []
    wishes = file_and_judge(world, phantom[order[1]]) or make_quiet(world)
    assert [wish.generation for wish in wishes] == [1]
    assert file_and_judge(world, phantom["SCOUT"]) in ([], wishes)
    make_quiet(world)
    assert the_pair(world).generation == 1


def paired(world: World, phantom: dict[str, list[bytes]]) -> Any:
    """File PET and CT and pretend that the pair was made."""
    file_and_judge(world, [*phantom["PET AC"], *phantom["CT IMAGES"]])
    make_quiet(world)
    with world.index.write() as connection:
        connection.execute(
            pair.update().values(
                done_generation=pair.c.generation, state="ready", revision=pair.c.generation
            )
        )
    return the_pair(world)


def late(content: bytes, z: float, number: int) -> bytes:
    position = [float(value) for value in tiny("CT IMAGES", 0).ImagePositionPatient]
    return changed(
        content,
        SOPInstanceUID=f"2.25.77{number}",
        InstanceNumber=number,
        ImagePositionPatient=[position[0], position[1], z],
    )


def test_a_slice_that_arrives_late_inside_the_pet_makes_a_new_generation(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    slices = phantom["CT IMAGES"]
    inner = slices[5]
    file_and_judge(world, [*phantom["PET AC"], *(one for one in slices if one is not inner)])
    make_quiet(world)
    row = the_pair(world)
    assert row.state == "held", "a CT with a gap"
    assert any("gap" in reason for reason in json.loads(row.reasons))
    wishes = file_and_judge(world, [inner]) or make_quiet(world)
    assert wishes
    assert the_pair(world).state == "pending"


def test_a_slice_far_outside_the_pet_makes_no_new_generation(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    before = paired(world, phantom)
    step, top = 8.0, max(
        float(tiny("CT IMAGES", number).ImagePositionPatient[2]) for number in range(12)
    )  # fmt: skip
    beyond = [late(phantom["CT IMAGES"][0], top + step * (n + 1), 13 + n) for n in range(8)]
    file_and_judge(world, beyond[:3])  # within two PET steps of it: they may be interpolated from
    make_quiet(world)
    near = the_pair(world)
    with world.index.write() as connection:
        connection.execute(pair.update().values(done_generation=pair.c.generation, state="ready"))
    file_and_judge(world, beyond[3:])
    make_quiet(world)
    after = the_pair(world)
    assert after.generation == near.generation
    assert after.state == "ready"
    assert before.generation <= near.generation


def test_a_duplicate_makes_no_new_generation(world: World, phantom: dict[str, list[bytes]]) -> None:
    before = paired(world, phantom)
    assert file_and_judge(world, [*phantom["CT IMAGES"], *phantom["PET AC"]]) == []
    make_quiet(world)
    assert the_pair(world).generation == before.generation


def test_a_replaced_slice_makes_a_new_generation(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    before = paired(world, phantom)
    world.put({"newer": changed(phantom["PET AC"][3], PatientName="Other^Name")})
    report = world.file(duplicates="replace")
    assert report.outcomes == {"replaced": 1}
    wishes = judge_studies(
        world.index,
        world.settings,
        {row.study_id for row in world.rows(series) if row.id in report.touched_series},
        report.touched_series,
    )
    assert [wish.generation for wish in wishes] == [before.generation + 1]


def test_a_pet_with_a_slice_missing_is_held_when_quiet_and_its_count_is_said(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    file_and_judge(world, [*phantom["PET AC"][:-1], *phantom["CT IMAGES"]])
    assert the_pair(world).state == "pending"
    make_quiet(world)
    row = the_pair(world)
    assert row.state == "held"
    assert "PET 7 of 8" in " ".join(json.loads(row.reasons))
    assert file_and_judge(world, phantom["PET AC"][-1:])
    assert the_pair(world).state == "pending"


def test_a_study_under_two_patients_is_held(world: World, phantom: dict[str, list[bytes]]) -> None:
    other = [changed(content, PatientID="SOMEBODY ELSE") for content in phantom["CT IMAGES"]]
    file_and_judge(world, [*phantom["PET AC"], *other])
    make_quiet(world)
    row = the_pair(world)
    assert row.state == "held"
    assert any("patient" in reason.lower() for reason in json.loads(row.reasons))
    assert world.rows(study)[0].two_patients


def test_a_study_without_ct_is_no_pair_and_not_held(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    file_and_judge(world, phantom["PET AC"])
    make_quiet(world)
    assert the_pair(world).state == "no_pair"


def test_a_study_without_pet_has_no_pair(world: World, phantom: dict[str, list[bytes]]) -> None:
    file_and_judge(world, phantom["CT IMAGES"])
    make_quiet(world)
    assert world.rows(pair) == []


def test_every_change_of_a_verdict_is_audited(
    world: World, phantom: dict[str, list[bytes]]
) -> None:
    file_and_judge(world, phantom["PET AC"][:4])
    file_and_judge(world, phantom["PET AC"][4:])
    kinds = [row.kind for row in world.rows(event)]
    assert kinds.count("filed") == 2
    assert kinds.count("series-complete") == 1


def test_verdicts_are_written_only_on_what_they_judged(
    world: World, phantom: dict[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice that is filed while the others are judged is judged too."""

    file_and_judge(world, phantom["PET AC"][:7])
    original = judging.decide_pair
    calls: list[int] = []

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            world.put({"last": phantom["PET AC"][7]})
            world.file()
        return original(*arguments, **options)

    monkeypatch.setattr(judging, "decide_pair", slow)
    (row,) = world.rows(series)
    judge_studies(world.index, world.settings, [row.study_id], [row.id])
    assert len(calls) == 2, "it judged once, on what was no longer so"
    assert world.rows(series)[0].state == "complete"
