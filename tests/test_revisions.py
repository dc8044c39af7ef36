"""A study's pair while things change: what is held, what is made again, and what stays."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filing_world import MEMORY, World, encoded, make_world, other_pixels, recoded
from pydicom import Dataset
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.cli.options import acting_user
from daemon.sweeper import Sweeper
from workers import clock
from workers.completeness.overriding import NoSuchStudy, override_pair
from workers.filing.journal import read_facts
from workers.index.tables import event, pair, series
from workers.jobs import Workplace, file_now
from workers.pairing import build
from workers.pairing.evidence import Override
from workers.pairing.load import Pair, load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, PhantomStudy, make_study

PET, CT, NAC = "PET AC", "CT IMAGES", "PET NAC"
TINY = PhantomSpec(size="tiny")


class Site:
    """An installation without its processes: a clock to turn, and every step taken by hand."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.place = Workplace(world.settings)
        self.sweeper = Sweeper(world.index, world.settings)
        self.now = clock.monotonic()
        self.sweeper.tick(self.now)
        self.sent = 0

    def close(self) -> None:
        self.place.close()
        self.world.close()

    def send(self, *instances: Dataset | bytes) -> dict[str, int]:
        """File instances and judge what they touched, as a filing job does."""
        files = {}
        for one in instances:
            self.sent += 1
            files[f"{self.sent}"] = one if isinstance(one, bytes) else encoded(one)
        return file_now(self.place, self.world.put(files))

    def wait(self, seconds: float = 61) -> None:
        """Let time pass, and the sweeper look every 20 s: after a gap it would start anew."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 20)
            self.sweeper.tick(self.now)

    def make(self) -> list[str]:
        """Make every pair that is due."""
        due = [
            row
            for row in self.world.rows(pair)
            if row.state == "pending" and row.generation > row.done_generation
        ]
        place = self.place
        return [make_pair(place.index, place.settings, row.id, row.generation) for row in due]

    def settle(self) -> None:
        """Let everything become quiet, and make what is due."""
        self.wait()
        self.make()

    def row(self, number: int = 0) -> Any:
        return self.world.rows(pair)[number]

    @property
    def state(self) -> str:
        return str(self.row().state)

    @property
    def revision(self) -> int:
        return int(self.row().revision)

    @property
    def reasons(self) -> str:
        return "; ".join(json.loads(self.row().reasons))

    @property
    def loaded(self) -> Pair:
        found = load_pair(self.world.layout.archive / self.row().folder)
        assert found.meta.revision == self.revision
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(row.details) for row in self.world.rows(event) if row.kind == kind]

    def told(self, *words: str) -> str:
        """What a command prints."""
        root = str(self.world.settings.root)
        wide = {"COLUMNS": "200"}
        logger = logging.getLogger()
        before = logger.level, logger.handlers[:]
        try:  # a command sets logs up for its process, on a stderr that ends with it here
            done = CliRunner().invoke(
                app, [*words, "--root", root], env=wide, catch_exceptions=False
            )
        finally:
            logger.setLevel(before[0])
            logger.handlers[:] = before[1]
        assert done.exit_code == 0, done.output
        return done.stdout

    def override(self, **given: Any) -> None:
        uid = make_study(TINY).study_uid
        override_pair(self.world.index, self.world.settings, uid, Override(**given))

    def is_held_because(self, *words: str) -> None:
        assert self.state == "held", self.reasons
        listed = self.told("held")
        for word in words:
            assert word in self.reasons
            assert word in listed
        assert "held force|choose|forget|wait" in listed
        assert "held" in self.told("studies")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is nine tenths of a tiny pair's time, and tested elsewhere."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="rev") as top:

        def make(**overrides: Any) -> Site:
            site = Site(make_world(Path(top) / str(len(made)), **overrides))
            monkeypatch.setattr(clock, "monotonic", lambda: site.now)
            made.append(site)
            return site

        yield make
        for site in made:
            site.close()


@pytest.fixture
def site(sites: Callable[..., Site]) -> Site:
    return sites()


_phantoms: dict[PhantomSpec, dict[str, list[Dataset]]] = {}


def images(name: str, spec: PhantomSpec = TINY) -> list[Dataset]:
    """The instances of one series, of which the test may change anything."""
    known = _phantoms.setdefault(spec, {})
    if name not in known:
        one = make_study(spec).named(name)
        known[name] = [one.dataset(i) for i in range(one.count)]
    return copy.deepcopy(known[name])


def study(spec: PhantomSpec = TINY) -> PhantomStudy:
    return make_study(spec)


def changed(instances: list[Dataset], **values: Any) -> list[Dataset]:
    for one in instances:
        for keyword, value in values.items():
            if value is None:
                del one[keyword]
            else:
                setattr(one, keyword, value)
    return instances


def as_another_series(instances: list[Dataset], number: int, **values: Any) -> list[Dataset]:
    uid = generate_uid()
    for one in instances:
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return changed(instances, SeriesInstanceUID=uid, SeriesNumber=number, **values)


def moved(instance: Dataset, z: float) -> Dataset:
    """The same picture as another instance at another place."""
    x, y, _ = instance.ImagePositionPatient
    (one,) = as_another_series([instance], 0, ImagePositionPatient=[x, y, z])
    return one


def beyond(count: int) -> list[Dataset]:
    """CT slices that go on where the phantom's CT ends."""
    before, last = images(CT)[-2:]
    ends = float(last.ImagePositionPatient[2])
    step = ends - float(before.ImagePositionPatient[2])
    found = []
    for k in range(1, count + 1):
        one = moved(images(CT)[-1], ends + step * k)
        one.SeriesInstanceUID, one.SeriesNumber = last.SeriesInstanceUID, last.SeriesNumber
        one.InstanceNumber = last.InstanceNumber + k
        found.append(one)
    return found


