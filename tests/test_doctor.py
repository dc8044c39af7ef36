"""The doctor: pure rules, and what it finds in real installations."""

import json
import socket
import subprocess

import pytest
from installation import Installation, free_port
from running import petct, running, wait_until

from daemon.doctor.findings import (
    MEMORY_FILE_SYSTEMS,
    Level,
    judge_clock,
    judge_file_system,
    judge_queue_server,
    judge_speed,
    judge_watches,
)
from daemon.doctor.stores import file_system_of, files_per_second


def examined(*options: object, code: int) -> dict[str, dict]:
    command = petct("doctor", "--json", *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] == (code == 0)
    for one in found["checks"]:
        assert bool(one["advice"]) == (one["level"] != "ok"), one
    return {one["name"]: one for one in found["checks"]}


def well_on(folder) -> int:
    """The exit code of an installation that is well, but for lying where tests lie."""
    return 3 if file_system_of(folder) in MEMORY_FILE_SYSTEMS else 0


@pytest.mark.parametrize(
    ("what", "kind", "level"),
    [
        ("spool", "ext4", Level.OK),
        ("spool", "tmpfs", Level.FAIL),
        ("archive", "nfs4", Level.WARN),
        ("index", "nfs4", Level.FAIL),
        ("index", "cifs", Level.FAIL),
        ("spool", "overlay", Level.WARN),
        ("spool", "", Level.OK),
    ],
)
def test_a_file_system_is_judged_by_what_lies_on_it(what, kind, level):
    assert judge_file_system(what, kind).level is level


def test_watches_are_enough_while_the_folders_may_double():
    def level(folders: int, *, counted_all: bool = True, instances: int = 128) -> Level:
        return judge_watches(folders, counted_all, 10_000, instances).level

    assert level(5_000) is Level.OK
    assert level(5_001) is Level.WARN
    assert level(2_000, counted_all=False) is Level.WARN
    assert level(5, instances=8) is Level.WARN


def test_a_clock_behind_our_own_files_was_set_back():
    assert judge_clock(1_000_000, 1_000_030, None).level is Level.OK
    assert judge_clock(1_000_000, None, True).level is Level.OK
    assert judge_clock(1_000_000, 1_007_200, True).words == "it was set back by 2.0 h or more"
    assert judge_clock(1_000_000, None, False).level is Level.WARN


def test_an_old_or_forgetful_queue_server_is_named():
    assert judge_queue_server("9.0.1", "noeviction").level is Level.OK
    assert judge_queue_server("6.2.0", None).level is Level.OK
    assert judge_queue_server("6.0.16", "noeviction").level is Level.FAIL
    assert judge_queue_server("7.2.5", "allkeys-lru").level is Level.WARN


def test_a_slow_disk_is_named_and_the_trial_leaves_nothing(tmp_path):
    assert files_per_second(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    assert judge_speed("spool", 49.9).level is Level.WARN
    assert judge_speed("spool", 50).level is Level.OK


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, elsewhere):
    assert file_system_of(elsewhere) == "tmpfs"
    assert file_system_of(elsewhere / "not" / "there") == "tmpfs"
    assert file_system_of(tmp_path / "not there") == file_system_of(tmp_path) != ""


def test_before_the_first_start_it_says_so_and_makes_nothing(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("PETCT_INGEST_RECEIVER__PORT", str(other.getsockname()[1]))
        monkeypatch.setenv("PETCT_INGEST_WEB__ENABLED", "false")
        found = examined("--root", tmp_path / "root", code=3)
    (port,) = [one for name, one in found.items() if name.startswith("DICOM port")]
    assert (port["level"], port["words"]) == ("fail", "what listens there is no DICOM receiver")
    assert "ss -ltnp" in port["advice"]
    assert found["installation"]["words"] == "nothing ran here yet"
    assert found["permissions"]["words"].endswith("can be made")
    assert not (tmp_path / "root").exists()


def test_of_a_running_system_it_asks_receiver_page_and_queue_server(tmp_path, monkeypatch):
    one = Installation(tmp_path)
    page = free_port()
    monkeypatch.setenv("PETCT_INGEST_WEB__ENABLED", "true")
    monkeypatch.setenv("PETCT_INGEST_WEB__PORT", str(page))
    monkeypatch.setenv("PETCT_INGEST_RECEIVER__PORT", str(one.port))
    monkeypatch.setenv("PETCT_INGEST_RECEIVER__ALLOW_CALLING_AE", '["PACS1"]')
    with one.run("--roles", "valkey,sweep,receive,web", PETCT_INGEST_WEB__ENABLED="true"):
        wait_until((one.layout.run / "web.port").exists)
        found = examined("--root", one.root, code=well_on(tmp_path))
        assert found[f"DICOM port {one.port}"]["words"] == "answers C-ECHO"
        assert found[f"page on port {page}"]["words"] == "served"
        assert found["queue server"]["words"].endswith("answers")
        assert {"index", "spool", "archive", "disk", "speed of the spool"} <= set(found)
        assert found["archive"]["level"] == "ok"
        one.layout.archive.rename(tmp_path / "unmounted")
        ill = examined("--root", one.root, code=3)
        assert ill["archive"]["level"] == "fail"
        (tmp_path / "unmounted").rename(one.layout.archive)


def test_a_receiver_of_another_root_is_told_from_ours(settings, tmp_path, monkeypatch):
    one = Installation(tmp_path / "one")
    monkeypatch.setenv("PETCT_INGEST_WEB__ENABLED", "false")
    monkeypatch.setenv("PETCT_INGEST_RECEIVER__PORT", str(one.port))
    one.layout.make_private()
    with running(petct("receive", "--root", one.root), tmp_path / "other"):
        wait_until(lambda: (one.layout.run / "receiver.port").exists())
        found = examined("--root", tmp_path / "two", code=well_on(tmp_path))
    assert found[f"DICOM port {one.port}"]["level"] == "warn"
    assert "not of this root" in found[f"DICOM port {one.port}"]["words"]
