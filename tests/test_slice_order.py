"""Factors that differ from slice to slice meet their own slice, whatever the files are called."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from config.tables.work import PairingSettings
from workers.pairing.offline import pair_folder
from workers.phantom.spec import PhantomSpec
from workers.phantom.study import write_study

SPEC = PhantomSpec(size="tiny")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study(SPEC, tmp_path / "study", only=["CT IMAGES", "PET AC"])
    return tmp_path / "study"


def rename(folder: Path, name: Callable[[int], str], change: Callable[[Dataset], None]) -> None:
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        dataset = dcmread(path)
        change(dataset)
        path.unlink()
        dataset.save_as(folder / f"{name(number)}.tmp")
    for path in folder.glob("*.tmp"):
        path.rename(path.with_suffix(".dcm"))


def not_decay_corrected(dataset: Dataset) -> None:
    dataset.DecayCorrection = "NONE"
    dataset.CorrectedImage = [word for word in dataset.CorrectedImage if word != "DECY"]


@pytest.mark.parametrize("name", [lambda n: f"{99 - n:04d}", lambda n: f"{n * 5 % 8:04d}"])
def test_each_slice_of_an_uncorrected_pet_decays_by_its_own_time(
    study: Path, tmp_path: Path, name: Callable[[int], str]
) -> None:
    rename(study / "PET AC", lambda n: f"{n:04d}", not_decay_corrected)
    assert pair_folder(study, tmp_path / "sorted", PairingSettings()).state == "ready"
    rename(study / "PET AC", name, lambda dataset: None)
    assert pair_folder(study, tmp_path / "mixed", PairingSettings()).state == "ready"
    kept, mixed = (np.load(tmp_path / one / "pet.npy") for one in ("sorted", "mixed"))
    assert np.array_equal(kept, mixed)
    factors = json.loads((tmp_path / "mixed" / "pair.json").read_text())["suv"]["factor"]
    assert factors == sorted(factors), "beds follow one another from the feet"
    assert factors[0] < factors[-1]


def test_a_localizer_embedded_in_the_ct_is_left_out_of_the_volume(
    study: Path, tmp_path: Path
) -> None:
    write_study(SPEC, tmp_path / "scout", only=["SCOUT"])
    scout = dcmread(next((tmp_path / "scout" / "SCOUT").iterdir()))
    first = dcmread(next((study / "CT IMAGES").iterdir()))
    scout.SeriesInstanceUID = first.SeriesInstanceUID
    scout.save_as(study / "CT IMAGES" / "scout.dcm")
    made = pair_folder(study, tmp_path / "out", PairingSettings())
    assert made.state == "ready", made.reasons