def paired(site: Site) -> Pair:
    """File the phantom's CT and PET, make the pair."""
    site.send(*images(CT), *images(PET))
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)
    return site.loaded


# slices -----------------------------------------------------------------------------------------


def test_a_missing_pet_slice_is_waited_for_then_held_then_paired(site: Site) -> None:
    late = images(PET)
    missing = late.pop(3)
    z = float(missing.ImagePositionPatient[2])
    site.send(*images(CT), *late)
    words = f"PET 7 of 8, gap at z = {z:.1f} mm"
    assert site.state == "pending"
    assert words in site.reasons
    assert site.make() == []
    site.wait()
    site.is_held_because(words, "send the missing slices, force the pair, or choose another PET")
    assert site.events("pair-held")[-1]["reasons"] == json.loads(site.row().reasons)
    assert site.make() == []
    assert site.send(missing) == {"filed": 1}
    assert site.state == "pending"
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)
    assert site.loaded.pet.shape[0] == 8
    assert site.told("held").strip() == "Nothing is held."
    assert "ready, revision 1" in site.told("studies")


def test_the_last_pet_slice_missing_is_said_as_such(site: Site) -> None:
    site.send(*images(CT), *images(PET)[:-1])
    site.wait()
    site.is_held_because("PET 7 of 8, no gap: slices are missing at an end")


def test_forcing_over_a_missing_slice_says_so_and_the_slice_makes_it_whole(site: Site) -> None:
    late = images(PET)
    missing = late.pop(3)
    site.send(*images(CT), *late)
    site.wait()
    site.told("held", "force", study().study_uid)
    site.make()
    first = site.loaded.meta
    assert (site.state, first.shape[0]) == ("ready", 8)
    assert any("overruled: PET 7 of 8, gap" in one for one in first.decision["reasons"])
    assert any(words.startswith("PET: ") for words in first.warnings), first.warnings
    assert first.pet.resampled
    site.send(missing)
    site.settle()
    second = site.loaded.meta
    assert (site.state, site.revision) == ("ready", 2)
    assert (second.warnings, second.pet.resampled) == ((), False)


