"""What a user did wrong is said where the user looks: on the terminal of `run`, and in `status`."""

import logging
import re
import socket
import subprocess
import threading

import pytest
from running import petct, running, wait_until

from config.logs import short
from config.tables.intake import WatchSettings
from daemon.receiver.server import trouble_file
from daemon.watcher.watching import run_watcher


def test_a_taken_port_is_said_by_run_and_by_status_until_it_is_free(settings, tmp_path):
    root = settings.root
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = petct("run", "--root", root, "--port", port, "--roles", "receive")
        running_one = running(command, tmp_path / "run")
        with running_one as run:
            run.await_output("! the receiver does not listen")
            told = run.stdout.splitlines()
            assert len(told) == 1
            assert f"port {port} of 127.0.0.1 cannot be had (Address already in use)" in told[0]
            shown = subprocess.run(
                petct("status", "--root", root), capture_output=True, text=True, check=True
            ).stdout
            assert re.search(r"! the receiver does not listen: port \d+", shown)
            other.close()
            run.await_output("petct-ingest is ready")
            assert not trouble_file(settings.layout).exists()
            assert len(run.stdout.splitlines()) == 2
            assert run.end() == 0


def test_nothing_waits_for_a_page_whose_port_is_taken(settings, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = petct("run", "--root", settings.root, "--roles", "sweep,web")
        environment = {"PETCT_INGEST_WEB__ENABLED": "true", "PETCT_INGEST_WEB__PORT": str(port)}
        with running(command, tmp_path / "run", **environment) as run:
            run.await_output("petct-ingest is ready")
            run.await_output(f"! the page does not listen: port {port} of 127.0.0.1 cannot be had")
            other.close()
            run.await_output(f"the page is at http://127.0.0.1:{port}/")
            assert len(run.stdout.splitlines()) == 3
            assert run.end() == 0


def test_what_a_receiver_said_that_is_gone_counts_no_more(settings):
    from daemon.looking import look

    ended = subprocess.Popen(["true"])
    ended.wait()
    trouble_file(settings.layout).write_text(f"{ended.pid} the receiver does not listen\n")
    assert not [one for one in look(settings).troubles if "listen" in one]


@pytest.mark.parametrize("command", ["run", "receive", "status", "sweep", "watch", "valkey"])
def test_a_root_that_is_a_file_is_one_line_and_exit_2(tmp_path, command):
    file = tmp_path / "file"
    file.write_text("text")
    with running(petct(command, "--root", file), tmp_path / "run") as run:
        wait_until(lambda: run.process.poll() is not None, 20)
        assert run.process.returncode == 2
        assert run.stderr == f"petct-ingest: {file} cannot be used as a folder: it is a file\n"


def test_no_line_of_the_log_names_a_watched_folder(settings, caplog, tmp_path):
    path = tmp_path / "MILLER JANE"
    path.mkdir()
    (path / "text").write_text("no DICOM")
    watch = WatchSettings(path=path, settle_seconds=0)
    mine = settings.model_copy(update={"watch": (watch, WatchSettings(path=settings.root))})
    caplog.set_level(logging.INFO, "daemon")
    stop = threading.Event()
    watching = threading.Thread(target=run_watcher, args=(mine, stop))
    watching.start()
    try:
        wait_until(lambda: {"claimed", "folder-not-watched"} <= set(caplog.messages), 10)
    finally:
        stop.set()
        watching.join(20)
    facts = [getattr(item, "facts", {}) for item in caplog.records]
    assert not [one for one in facts if "MILLER" in str(one) or str(settings.root) in str(one)]
    assert {short(str(path))} == {one["folder"] for one in facts if "entries" in one}
