"""Our metadata dictionary says what med-imagetools' own index says, wherever both say something.

Runs only where PETCT_MEDIMAGETOOLS_PYTHON names the interpreter of an environment that has
med-imagetools 2.16 (it pins its dependencies, so it cannot live in ours); skips otherwise, in CI
too. docs/dictionary-report.md holds what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filing_world import a_world

from workers.export.dictionary import dictionary_rows

INTERPRETER = os.environ.get("PETCT_MEDIMAGETOOLS_PYTHON", "")
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

pytestmark = [
    pytest.mark.skipif(not INTERPRETER, reason="PETCT_MEDIMAGETOOLS_PYTHON is not set"),
    pytest.mark.timeout(180),
]


def peer_index(folder: Path, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Index a folder with the peer; its fields of each (series, subseries)."""
    command = [Path(INTERPRETER).with_name("imgtools"), "index", "--dicom-dir", folder,
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


@pytest.mark.parametrize("name", COUNTS)
def test_every_field_that_both_fill_agrees(name: str, test_data: Path, tmp_path: Path) -> None:
    folder = test_data / name
    theirs = peer_index(folder, tmp_path / "peer")
    with a_world(tmp_path / "site") as world:
        paths = sorted(folder.rglob("*.dcm"))  # the peer looks at this suffix alone
        world.put({str(path.relative_to(folder)): path.read_bytes() for path in paths})
        world.file()
        ours = {(row["series"], row["subseries"]): row for row in dictionary_rows(world.index)}
    assert set(ours) == set(theirs)
    assert len(ours) == COUNTS[name]
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
    assert only_peer <= ONLY_PEER
    assert agreed["series"] == len(ours)
    print(name, dict(agreed))