def test_a_late_ct_slice_within_the_pets_extent_makes_a_new_revision(
    sites: Callable[..., Site],
) -> None:
    site = sites(pairing={"minimum_coverage": 0.8})
    ct = images(CT)
    low_to_high = sorted(ct, key=lambda one: float(one.ImagePositionPatient[2]))
    site.send(*low_to_high[:10], *images(PET))
    site.settle()
    first = site.loaded
    assert first.meta.covered_fraction < 1
    assert any("the CT covers" in one for one in first.meta.warnings)
    site.send(low_to_high[10])
    assert site.state == "pending"
    assert site.loaded.meta.revision == 1  # the old pair stands until the new one is whole
    site.settle()
    second = site.loaded
    assert (site.state, site.revision) == ("ready", 2)
    assert second.meta.covered_fraction == 1
    assert first.meta.ct.sha256 != second.meta.ct.sha256
    assert low_to_high[10].SOPInstanceUID in second.meta.ct.inputs
    assert first.meta.pet.sha256 == second.meta.pet.sha256
    assert [one["revision"] for one in site.events("pair-ready")] == [1, 2]


def test_a_late_ct_slice_that_the_arrays_reach_for_makes_a_new_revision(site: Site) -> None:
    ct = sorted(images(CT), key=lambda one: float(one.ImagePositionPatient[2]))
    site.send(*ct[:-1], *images(PET))
    site.settle()
    assert site.revision == 1
    site.send(ct[-1])
    site.settle()
    assert (site.state, site.revision) == ("ready", 2)
    assert len(site.loaded.meta.ct.inputs) == 12


def test_a_late_ct_slice_beyond_the_pet_is_recorded_and_makes_no_revision(site: Site) -> None:
    *far, last = beyond(4)
    site.send(*images(CT), *images(PET), *far)
    site.settle()
    before = site.loaded.meta
    assert site.send(last) == {"filed": 1}
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)
    assert site.loaded.meta == before
    assert next(one.instances for one in site.world.rows(series) if one.modality == "CT") == 16


def test_a_late_ct_slice_far_away_does_not_hold_what_is_paired(site: Site) -> None:
    paired(site)
    _, far, _ = beyond(3)  # the CT now has a gap, beyond the PET
    site.send(far)
    site.settle()
    assert site.revision == 1
    assert site.loaded.meta.revision == 1


def test_a_duplicate_slice_changes_nothing(site: Site) -> None:
    before = paired(site).meta
    generation = site.row().generation
    duplicates = [recoded(encoded(images(PET)[3])), encoded(images(CT)[5])]
    assert site.send(*duplicates) == {"duplicate": 2}
    site.settle()
    assert (site.state, site.revision, site.row().generation) == ("ready", 1, generation)
    assert site.loaded.meta == before


def test_a_conflicting_slice_is_quarantined_and_changes_nothing(site: Site) -> None:
    before = paired(site).meta
    assert site.send(other_pixels(encoded(images(PET)[3]))) == {"conflict": 1}
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)
    assert site.loaded.meta == before
    assert "conflict" in site.told("quarantine")


def test_two_different_slices_at_one_position_are_held(site: Site) -> None:
    paired(site)
    twin = images(PET)[3]
    z = float(twin.ImagePositionPatient[2])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twin.PixelData = other_pixels(twin.PixelData)
    site.send(twin)
    site.wait()
    site.is_held_because("PET 9 of 8", f"2 different images at z = {z:.1f} mm")
    assert site.loaded.meta.revision == 1  # what was made stays to be read


# series -----------------------------------------------------------------------------------------


def test_a_better_ct_that_arrives_later_makes_a_new_revision_with_reasons(site: Site) -> None:
    lung = as_another_series(images(CT), 9, ConvolutionKernel="LUNG")
    site.send(*lung, *images(PET))
    site.settle()
    first = site.loaded.meta
    assert first.ct.series == lung[0].SeriesInstanceUID
    site.send(*images(CT))
    site.settle()
    meta = site.loaded.meta
    assert site.revision == 2
    assert meta.ct.series == study().named(CT).series_uid
    assert any("the PET names it" in reason for reason in meta.decision["reasons"])
    ranked = [(one["series_uid"], one["chosen"]) for one in meta.decision["ct_candidates"]]
    assert ranked == [(meta.ct.series, True), (first.ct.series, False)]
    assert "sharp kernel LUNG" in meta.decision["ct_candidates"][1]["reasons"]


