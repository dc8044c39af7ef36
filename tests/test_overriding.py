"""A person's word on a pair: recorded, audited, kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import World, a_world, encoded

from daemon.sweeper import Sweeper
from workers import clock
from workers.adopting.finishing import restore_overrides
from workers.completeness.judging import judge_studies
from workers.completeness.overriding import (
    NoSuchNumber,
    NoSuchStudy,
    forget_override,
    override_pair,
    wait_longer,
)
from workers.filing.journal import read_facts
from workers.index.tables import event, pair, series, study
from workers.pairing.evidence import Override
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.both_databases

SPEC = PhantomSpec(size="tiny")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A study whose PET lacks a slice: held."""
    with a_world(tmp_path / "root", redis={"url": "unix:///nonexistent.sock"}) as one:
        made = make_study(SPEC)
        files = [
            encoded(made.named(name).dataset(number))
            for name, count in (("PET AC", 7), ("PET NAC", 8), ("CT IMAGES", 12))
            for number in range(count)
        ]
        one.put({str(number): content for number, content in enumerate(files)})
        report = one.file()
        judge_studies(one.index, one.settings, report.touched_studies, report.touched_series)
        Sweeper(one.index, one.settings).judge_quiet_series(clock.monotonic() + 1000)
        assert the_pair(one).state == "held"
        yield one


def the_pair(world: World) -> Any:
    (row,) = world.rows(pair)
    return row


def uid_of_series(name: str) -> str:
    return make_study(SPEC).named(name).series_uid


def test_a_forced_pair_is_built_and_stands_in_the_journal(world: World) -> None:
    wishes = override_pair(
        world.index, world.settings, SPEC.uid(), Override(pet=uid_of_series("PET AC"), forced=True)
    )
    assert len(wishes) == 1
    row = the_pair(world)
    assert (row.state, row.pet) == ("pending", uid_of_series("PET AC"))
    assert json.loads(row.override)["forced"] is True
    (fact,) = [fact for fact in read_facts(world.layout.archive) if fact["kind"] == "override"]
    assert (fact["study"], fact["pet"], fact["forced"]) == (SPEC.uid(), row.pet, True)
    assert [one.kind for one in world.rows(event)].count("override") == 1


def test_what_was_said_before_is_kept(world: World) -> None:
    override_pair(world.index, world.settings, SPEC.uid(), Override(weight_kg=81.5))
    override_pair(world.index, world.settings, SPEC.uid(), Override(forced=True))
    said = json.loads(the_pair(world).override)
    assert (said["weight_kg"], said["forced"]) == (81.5, True)


def test_what_was_said_is_taken_back(world: World) -> None:
    asked = (world.index, world.settings, SPEC.uid())
    override_pair(*asked, Override(weight_kg=81.5, forced=True))
    assert the_pair(world).state == "pending"
    forget_override(*asked, "anna")
    assert (the_pair(world).state, the_pair(world).override) == ("held", None)
    with pytest.raises(NoSuchStudy, match="nothing was decided"):
        forget_override(*asked)
    restore_overrides(world.index, world.settings)  # as into a lost index
    assert the_pair(world).override is None
    assert [one.kind for one in world.rows(event)].count("override-forgotten") == 1


def test_the_same_word_twice_makes_one_generation(world: World) -> None:
    for _ in range(2):
        override_pair(world.index, world.settings, SPEC.uid(), Override(forced=True))
    assert the_pair(world).generation == 1


@pytest.mark.parametrize("given", [Override(pet="9.9.9"), Override(ct="9.9.9", forced=True)])
def test_a_series_that_nobody_knows_is_refused_and_nothing_recorded(
    world: World, given: Override
) -> None:
    with pytest.raises(NoSuchStudy, match="9\\.9\\.9"):
        override_pair(world.index, world.settings, SPEC.uid(), given)
    assert the_pair(world).override is None
    assert not [fact for fact in read_facts(world.layout.archive) if fact["kind"] == "override"]


@pytest.mark.parametrize("uid", ["", "9.9.9", "' OR 1=1 --"])
def test_a_study_that_nobody_knows_is_refused(world: World, uid: str) -> None:
    with pytest.raises(NoSuchStudy):
        override_pair(world.index, world.settings, uid, Override(forced=True))
    with pytest.raises(NoSuchStudy):
        wait_longer(world.index, world.settings, uid)


def test_a_series_of_an_unrelated_patient_is_not_paired_by_its_uid(
    world: World, tmp_path: Path
) -> None:
    """Naming another patient's CT must not bring it into this study's pair."""
    other = make_study(PhantomSpec(patient_number=2, size="tiny"))
    ct = other.named("CT IMAGES")
    world.put({str(number): encoded(ct.dataset(number)) for number in range(ct.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    given = Override(ct=ct.series_uid, forced=True)
    with contextlib.suppress(NoSuchStudy):  # refused outright is as good
        override_pair(world.index, world.settings, SPEC.uid(), given)
    assert the_pair(world).ct != ct.series_uid


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, -70.0])
def test_a_number_that_nothing_has_is_refused_and_nothing_recorded(
    world: World, number: float
) -> None:
    uid = make_study(SPEC).study_uid
    for given in (Override(weight_kg=number), Override(dose_bq=number, forced=True)):
        with pytest.raises(NoSuchNumber, match="is none"):
            override_pair(world.index, world.settings, uid, given)
    assert the_pair(world).override is None
    assert not [fact for fact in read_facts(world.layout.archive) if fact["kind"] == "override"]


def test_waiting_longer_starts_the_hard_cap_anew(world: World) -> None:
    with world.index.write() as connection:
        connection.execute(
            pair.update().values(begun_boot="earlier", begun_monotonic=1.0, state="pending")
        )
        connection.execute(series.update().values(quiet=False, state="receiving"))
    before = clock.monotonic()
    wait_longer(world.index, world.settings, SPEC.uid())
    row = the_pair(world)
    assert row.begun_boot == clock.boot_id()
    assert row.begun_monotonic >= before
    assert row.state == "pending"
    assert [one.kind for one in world.rows(event)].count("wait") == 1
    assert len(world.rows(study)) == 1
