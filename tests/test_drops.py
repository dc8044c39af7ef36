"""Thousands of files in 260 nested folders, however they come and whenever the watcher starts."""

import os
import shutil
import subprocess
import time

import pytest
from conftest import missing
from installation import Installation
from running import wait_until

from workers.phantom.study import write_many

FOLDERS = 260
FILES = {"while-it-runs": 5000, "before-it-starts": 1000}
"""How many are dropped; before the start nothing races with the drop."""

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


@pytest.fixture(scope="module", params=list(FILES))
def delivery(request, tmp_path_factory):
    """When to drop which folder, and the SOPInstanceUIDs of its files."""
    folder = tmp_path_factory.mktemp("delivery") / "drop"
    count = FILES[request.param]
    written = write_many(folder, count, folders=FOLDERS)
    assert len(written) == count
    assert sum(len(folders) for _, folders, _ in os.walk(folder)) >= FOLDERS
    return request.param, folder, list(written)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [copy, move, link, synchronise])
def test_every_file_of_a_large_drop_is_filed(how, delivery, tmp_path, capsys):
    when, folder, uids = delivery
    one = Installation(tmp_path)
    if when == "before-it-starts":
        one.inbox.mkdir(parents=True)
        how(folder, one.inbox)
    with one.run("--roles", ROLES) as process:
        began = time.monotonic()
        if when == "while-it-runs":
            how(folder, one.inbox)
        wait_until(lambda: one.arrived() >= len(uids), 240, "every file filed")
        took = time.monotonic() - began
        one.assert_filed_once(uids)
        found = one.status()
        assert found["instances"] == {
            "filed": len(uids),
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
        assert sum(1 for _ in folder.rglob("*.dcm")) == len(uids)
    with capsys.disabled():
        print(f"\n{how.__name__} {when}: {len(uids) / took:.0f} files/s in {took:.1f} s", end=" ")