def test_a_worse_ct_that_arrives_later_changes_nothing(site: Site) -> None:
    before = paired(site).meta
    site.send(*as_another_series(images(CT), 9, ConvolutionKernel="LUNG"))
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)
    assert site.loaded.meta == before


def test_a_forced_pair_stays_when_a_better_ct_arrives(site: Site) -> None:
    lung = as_another_series(images(CT), 9, ConvolutionKernel="LUNG")
    site.send(*lung, *images(PET))
    site.settle()
    uid = lung[0].SeriesInstanceUID
    pet = study().named(PET).series_uid
    said = site.told("held", "force", study().study_uid, "--pet", pet, "--ct", uid)
    assert "the pair is now pending" in said
    site.make()
    assert site.revision == 2
    site.send(*images(CT))
    site.settle()
    assert (site.state, site.revision) == ("ready", 2)
    meta = site.loaded.meta
    assert meta.ct.series == uid
    assert meta.decision["override"]["forced"] is True
    assert "forced by a recorded override" in meta.decision["reasons"]


def test_a_choice_is_recorded_in_the_journal_and_told_in_pair_json(site: Site) -> None:
    lung = as_another_series(images(CT), 9, ConvolutionKernel="LUNG")
    site.send(*lung, *images(CT), *images(PET))
    site.settle()
    uid = lung[0].SeriesInstanceUID
    site.told("held", "choose", study().study_uid, "--ct", uid)
    site.make()
    meta = site.loaded.meta
    assert (site.revision, meta.ct.series) == (2, uid)
    assert meta.decision["override"]["ct"] == uid
    assert "chosen by a recorded override" in meta.decision["reasons"]
    facts = [one for one in read_facts(site.world.layout.archive) if one["kind"] == "override"]
    assert [(one["study"], one["ct"], one["forced"]) for one in facts] == [
        (study().study_uid, uid, False)
    ]
    assert site.events("override") == [{"by": acting_user(), "ct": uid}]


def test_a_choice_that_the_index_does_not_know_is_refused_and_not_recorded(site: Site) -> None:
    paired(site)
    with pytest.raises(NoSuchStudy, match="no series"):
        site.override(ct="1.2.3")
    assert site.events("override") == []
    assert site.row().override is None


def test_weight_and_dose_that_a_person_gives_make_new_revisions_and_are_labelled(
    site: Site,
) -> None:
    first = paired(site)
    weight, dose = first.meta.suv.weight_kg, first.meta.suv.dose_bq
    assert weight is not None
    assert dose is not None
    site.told("held", "choose", study().study_uid, "--weight-kg", str(weight * 2))
    site.make()
    second = site.loaded
    assert site.revision == 2
    np.testing.assert_allclose(second.pet, first.pet * 2, rtol=1e-6)
    assert second.meta.suv.weight_kg == weight * 2
    assert second.meta.decision["override"]["weight_kg"] == weight * 2
    assert any("weight" in words for words in second.meta.suv.adaptations), second.meta.suv
    assert second.units == "suvbw_adapted"
    site.told("held", "choose", study().study_uid, "--dose-bq", str(dose * 4))
    site.make()
    third = site.loaded
    assert site.revision == 3
    np.testing.assert_allclose(third.pet, first.pet / 2, rtol=1e-6)
    assert third.meta.decision["override"]["weight_kg"] == weight * 2  # what was said before stays
    assert third.meta.decision["override"]["dose_bq"] == dose * 4
    facts = [one for one in read_facts(site.world.layout.archive) if one["kind"] == "override"]
    assert [one["dose_bq"] for one in facts] == [None, dose * 4]


def test_the_same_word_twice_makes_no_second_revision(site: Site) -> None:
    paired(site)
    for _ in range(2):
        site.override(weight_kg=50.0)
        site.make()
    assert site.revision == 2


# what stands against a pair ---------------------------------------------------------------------


