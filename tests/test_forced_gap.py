"""A person may force a pair over a missing slice; nobody else may."""

from pathlib import Path

import numpy as np
import pytest

from config.tables.work import PairingSettings
from workers.pairing.evidence import Override
from workers.pairing.load import load_pair
from workers.pairing.offline import pair_folder
from workers.phantom.study import PhantomSpec, write_study


@pytest.fixture
def gapped(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    write_study(PhantomSpec(size="tiny"), folder, only={"CT IMAGES", "PET AC"})
    (folder / "PET AC" / "0004.dcm").unlink()
    return folder


def test_a_gap_in_the_middle_is_held_with_its_place(gapped: Path, tmp_path: Path) -> None:
    result = pair_folder(gapped, tmp_path / "pair", PairingSettings())
    assert result.state == "held"
    assert "PET 7 of 8, gap at z = 205.0 mm" in result.reasons[0]
    assert not (tmp_path / "pair").exists()


def test_a_forced_pair_interpolates_over_the_gap_and_says_so(gapped: Path, tmp_path: Path) -> None:
    forced = pair_folder(gapped, tmp_path / "pair", PairingSettings(), Override(forced=True))
    assert forced.state == "ready"
    pair = load_pair(tmp_path / "pair")
    assert any("interpolated over, because the pair was forced" in w for w in pair.meta.warnings)

    write_study(PhantomSpec(size="tiny"), tmp_path / "whole", only={"CT IMAGES", "PET AC"})
    pair_folder(tmp_path / "whole", tmp_path / "whole-pair", PairingSettings())
    whole = load_pair(tmp_path / "whole-pair")
    assert pair.pet.shape == whole.pet.shape
    same = [
        bool(np.allclose(a, b, rtol=1e-5, atol=1e-5))
        for a, b in zip(pair.pet, whole.pet, strict=True)
    ]
    assert same.count(False) == 1, "only the missing slice is interpolated"
