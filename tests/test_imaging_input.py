"""The input tree of data2bids dropped into a running system that de-identifies it on the way.

<subject>/imaging/<subject>_<session>/…, loose files and archives of all five kinds; the patients,
studies and times are a phantom's, with an identity that is looked for afterwards everywhere.
"""

from __future__ import annotations

import csv
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filing_world import encoded
from installation import Installation
from pydicom import Dataset, dcmread
from referring import segmentation, structure_set
from running import Running, petct, wait_until

from config.tables.work import PairingSettings
from workers.deidentify.removed import OF_DATA2BIDS
from workers.deidentify.rules import REPLACED
from workers.pairing.load import load_pair
from workers.pairing.offline import pair_folder
from workers.phantom.study import PhantomSpec, make_study

MARK = "QZORIGINAL"
"""Part of every value that says who it was, of names of files inside archives too."""
CONFIG = """
[[sources]]
folder = "inbox"
deidentify = "dicognito"
patient_id = "subject"
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROLES = "valkey,sweep,watch,filing,pairing"
FIRST, SECOND = "EPL31_LHS_0001", "EPL31_LHS_0002"
SESSIONS = {
    f"{FIRST}_01": (FIRST, 1, 1),
    f"{FIRST}_02": (FIRST, 1, 2),
    f"{SECOND}_01": (SECOND, 2, 1),
}


def identified(dataset: Dataset, patient: int) -> Dataset:
    """Give every attribute of both tables a value of this patient's, in a sequence too."""
    request = Dataset()
    for place in (dataset, request):
        place.PatientName = f"{MARK}^PATIENT{patient}"
        for number, keyword in enumerate((*REPLACED, *OF_DATA2BIDS)):
            setattr(place, keyword, f"{MARK}{patient}{number:02d}")
    request.OtherPatientNames = [f"{MARK}^A{patient}", f"{MARK}^B{patient}"]
    dataset.RequestAttributesSequence = [request]
    dataset.ReferringPhysicianName = f"{MARK}^DOCTOR"
    return dataset


class Drop:
    """What is dropped: the tree, and every instance in it before de-identification."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.originals: list[Dataset] = []
        self.archives = 0
        self.slow = 0
        """Arrivals that the .tar.bz2 makes: its members and itself."""
        for session, (subject, patient, study) in SESSIONS.items():
            self._session(f"{subject}/imaging/{session}", patient, study)

    def _session(self, place: str, patient: int, study: int) -> None:
        spec = PhantomSpec(patient, study, size="tiny")
        whole = make_study(spec)
        images = {
            name: [identified(of.dataset(i), patient) for i in range(of.count)]
            for name, of in (("t1w", whole.named("CT IMAGES")), ("dwi", whole.named("PET AC")))
        }
        structures = identified(structure_set(images["t1w"]), patient)
        segments = identified(segmentation(images["dwi"]), patient)
        self.originals += [*images["t1w"], *images["dwi"], structures, segments]
        t1w, dwi = (
            {f"{name}_scan_{number:02d}.dcm": encoded(one) for number, one in enumerate(many, 1)}
            for name, many in images.items()
        )
        more = {f"{MARK}_JANE/rs.dcm": encoded(structures)}
        seg = {"seg": encoded(segments)}
        if (patient, study) == (1, 1):
            self._loose(f"{place}/T1w_scan", t1w)
            self._loose(f"{place}/T2w_scan", dwi)
            self._pack(f"{place}/dwi_scan/dwi_scan.tar.gz", more | seg)
        elif patient == 1:
            self._pack(f"{place}/t1w_scan.tgz", t1w | more)
            self._pack(f"{place}/dwi_scan.tar.bz2", dwi | seg)
            self.slow = len(dwi | seg) + 1
        else:
            self._loose(place, t1w)
            self._pack(f"{place}/dwi_scan.zip", dwi)
            self._pack(f"{place}/more.tar", more | seg)

    def _loose(self, place: str, files: dict[str, bytes]) -> None:
        self.files |= {f"{place}/{name}": content for name, content in files.items()}

    def _pack(self, path: str, files: dict[str, bytes]) -> None:
        self.archives += 1
        buffer = io.BytesIO()
        if path.endswith(".zip"):
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            suffix = path.rpartition(".")[2].replace("tgz", "gz")
            how = f"w:{suffix.replace('tar', '')}"
            with tarfile.open(fileobj=buffer, mode=how) as archive:  # type: ignore[call-overload]
                for name, content in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        self.files[path] = buffer.getvalue()

    def write(self, folder: Path, but: str) -> bytes:
        """Write all files but one, and return that one's bytes."""
        for name, content in self.files.items():
            if name != but:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return self.files[but]


@pytest.fixture(scope="module")
def drop() -> Drop:
    return Drop()


@pytest.fixture(scope="module")
def taken(drop: Drop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Installation, Running]:
    """An installation that took the drop to its pairs and ended."""
    one = Installation(tmp_path_factory.mktemp("imaging"))
    one.root.mkdir()
    config = one.root / "config.toml"
    config.write_text(CONFIG)
    slow = next(name for name in drop.files if name.endswith(".bz2"))
    whole = drop.write(one.folder / "input", but=slow)
    total = len(drop.originals) + drop.archives
    with one.run("--config", str(config), "--roles", ROLES) as process:
        place = one.inbox / "input" / slow
        place.parent.mkdir(parents=True)
        with open(place, "wb") as writing:
            writing.write(whole[:2000])
            writing.flush()
            subprocess.run(["cp", "-r", one.folder / "input", one.inbox], check=True, timeout=60)
            wait_until(lambda: one.arrived() >= total - drop.slow, 100, "all that is whole filed")
            assert place.exists(), "an archive that is still being written is left alone"
            writing.write(whole[2000:])
        wait_until(lambda: one.arrived() >= total, 100, "every file filed")
        wait_until(
            lambda: one.ask("select count(*) from pair where state = 'ready'") == [(3,)],
            60, "three pairs",
        )  # fmt: skip
        wait_until(lambda: not one.left_in_spool(), 40, "an empty spool")
        assert process.end() == 0
    return one, process


