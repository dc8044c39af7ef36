"""From the wire and from a folder to pairs, with nothing configured and clients that are not ours.

The studies are real ones (`test_data`), DCMTK sends them, cp and mv drop them.
"""

import re
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pydicom
import pytest
from installation import Installation, copied
from running import Running, wait_until

from workers.pairing.load import load_pair

PAIR_SECONDS = 15
STUDIES = ("STS_002", "STS_003")


@pytest.fixture
def installation(tmp_path):
    return Installation(tmp_path)


@pytest.fixture(scope="module")
def studies(test_data):
    """The files of each study, and their SOPInstanceUIDs."""
    found = {}
    for name in STUDIES:
        files = [
            path for path in sorted((test_data / "studies" / name).rglob("*")) if path.is_file()
        ]
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
        found[name] = dict(zip(files, (header.SOPInstanceUID for header in headers), strict=True))
        assert len({header.StudyInstanceUID for header in headers}) == 1
        assert {header.Modality for header in headers} == {"PT", "CT", "MR", "RTSTRUCT"}
    return found


class PairWatch:
    """Notes from outside, by the wall clock, when the pair of a patient could first be loaded."""

    def __init__(self, archive: Path, patients) -> None:
        self.seen: dict[str, float] = {}
        self._archive = archive
        self._patients = patients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            for patient in self._patients:
                there = list(self._archive.glob(f"{patient}/*/Auto-Paired/pair.json"))
                if there and patient not in self.seen:
                    load_pair(there[0].parent)
                    self.seen[patient] = time.time()

    def __enter__(self) -> "PairWatch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def settled(one: Installation, arrivals: int, pairs: int) -> bool:
    ready = one.ask("select count(*) from pair where state = 'ready'")[0][0]
    return one.arrived() >= arrivals and ready >= pairs


def pairs_of(one: Installation):
    return one.ask("select * from pair order by id")


def assert_nobody_died(process: Running) -> None:
    assert "role-ended" not in process.stderr
    assert "role-killed" not in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.both_databases
def test_studies_from_wire_and_folder_are_filed_once_and_paired_in_time(
    installation, studies, test_data, tmp_path, capsys
):
    one = installation
    wire, folder = (list(studies[name]) for name in STUDIES)
    total = len(wire) + len(folder)
    source = {name: copied(test_data / "studies" / name, tmp_path / name) for name in STUDIES}
    second = copied(test_data / "studies" / "STS_003", tmp_path / "second")
    with one.run() as process:
        with PairWatch(one.layout.archive, STUDIES) as watch, ExitStack() as stack:
            began = time.time()
            quarters = (wire[start::4] for start in range(4))
            senders = [stack.enter_context(one.sending(files)) for files in quarters]
            subprocess.run(["cp", "-r", source["STS_003"], one.inbox], check=True, timeout=60)
            subprocess.run(["mv", second, one.inbox], check=True, timeout=60)
            dropped = time.time()
            for sender in senders:
                assert sender.process.wait(60) == 0, sender.stderr
            acknowledged = time.time()
            wait_until(
                lambda: settled(one, total + len(folder), 2) and len(watch.seen) == 2,
                60,
                "every instance filed and both pairs ready",
            )
        assert_filed_and_paired(one, studies, duplicates=len(folder))
        report(capsys, one, watch, began, acknowledged, dropped)
        # from before the first byte to a pair that can be read: more than what is promised
        assert max(watch.seen.values()) - began < PAIR_SECONDS
        assert all(seconds < PAIR_SECONDS for seconds in latencies(one).values())

        before = one.tree(), one.ask("select * from instance order by id"), pairs_of(one)
        other_way_round(one, studies, source["STS_002"], arrivals=total + len(folder))
        after = one.tree(), one.ask("select * from instance order by id"), pairs_of(one)
        assert after == before
        assert_filed_and_paired(one, studies, duplicates=len(folder) + total)

        assert process.end() == 0
        assert_nobody_died(process)


def other_way_round(one, studies, folder, arrivals):
    """Send by C-STORE what was dropped, drop what was sent; DCMTK encodes anew on the way."""
    with one.sending(list(studies["STS_003"])) as sender:
        subprocess.run(["cp", "-r", folder, one.inbox], check=True, timeout=60)
        assert sender.process.wait(60) == 0, sender.stderr
    more = sum(len(files) for files in studies.values())
    wait_until(lambda: one.arrived() >= arrivals + more, 60, "every duplicate counted")
    anew = one.ask(
        "select count(*) from arrival join instance using (instance_uid)"
        " where outcome = 'duplicate' and arrival.dataset_sha256 != instance.dataset_sha256"
    )
    assert anew[0][0] > 0, "bytes that differ are what this is about"


def assert_filed_and_paired(one, studies, duplicates):
    uids = [uid for files in studies.values() for uid in files.values()]
    one.assert_filed_once(uids)
    status = one.status()
    assert status["instances"] == {
        "filed": len(uids),
        "duplicates": duplicates,
        "quarantined": 0,
        "skipped": 0,
        "waiting": 0,
    }
    assert status["studies"] == 2
    assert status["pairs"] == {"ready": 2, "held": 0, "pending": 0}
    assert list(one.layout.quarantine.iterdir()) == []
    for path, uid in one.ask(
        "select home || '/studies/' || digits || '/' || file_name, instance_uid"
        " from instance join folder on folder.id = folder_id"
    ):
        assert re.fullmatch(rf"[^/]+/[^/]+/studies/(\d{{5}}/){{4}}{re.escape(uid)}\.dcm", path)
        assert (one.layout.archive / path).is_file()
    modalities = Counter(
        (row[0], row[1])
        for row in one.ask(
            'select study."patient_ID", series.modality from instance'
            " join series on series.id = series_id join study on study.id = study_id"
        )
    )
    for name, files in studies.items():
        assert sum(n for (patient, _), n in modalities.items() if patient == name) == len(files)
        pair = load_pair(next(one.layout.archive.glob(f"{name}/*/Auto-Paired")))
        assert pair.ct.shape == pair.pet.shape == (modalities[name, "PT"], *pair.pet.shape[1:])
        assert pair.units == "suvbw"


def latencies(one) -> dict[str, float]:
    """Seconds from the last PET or CT instance in the index to the pair in its place."""
    rows = one.ask(
        'select "patient_ID", needed_at, ready_at from pair join study on study.id = study_id'
    )
    moment = datetime.fromisoformat
    return {
        patient: (moment(ready) - moment(needed)).total_seconds() for patient, needed, ready in rows
    }


def report(capsys, one, watch, began, acknowledged, dropped):
    with capsys.disabled():
        for name, end in zip(STUDIES, (acknowledged, dropped), strict=True):
            print(
                f"\n{name}: pair readable {watch.seen[name] - began:.1f} s after the first byte,"
                f" {watch.seen[name] - end:.1f} s after the last;"
                f" {latencies(one)[name]:.1f} s after the last PET or CT row",
                end="",
            )
        print()