def test_a_ct_in_another_frame_of_reference_is_held_until_forced(site: Site) -> None:
    site.send(*changed(images(CT), FrameOfReferenceUID="1.2.3.4"), *images(PET))
    site.wait()
    site.is_held_because("FrameOfReferenceUID of the CT (series 2) is another")
    assert site.make() == []
    site.told("held", "force", study().study_uid)
    site.make()
    assert (site.state, site.revision) == ("ready", 1)
    meta = site.loaded.meta
    assert not meta.same_frame_of_reference
    assert any(one.startswith("overruled: the FrameOfRef") for one in meta.decision["reasons"])
    assert any("not vouched for" in words for words in meta.warnings)


def ct_of_another_study(hours: float) -> list[Dataset]:
    """The CT as a study of its own, `hours` before the PET's."""
    late = images(PET)[0]
    at = int(late.AcquisitionTime[:2]) - hours
    date = int(late.AcquisitionDate) - (1 if at < 0 else 0)
    time = f"{int(at) % 24:02d}{late.AcquisitionTime[2:]}"
    return changed(
        images(CT), StudyInstanceUID="1.2.3.9", AccessionNumber="OTHER", StudyDate=str(date),
        SeriesDate=str(date), AcquisitionDate=str(date), AcquisitionTime=time, SeriesTime=time,
    )  # fmt: skip


@pytest.mark.parametrize("ct_first", [True, False])
def test_a_ct_of_another_study_of_the_patient_serves_within_a_day(
    site: Site, ct_first: bool
) -> None:
    parts = [ct_of_another_study(3), images(PET)]
    for part in parts if ct_first else reversed(parts):
        site.send(*part)
        site.wait()
    site.make()
    assert (site.state, site.revision) == ("ready", 1), site.reasons
    assert "of another study of the patient" in site.reasons
    assert site.row().folder.endswith(f"{images(PET)[0].AccessionNumber}/Auto-Paired")
    assert site.loaded.meta.ct.series == study().named(CT).series_uid


def test_a_ct_of_another_study_is_not_taken_after_more_than_a_day(site: Site) -> None:
    site.send(*changed(ct_of_another_study(3), AcquisitionDate="20200101", SeriesDate="20200101"))
    site.send(*images(PET))
    site.wait()
    assert site.state == "no_pair"


def test_a_ct_of_another_patient_is_never_taken(site: Site) -> None:
    site.send(*changed(ct_of_another_study(3), PatientID="SOMEBODY"), *images(PET))
    site.wait()
    assert site.state == "no_pair"


def test_a_study_with_an_uncorrected_pet_alone_has_no_pair_and_is_not_held(site: Site) -> None:
    site.send(*images(CT), *images(NAC))
    site.wait()
    assert site.state == "no_pair"
    assert "no attenuation-corrected PET volume in the study; series 3 is pet_nac" in site.reasons
    assert site.told("held").strip() == "Nothing is held."
    assert "no_pair" in site.told("studies")


def test_an_uncorrected_pet_can_be_paired_by_a_persons_word(site: Site) -> None:
    site.send(*images(CT), *images(NAC))
    site.wait()
    site.told("held", "force", study().study_uid, "--pet", study().named(NAC).series_uid)
    site.make()
    assert (site.state, site.revision) == ("ready", 1)
    meta = site.loaded.meta
    assert meta.suv.status == "refused"
    assert any(words.startswith("no SUV") for words in meta.warnings)


def test_a_study_without_a_ct_has_no_pair_until_one_arrives(site: Site) -> None:
    site.send(*images(PET), *images("SCOUT"))
    assert site.state == "pending"
    site.wait()
    assert site.state == "no_pair"
    assert "no CT volume for the PET; series 1 is ct_scout" in site.reasons
    assert site.told("held").strip() == "Nothing is held."
    site.send(*images(CT))
    site.settle()
    assert (site.state, site.revision) == ("ready", 1)


def test_a_study_of_ct_alone_begins_no_pair(site: Site) -> None:
    site.send(*images(CT))
    site.wait()
    assert site.world.rows(pair) == []


