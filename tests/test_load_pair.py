"""A reader of a pair sees one revision whole, whatever happens to the folder meanwhile."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from volumes import Scan, suv, write

from workers.durable import exchange
from workers.errors import PairDamaged
from workers.pairing import load
from workers.pairing.build import PairContext, PairOptions, build_pair
from workers.pairing.load import load_pair

PET = Scan("PT", (9, 8, 7), (5.0, 4.0), 4.0, (-16.0, -18.0, 100.0), signed=False, uid="1.2.3.2")
CT = Scan("CT", (30, 30, 12), (1.5, 1.5), 3.0, (-22.0, -22.0, 98.0))


def make(folder: Path, value: int, *, grid: str = "pet") -> Path:
    """A pair whose two arrays hold `value` throughout and whose revision is `value`."""
    folder.mkdir(parents=True)
    pet = write(PET, folder.with_name(f"{folder.name}-pet"), lambda x, y, z: 0 * x + value)
    ct = write(CT, folder.with_name(f"{folder.name}-ct"), lambda x, y, z: 0 * x + value)
    context = PairContext("1.2.3", value, {"reasons": []}, (), "2026-01-02T03:04:05Z")
    build_pair(pet, ct, suv(), context, PairOptions(grid=grid), folder)
    return folder


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two revisions that differ in their values and in their shape."""
    root = tmp_path_factory.mktemp("revisions")
    return [make(root / "1", 1), make(root / "2", 2, grid="isotropic:3.5")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 0.05)


def copied(revision: Path, folder: Path) -> Path:
    shutil.copytree(revision, folder)
    return folder


def test_a_pair_opens_with_arrays_units_place_and_provenance(revisions: list[Path]) -> None:
    pair = load_pair(str(revisions[0]))
    assert pair.ct.shape == pair.pet.shape == (7, 8, 9) == pair.meta.shape
    assert (pair.ct.dtype, pair.pet.dtype) == (np.int16, np.float32)
    assert pair.units == "suvbw"
    assert pair.meta.revision == 1
    assert pair.meta.ct.units == "HU"
    image = pair.ct_image
    assert image.GetSize() == (9, 8, 7)
    assert image.GetSpacing() == pytest.approx((4.0, 5.0, 4.0))
    assert image.GetOrigin() == pytest.approx((-16.0, -18.0, 100.0))
    place = image.TransformIndexToPhysicalPoint((2, 3, 4))
    assert place == pytest.approx((pair.affine @ [2, 3, 4, 1])[:3])
    assert pair.pet_image.GetPixelIDTypeAsString() == "32-bit float"


def test_the_arrays_are_mapped_and_cannot_be_written(revisions: list[Path]) -> None:
    pair = load_pair(revisions[0])
    for array in (pair.ct, pair.pet):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0, 0] = 1


def test_no_descriptor_stays_open(revisions: list[Path]) -> None:
    load_pair(revisions[0])
    before = len(os.listdir("/proc/self/fd"))
    pairs = [load_pair(revisions[0]) for _ in range(20)]
    assert len(pairs) == 20
    assert len(os.listdir("/proc/self/fd")) <= before + 40  # two mappings a pair, no folders


def test_an_open_pair_survives_its_removal(tmp_path: Path, revisions: list[Path]) -> None:
    pair = load_pair(copied(revisions[0], tmp_path / "pair"))
    shutil.rmtree(tmp_path / "pair")
    assert (pair.pet == 1).all()


def test_a_reader_never_sees_a_mixed_or_partial_pair(
    tmp_path: Path, revisions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 10)
    home = copied(revisions[0], tmp_path / "Auto-Paired")
    ended = threading.Event()
    seen: set[int] = set()
    wrong: list[str] = []

    def read() -> None:
        while not ended.is_set():
            pair = load_pair(home)
            revision = pair.meta.revision
            values = {int(pair.ct.min()), int(pair.ct.max())}
            values |= {int(pair.pet.min()), int(pair.pet.max())}
            if values != {revision} or pair.ct.shape != pair.pet.shape:
                wrong.append(f"revision {revision} holds {values}")
            seen.add(revision)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 201):
            beside = copied(revisions[number % 2], tmp_path / f"new{number}")
            if not exchange(beside, home):
                pytest.fail("the file system of the tests cannot exchange two names")
            shutil.rmtree(beside)  # the old one goes at once: its readers must not care
    finally:
        ended.set()
        for reader in readers:
            reader.join(20)
    assert wrong == []
    assert seen == {1, 2}


def test_two_renames_leave_no_hole_for_a_patient_reader(
    tmp_path: Path, revisions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 10)
    home = tmp_path / "Auto-Paired"
    later = copied(revisions[1], tmp_path / "new")
    timer = threading.Timer(0.05, os.rename, (later, home))
    timer.start()
    assert load_pair(home).meta.revision == 2  # the name was not there at first
    timer.join()


def test_no_pair_is_said_soon(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        load_pair(tmp_path / "nowhere")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("ct.npy", lambda raw: raw[:-1], "bytes long"),
        ("ct.npy", lambda raw: b"rubbish" + raw, "is no array"),
        ("pet.npy", lambda raw: raw.replace(b"(7, 8, 9)", b"(7, 9, 8)"), "pair.json says"),
        ("pair.json", lambda raw: raw[:200], "pair.json"),
        ("pair.json", lambda raw: raw.replace(b"pair/1", b"pair/9"), "pair.json: schema"),
    ],
)
def test_a_damaged_pair_is_refused_with_its_reason(
    tmp_path: Path, revisions: list[Path], name: str, spoil, words: str
) -> None:
    home = copied(revisions[0], tmp_path / "pair")
    raw = (home / name).read_bytes()
    spoiled = spoil(raw)
    assert spoiled != raw
    (home / name).write_bytes(spoiled)
    with pytest.raises(PairDamaged, match=words):
        load_pair(home)


def test_arrays_of_another_pair_are_refused(tmp_path: Path, revisions: list[Path]) -> None:
    home = copied(revisions[0], tmp_path / "pair")
    shutil.copy(revisions[1] / "pet.npy", home / "pet.npy")
    with pytest.raises(PairDamaged, match=r"pet\.npy holds float32"):
        load_pair(home)


def test_what_a_later_version_adds_is_no_fault(tmp_path: Path, revisions: list[Path]) -> None:
    home = copied(revisions[0], tmp_path / "pair")
    raw = json.loads((home / "pair.json").read_text())
    raw["registration"] = {"method": "none"}
    raw["ct"]["kernel"] = "B30f"
    (home / "pair.json").write_text(json.dumps(raw))
    assert load_pair(home).meta.revision == 1


def test_a_link_in_the_place_of_an_array_is_not_followed(
    tmp_path: Path, revisions: list[Path]
) -> None:
    home = copied(revisions[0], tmp_path / "pair")
    (home / "ct.npy").unlink()
    (home / "ct.npy").symlink_to(revisions[0] / "ct.npy")
    with pytest.raises(OSError, match="symbolic links"):
        load_pair(home)
