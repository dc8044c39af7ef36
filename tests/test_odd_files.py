"""Every odd file that we could find or think of, dropped in one folder and sent by C-STORE.

Nothing crashes and nothing vanishes: files in = filed + duplicates + quarantined + skipped. What
became of each is printed as a table (pytest -s), and written to the file that PETCT_ODD_TABLE
names.
"""

import os
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from installation import AE_TITLE, Installation, copied, dcmtk, sha256
from odd_files import TWINS, write_odd_files
from pydicom.data import get_charset_files, get_testdata_files
from running import wait_until

from workers.filing import quarantine
from workers.spool.batches import read_source, waiting_entries

INTAKE, REST = "receive,watch", "valkey,sweep,filing,pairing"
SET_ASIDE = ("quarantined", "variant", "conflict")
CLIENTS = (("dcmsend", "-dn", "-nuc"), ("storescu", "-R"))
"""The first keeps a compressed file as it is, the second sends what has no file meta."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Arrival:
    """What became of one entry: a row of the index."""

    entry: str
    outcome: str
    reason: str
    instance_uid: str


@dataclass
class Fate:
    """What became of one file."""

    path: Path
    client: str = ""
    """Which client sent it, if one could."""
    acknowledged: int = 0
    dropped: list[Arrival] = field(default_factory=list)
    sent: list[Arrival] = field(default_factory=list)


@pytest.fixture(scope="module")
def files(test_data, tmp_path_factory):
    """A folder with every odd file, the files by their path in it, and what we expect of ours."""
    top = tmp_path_factory.mktemp("odd")
    drop = top / "drop"
    expected = write_odd_files(drop / "ours", top / "valid")
    copied(test_data / "odd", drop / "data")
    for number, name in enumerate([*get_testdata_files(), *get_charset_files()]):
        source = Path(name)
        if source.is_file():
            target = drop / "pydicom" / f"{number:03d}" / source.name
            target.parent.mkdir(parents=True)
            shutil.copyfile(source, target)
    paths = [path for path in sorted(drop.rglob("*")) if path.is_file()]
    return drop, {str(path.relative_to(drop)): path for path in paths}, expected


def send_one(one: Installation, number: int, path: Path) -> tuple[str, int]:
    """Send one file under an AE title of its own; return who could, and what was acknowledged."""
    address = ["-aet", f"F{number}", "-aec", AE_TITLE, "127.0.0.1", str(one.port)]
    for client, *options in CLIENTS:
        done = subprocess.run(
            [dcmtk(client), "-v", *options, *address, os.fsencode(path)],
            env=os.environ | {"TCP_NODELAY": "1"},
            capture_output=True,
            timeout=60,
        )
        words = (done.stdout + done.stderr).decode(errors="replace")
        if count := words.count("Response (Success)"):
            return client, count
    return "", 0


@pytest.fixture(scope="module")
def filed(files, tmp_path_factory):
    """Drop and send every file, then file what came; return the installation and all fates."""
    drop, found, _ = files
    one = Installation(tmp_path_factory.mktemp("odd-files"))
    fates = {name: Fate(path) for name, path in found.items()}
    # first the intakes alone, so that each entry can be told from which file it came
    with one.run("--roles", INTAKE) as process:
        copied(drop, one.inbox / "drop")
        wait_until(lambda: not any(files for _, _, files in os.walk(one.inbox)), 60, "all claimed")
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(send_one, one, number, path)
                for number, path in enumerate(found.values())
            ]
        for fate, job in zip(fates.values(), jobs, strict=True):
            fate.client, fate.acknowledged = job.result()
        origins = origins_of(one, list(found))
        assert process.end() == 0
    with one.run("--roles", REST) as process:
        wait_until(lambda: one.arrived() >= len(origins), 120, "every entry filed")
        assert process.end() == 0
    for entry, *row in one.ask(
        "select entry, outcome, trim(coalesce(code, '') || ' ' || coalesce(reason, '')),"
        " instance_uid from arrival"
    ):
        way, name = origins[entry]
        getattr(fates[name], way).append(Arrival(entry, *row))
    write_table(fates)
    return one, fates


def origins_of(one: Installation, names: list[str]) -> dict[str, tuple[str, str]]:
    """Tell of each entry in the spool how it came, and which file it was."""
    origins = {}
    for entry in waiting_entries(one.layout):
        source = read_source(one.layout, entry.batch)
        if source.kind == "folder":
            origins[entry.identifier] = ("dropped", entry.path.removeprefix("drop/"))
        else:
            origins[entry.identifier] = ("sent", names[int(source.calling_ae.removeprefix("F"))])
    return origins


def write_table(fates: dict[str, Fate]) -> None:
    """Print what became of each file, and how many of each kind."""
    lines = []
    kinds: Counter[tuple[str, str]] = Counter()
    for name, fate in fates.items():
        dropped = " + ".join(each.outcome for each in fate.dropped)
        sent = " + ".join(each.outcome for each in fate.sent) or "not sendable"
        kinds[dropped, sent] += 1
        words = " | ".join(dict.fromkeys(each.reason for each in fate.dropped + fate.sent))
        lines.append(f"{dropped:12}  {sent:12}  {fate.client:8}  {ascii(name)[1:-1]:60}  {words}")
    counted = [f"{n:4}  dropped: {a:12}  sent: {b}" for (a, b), n in kinds.most_common()]
    table = "\n".join(["", "dropped       sent", *lines, "", *counted, f"{len(fates):4}  files"])
    print(table)
    if target := os.environ.get("PETCT_ODD_TABLE"):
        Path(target).write_text(table + "\n", encoding="utf-8")


def test_nothing_crashes(filed):
    one, _ = filed
    for process in one.runs:
        for word in ("role-ended", "role-killed", "Traceback", "job-failed", "entry-left"):
            assert word not in process.stderr


def test_every_file_that_went_in_is_counted_once(filed):
    one, fates = filed
    assert len(fates) > 300
    for name, fate in fates.items():
        assert len(fate.dropped) == 1, name
        assert len(fate.sent) == fate.acknowledged, name
    everything = [each for fate in fates.values() for each in fate.dropped + fate.sent]
    outcomes = Counter(each.outcome for each in everything)
    assert one.status()["instances"] == {
        "filed": outcomes["filed"],
        "duplicates": outcomes["duplicate"],
        "quarantined": sum(outcomes[outcome] for outcome in SET_ASIDE),
        "skipped": outcomes["skipped"],
        "waiting": 0,
    }
    assert outcomes.keys() == {"filed", "duplicate", *SET_ASIDE, "skipped"}
    one.assert_filed_once(each.instance_uid for each in everything if each.outcome == "filed")


def test_every_file_that_went_in_is_still_there(filed):
    one, fates = filed
    kept = dict(
        one.ask(
            "select instance_uid, home || '/studies/' || digits || '/' || file_name"
            " from instance join folder on folder.id = folder_id"
        )
    )
    for name, fate in fates.items():
        (dropped,) = fate.dropped
        if dropped.outcome == "filed":
            path = one.layout.archive / kept[dropped.instance_uid]
            assert path.resolve().is_relative_to(one.layout.archive.resolve())
            assert sha256(path) == sha256(fate.path), name
        for each in fate.dropped + fate.sent:
            if each.outcome == "duplicate":
                assert each.instance_uid in kept, name
            if each.outcome in SET_ASIDE:
                aside = quarantine.file_of(one.layout.quarantine, each.entry)
                assert aside.is_file(), name
                assert quarantine.read_reason(one.layout.quarantine, each.entry)["reason"], name
                assert each in fate.sent or sha256(aside) == sha256(fate.path), name


def test_each_file_of_ours_has_the_fate_that_its_name_tells(filed, files):
    _, fates = filed
    _, _, expected = files
    outcomes = {name: fates[f"ours/{name}"].dropped[0].outcome for name in expected}
    for one, other in TWINS:  # which of them comes first is nobody's to say
        if outcomes[one] != "filed":
            outcomes[one], outcomes[other] = outcomes[other], outcomes[one]
    assert outcomes == expected


def test_whatever_was_filed_from_the_folder_is_a_duplicate_from_the_wire(filed):
    _, fates = filed
    again = [
        each
        for fate in fates.values()
        if fate.dropped[0].outcome == "filed"
        for each in fate.sent
        # DCMTK misreads the UID of one (rtdose_rle.dcm), and we believe no sender about it
        if not each.reason.startswith("bad-identity the sender announced SOPInstanceUID '31'")
    ]
    assert len(again) > 150
    assert {each.outcome for each in again} == {"duplicate"}


def test_hostile_values_name_only_folders_below_the_archive(filed):
    one, _ = filed
    rows = one.ask(
        "select patient_ID, home from instance join folder on folder.id = folder_id"
        " join series on series.id = instance.series_id join study on study.id = study_id"
    )
    for _, home in rows:
        parts = home.split("/")
        assert len(parts) == 2
        for part in parts:
            assert 0 < len(part) <= 80
            assert part.isascii()
            assert not part.startswith(".")
            assert part.upper().partition(".")[0] not in ("CON", "NUL")
    patients = {patient for patient, _ in rows}
    assert {"../../etc", "/etc/passwd", "CON", "NUL.txt", "P" * 300} <= patients
    top = {path.name for path in one.layout.archive.iterdir()} - {".petct"}
    assert top == {home.split("/")[0] for _, home in rows}
