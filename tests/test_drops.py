"""5,000 files in 260 nested folders, however they come and whenever the watcher starts."""

import os
import shutil
import subprocess
import time

import pytest
from conftest import missing
from installation import Installation
from running import wait_until

from workers.phantom.study import write_many

FILES, FOLDERS = 5000, 260
ROLES = "valkey,sweep,watch,filing"


def copy(source, inbox):
    subprocess.run(["cp", "-r", source, inbox], check=True, timeout=60)


def move(source, inbox):
    aside = inbox.parent.parent / "aside"
    shutil.copytree(source, aside)
    subprocess.run(["mv", aside, inbox], check=True, timeout=60)


def link(source, inbox):
    subprocess.run(["cp", "-rl", source, inbox], check=True, timeout=60)


def synchronise(source, inbox):
    if shutil.which("rsync") is None:
        missing("no rsync")
    subprocess.run(["rsync", "-a", source, inbox], check=True, timeout=60)


@pytest.fixture(scope="module")
def delivery(tmp_path_factory):
    """The folder to drop, and the SOPInstanceUIDs of its files."""
    folder = tmp_path_factory.mktemp("delivery") / "drop"
    written = write_many(folder, FILES, folders=FOLDERS)
    assert len(written) == FILES
    assert sum(len(folders) for _, folders, _ in os.walk(folder)) >= FOLDERS
    return folder, list(written)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("when", ["while-it-runs", "before-it-starts"])
@pytest.mark.parametrize("how", [copy, move, link, synchronise])
def test_every_file_of_a_large_drop_is_filed(how, when, delivery, tmp_path, capsys):
    folder, uids = delivery
    one = Installation(tmp_path)
    if when == "before-it-starts":
        one.inbox.mkdir(parents=True)
        how(folder, one.inbox)
    with one.run("--roles", ROLES) as process:
        began = time.monotonic()
        if when == "while-it-runs":
            how(folder, one.inbox)
        wait_until(lambda: one.arrived() >= FILES, 240, "every file filed")
        took = time.monotonic() - began
        one.assert_filed_once(uids)
        found = one.status()
        assert found["instances"] == {
            "filed": FILES,
            "duplicates": 0,
            "quarantined": 0,
            "skipped": 0,
            "waiting": 0,
        }
        assert process.end() == 0
        assert "role-ended" not in process.stderr
    assert not any(files for _, _, files in os.walk(one.inbox))
    if how is link:  # what has another name elsewhere stays its owner's: never moved, never shared
        assert all(path.stat().st_nlink == 1 for path in folder.rglob("*.dcm"))
        assert sum(1 for _ in folder.rglob("*.dcm")) == FILES
    with capsys.disabled():
        print(f"\n{how.__name__} {when}: {FILES / took:.0f} files/s in {took:.1f} s", end=" ")