def test_of_two_pets_one_is_chosen_and_the_other_is_listed(site: Site) -> None:
    delayed = as_another_series(images(PET), 7, AcquisitionTime="235900", SeriesTime="235900")
    site.send(*images(CT), *delayed, *images(PET))
    site.settle()
    meta = site.loaded.meta
    assert meta.pet.series == study().named(PET).series_uid
    listed = [one["series_uid"] for one in meta.decision["pet_candidates"]]
    assert listed == [meta.pet.series, delayed[0].SeriesInstanceUID]
    site.told("held", "choose", study().study_uid, "--pet", delayed[0].SeriesInstanceUID)
    site.make()
    assert (site.revision, site.loaded.meta.pet.series) == (2, delayed[0].SeriesInstanceUID)


def test_a_pet_without_weight_is_paired_in_its_dicom_units_and_says_so(site: Site) -> None:
    site.send(*images(CT), *changed(images(PET), PatientWeight=None))
    site.settle()
    meta = site.loaded.meta
    assert (site.state, meta.pet.units, meta.suv.status) == ("ready", "BQML", "refused")
    assert "no SUV (PatientWeight is absent): the PET is in BQML" in meta.warnings


def test_where_suv_is_required_its_refusal_holds_until_the_weight_is_given(
    sites: Callable[..., Site],
) -> None:
    site = sites(pairing={"require_suv": True})
    site.send(*images(CT), *changed(images(PET), PatientWeight=None))
    site.wait()
    site.is_held_because("SUV is required and refused", "weight")
    site.told("held", "choose", study().study_uid, "--weight-kg", "70")
    site.make()
    assert (site.state, site.revision) == ("ready", 1)
    assert site.loaded.units == "suvbw_adapted"
    assert site.loaded.meta.suv.weight_kg == 70


def test_the_hard_cap_holds_what_never_ends_and_waiting_starts_it_anew(
    sites: Callable[..., Site],
) -> None:
    site = sites(completeness={"quiet_seconds": 1e6})
    late = images(PET)
    missing = late.pop(3)
    z = float(missing.ImagePositionPatient[2])
    site.send(*images(CT), *late)
    site.wait(89 * 60)
    assert site.state == "pending"
    site.wait(2 * 60)
    site.is_held_because(f"PET 7 of 8, gap at z = {z:.1f} mm", "after the hard cap")
    assert "waits again" in site.told("held", "wait", study().study_uid)
    assert site.state == "pending"
    assert len(site.events("wait")) == 1
    site.wait(89 * 60)
    assert site.state == "pending"
    site.wait(2 * 60)
    assert site.state == "held"
    site.send(missing)
    site.make()
    assert (site.state, site.revision) == ("ready", 1)


def test_a_study_under_two_patients_is_held(site: Site) -> None:
    site.send(*images(CT), *changed(images(PET), PatientID="SOMEBODY"))
    site.wait()
    site.is_held_because("the study arrived under two PatientIDs")
    assert site.make() == []


def test_a_second_patient_that_appears_while_a_pair_is_due_holds_it(site: Site) -> None:
    site.send(*images(CT), *images(PET))
    site.wait()
    assert site.state == "pending"
    site.send(*changed(images("SCOUT"), PatientID="SOMEBODY"))
    site.is_held_because("two PatientIDs")
    row = site.row()
    assert make_pair(site.place.index, site.place.settings, row.id, row.generation) == "done"
    assert (site.state, site.revision) == ("held", 0)


def test_what_arrives_while_a_pair_is_due_does_not_change_what_the_pair_says(site: Site) -> None:
    spec = PhantomSpec(size="tiny", references_ct=False)
    site.send(*images(CT, spec), *images(PET, spec))
    site.wait()
    assert (site.state, site.row().generation) == ("pending", 1)
    site.send(*as_another_series(images(CT, spec)[::2], 9, ConvolutionKernel="LUNG"))
    site.make()
    assert site.state == "ready"
    assert site.loaded.meta.decision["state"] == "ready"
    assert "same frame of reference" in site.loaded.meta.decision["reasons"]
