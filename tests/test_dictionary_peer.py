"""Our metadata dictionary says what med-imagetools' own index says, wherever both say something.

It has an environment of its own, made by `make peers`, since it pins its dependencies; the
variable PETCT_MEDIMAGETOOLS_PYTHON names another one. docs/dictionary-report.md holds what was
found over the real data.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, missing
from filing_world import a_world
from pydicom import Dataset, dcmwrite
from pydicom.uid import MRImageStorage, generate_uid
from referring import segmentation, structure_set

from workers.export.dictionary import dictionary_rows
from workers.phantom.study import PhantomSpec, write_study

INTERPRETER = Path(
    os.environ.get("PETCT_MEDIMAGETOOLS_PYTHON") or PROJECT / ".venv/medimagetools/bin/python"
)
COUNTS = {"studies": 12, "pet-slices": 51, "dro": 10, "references": 16, "odd/dicom2nifti": 12}
"""Series of the folders of test data that the peer reads to the end."""

FIELDS = {
    "patient_ID": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "series_description": "SeriesDescription",
    "modality": "Modality",
    "reference_ct": "ReferencedSeriesUID",
    "reference_frame": "FrameOfReferenceUID",
    "orientation": "ImageOrientationPatient",
    "MR_repetition_time": "RepetitionTime",
    "MR_echo_time": "EchoTime",
    "MR_scan_sequence": "ScanningSequence",
    "MR_magnetic_field_strength": "MagneticFieldStrength",
}
ONLY_PEER = {("reference_ct", "SR")}
"""A structured report: the peer takes its evidence, the dictionary names no such source."""

pytestmark = pytest.mark.timeout(180)


def peer_index(folder: Path, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Index a folder with the peer; its fields of each (series, subseries)."""
    program = INTERPRETER.with_name("imgtools")
    if not program.exists():
        missing("no med-imagetools: make peers")
    command = [program, "index", "--dicom-dir", folder,
               "--output-dir", out, "--dataset-name", "data", "--n-jobs", "1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads((out / "data" / "crawl-cache.json").read_bytes())
    return {(uid, sub): one for uid, subs in found.items() for sub, one in subs.items()}


def plain(value: Any) -> tuple[str | float, ...]:
    """Reduce both notations to values: a list, its text, backslashes, digits of a number."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    parts = text.strip("[]").replace("\\", ",").replace("'", "").split(",")
    found: list[str | float] = []
    for part in parts:
        try:
            found.append(round(float(part), 4))
        except ValueError:
            if part.strip() not in ("", "None"):
                found.append(part.strip())
    return tuple(found)


def compare(folder: Path, tmp_path: Path) -> tuple[int, Counter[str], set[tuple[str, str]]]:
    """Assert that both indices of a folder agree: rows, fields of both, fields of theirs alone."""
    theirs = peer_index(folder, tmp_path / "peer")
    with a_world(tmp_path / "site") as world:
        paths = sorted(folder.rglob("*.dcm"))  # the peer looks at this suffix alone
        world.put({str(path.relative_to(folder)): path.read_bytes() for path in paths})
        world.file()
        ours = {(row["series"], row["subseries"]): row for row in dictionary_rows(world.index)}
    assert set(ours) == set(theirs)
    agreed: Counter[str] = Counter()
    only_peer = set()
    for key, row in ours.items():
        peer = theirs[key]
        assert row["instances"] == len(peer["instances"])
        assert row["instance_uid"] in peer["instances"]
        for field, keyword in FIELDS.items():
            mine, other = plain(row[field]), plain(peer.get(keyword))
            if mine and other:
                assert mine == other, (field, row["modality"])
                agreed[field] += 1
            elif other:
                only_peer.add((field, row["modality"]))
    return len(ours), agreed, only_peer


@pytest.mark.parametrize("name", COUNTS)
def test_every_field_that_both_fill_agrees(name: str, test_data: Path, tmp_path: Path) -> None:
    rows, agreed, only_peer = compare(test_data / name, tmp_path)
    assert rows == COUNTS[name]
    assert only_peer <= ONLY_PEER
    assert agreed["series"] == rows
    print(name, dict(agreed))


def magnetic(image: Dataset) -> Dataset:
    """A slice of MR in two acquisitions, with every MR field of the dictionary."""
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.Modality = "MR"
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["mr"])
    image.SOPInstanceUID = generate_uid(entropy_srcs=["mr", str(image.InstanceNumber)])
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.AcquisitionNumber = 1 + int(image.InstanceNumber) % 2
    image.ScanningSequence = ["SE", "IR"]
    image.RepetitionTime, image.EchoTime, image.MagneticFieldStrength = 4000, 102.5, 1.5
    image.ImagedNucleus = "1H"
    return image


def test_every_field_that_both_fill_agrees_for_a_phantom(tmp_path: Path) -> None:
    study = write_study(PhantomSpec(size="tiny"), tmp_path / "in")
    ct, pet = ([of.dataset(i) for i in range(of.count)]
               for of in (study.named("CT IMAGES"), study.named("PET AC")))  # fmt: skip
    more = [structure_set(ct), segmentation(pet)]
    more += [magnetic(study.named("CT IMAGES").dataset(i)) for i in range(4)]
    for number, dataset in enumerate(more):
        dcmwrite(tmp_path / "in" / f"more-{number}.dcm", dataset, enforce_file_format=True)
    rows, agreed, only_peer = compare(tmp_path / "in", tmp_path)
    assert rows == len(study.series) + 2 + 2
    assert not only_peer
    assert agreed["reference_ct"] >= 2
    whole = ("patient_ID", "study", "series", "modality")
    assert {name: agreed[name] for name in whole} == dict.fromkeys(whole, rows)
    assert {agreed[name] for name in agreed if name.startswith("MR_")} == {2}
    print(dict(agreed))
