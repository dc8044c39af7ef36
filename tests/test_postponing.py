"""A study is not judged after each batch, and still as soon as its verdict can change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filing_world import SENDER, World, a_world, encoded

from workers import jobs
from workers.completeness.postponing import FRESH_SECONDS, GrownSeries, may_wait
from workers.index.tables import pair, series
from workers.phantom.study import PhantomSpec, make_study
from workers.spool.batches import BatchWriter

pytestmark = pytest.mark.both_databases

CT = GrownSeries("CT", "ct", 200, None, two_patients=False)
PET = GrownSeries("PT", "pet_ac", 200, 300, two_patients=False)


def waits(*grown: GrownSeries, more_comes: bool = True, ago: float | None = 0.1) -> bool:
    return may_wait(grown, more_comes=more_comes, judged_ago=ago)


def test_while_more_comes_a_verdict_that_cannot_change_waits() -> None:
    assert waits(CT, PET)


@pytest.mark.parametrize(
    "one",
    [
        replace(PET, instances=300),
        replace(PET, instances=301),
        replace(PET, expected=None),
        replace(PET, role="other"),
        replace(PET, role=None),
        replace(CT, role=None),
        replace(CT, two_patients=True),
        replace(CT, beside_whole_pet=True),
    ],
)
def test_one_series_whose_verdict_may_change_is_enough_to_judge(one: GrownSeries) -> None:
    assert not waits(CT, PET, one)


def test_the_last_of_a_batch_and_what_was_not_judged_for_long_is_judged() -> None:
    assert not waits(CT, more_comes=False)
    assert not waits(CT, ago=None)
    assert not waits(CT, ago=FRESH_SECONDS)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", redis={"url": "unix:///nonexistent.sock"}) as one:
        yield one


def test_a_pet_is_complete_with_its_last_slice_although_its_sender_stays(world: World) -> None:
    pet = next(one for one in make_study(PhantomSpec(size="tiny")).series if one.name == "PET AC")
    slices = [encoded(pet.dataset(number)) for number in range(pet.count)]
    place = jobs.Workplace(world.settings)
    states = []
    try:
        with BatchWriter(world.layout, SENDER) as association:
            for content in slices:
                jobs.file_now(place, [association.publish((content,))])
                (row,) = world.rows(series)
                states.append((row.state, row.state_reasons.count(f"PET {row.instances} of")))
    finally:
        place.close()
    assert [state for state, _ in states] == ["receiving"] * (len(slices) - 1) + ["complete"]
    told = [current for _, current in states[:-1]]
    assert told[0] == 1, "the first is judged"
    assert not all(told), "and not each of those between"


def test_a_pair_is_due_with_the_last_ct_slice_that_it_needs_although_its_sender_stays(
    world: World,
) -> None:
    study = make_study(PhantomSpec(size="tiny"))
    pet, ct = study.named("PET AC"), study.named("CT IMAGES")
    place = jobs.Workplace(world.settings)
    due = []
    try:
        with BatchWriter(world.layout, SENDER) as association:
            for part in (pet, ct):
                for number in range(part.count):
                    content = encoded(part.dataset(number))
                    jobs.file_now(place, [association.publish((content,))])
                    due.append(sum(row.generation for row in world.rows(pair)))
    finally:
        place.close()
    assert due[pet.count] == 0
    assert due[-1] > 0, "with the sender there still"