def filed(one: Installation) -> list[Dataset]:
    return [dcmread(path) for path in sorted(one.layout.archive.rglob("*/studies/**/*.dcm"))]


def test_every_file_and_member_is_filed_and_the_archives_are_gone(
    drop: Drop, taken: tuple[Installation, Running]
) -> None:
    one, _ = taken
    outcomes = dict(one.ask("select outcome, count(*) from arrival group by outcome"))
    assert outcomes == {"filed": len(drop.originals), "expanded": drop.archives}
    assert len(filed(one)) == len(drop.originals)
    assert not [path for path in one.inbox.rglob("*") if path.is_file()]
    assert not list(one.layout.quarantine.iterdir())


def test_subject_and_session_stand_beside_each_series(
    taken: tuple[Installation, Running],
) -> None:
    one, _ = taken
    found = one.ask(
        'select subject, session, "patient_ID", count(*), count(distinct study.study) from series'
        " join study on study.id = series.study_id group by 1, 2, 3 order by 2"
    )
    assert found == [(SESSIONS[name][0], name, SESSIONS[name][0], 4, 1) for name in SESSIONS]
    assert {path.name for path in one.layout.archive.iterdir()} == {".petct", FIRST, SECOND}


def test_both_tables_of_attributes_hold_for_every_filed_instance(
    taken: tuple[Installation, Running],
) -> None:
    one, _ = taken
    names: dict[str, set[str]] = {}
    for dataset in filed(one):
        for place in (dataset, dataset.RequestAttributesSequence[0]):
            assert not [keyword for keyword in REPLACED if not place[keyword].value]
            assert not [keyword for keyword in OF_DATA2BIDS if keyword in place]
        assert MARK not in str(dataset)
        names.setdefault(dataset.PatientID, set()).add(str(dataset.PatientName))
    assert set(names) == {FIRST, SECOND}
    assert all(len(of) == 1 for of in names.values()), "one name for a patient in all studies"
    assert names[FIRST] != names[SECOND]


def test_nothing_of_who_it_was_is_left_anywhere(
    drop: Drop, taken: tuple[Installation, Running]
) -> None:
    one, process = taken
    secrets = {MARK, "t1w_scan", "T1w_scan", "T2w_scan", "dwi_scan"}
    for dataset in drop.originals:
        secrets |= {dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID}
    everything = [process.stdout.encode(), process.stderr.encode()]
    for words in (["status"], ["status", "--json"], ["events"]):
        command = petct(*words, "--root", one.root)
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert done.stdout
        everything += [done.stdout, done.stderr]
    for path in one.root.rglob("*"):
        if not path.is_relative_to(one.inbox):  # its emptied folders are the sender's for a while
            everything.append(str(path.relative_to(one.root)).encode())
        if path.is_file():
            everything.append(path.read_bytes())
    assert sum(map(len, everything)) > 100_000
    found = [secret for secret in secrets if any(secret.encode() in one for one in everything)]
    assert not found


def test_structures_and_segments_still_name_their_series(
    taken: tuple[Installation, Running],
) -> None:
    one, _ = taken
    command = petct("export", "csv", "-", "--root", one.root)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = {row["series"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    referring = [row for row in rows.values() if row["modality"] in ("RTSTRUCT", "SEG")]
    assert len(referring) == 2 * len(SESSIONS)
    for row in referring:
        target = rows[row["reference_ct"]]
        assert target["modality"] == {"RTSTRUCT": "CT", "SEG": "PT"}[row["modality"]]
        assert (target["study"], target["reference_frame"]) == (
            row["study"],
            row["reference_frame"],
        )
    instances = {dataset.SOPInstanceUID for dataset in filed(one)}
    for dataset in filed(one):
        if dataset.Modality == "RTSTRUCT":
            series = (
                dataset.ReferencedFrameOfReferenceSequence[0]
                .RTReferencedStudySequence[0]
                .RTReferencedSeriesSequence[0]
            )
            named = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
            assert len(named) > 1
            assert named <= instances


def test_the_pairs_are_those_of_the_originals_suv_and_all(
    drop: Drop, taken: tuple[Installation, Running], tmp_path: Path
) -> None:
    one, _ = taken
    folders = dict(one.ask("select distinct series.session, pair.folder from pair"
                           " join series on series.study_id = pair.study_id"))  # fmt: skip
    for session, (_, patient, study) in SESSIONS.items():
        wanted = make_study(PhantomSpec(patient, study, size="tiny")).study_uid
        before = tmp_path / session
        before.mkdir()
        for number, dataset in enumerate(drop.originals):
            if dataset.StudyInstanceUID == wanted:
                (before / str(number)).write_bytes(encoded(dataset))
        assert pair_folder(before, tmp_path / f"{session}-pair", PairingSettings()).state == "ready"
        ours = load_pair(one.layout.archive / folders[session])
        theirs = load_pair(tmp_path / f"{session}-pair")
        assert ours.units == theirs.units == "suvbw"
        assert ours.meta.suv.factor == theirs.meta.suv.factor
        assert np.array_equal(ours.pet, theirs.pet)
        assert np.array_equal(ours.ct, theirs.ct)
