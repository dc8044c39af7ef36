"""`petct-ingest run`: everything comes up, comes back, ends in order, and leaves nothing behind."""

import os
import re
import signal
import socket
import sys
import textwrap
import time

import pytest
from filing_world import die, in_child
from running import alive, children_of, descendants_of, petct, running, wait_until

from config.settings import load_settings
from daemon import demo
from daemon.errors import DaemonError
from daemon.planning import Stage, plan_roles
from daemon.supervisor import (
    FIRST_DELAY_SECONDS,
    LONGEST_DELAY_SECONDS,
    STEADY_SECONDS,
    deaths_after,
    restart_delay,
)
from daemon.valkey import answers
from workers.queues import socket_path

READY = "petct-ingest is ready"


def names(roles):
    return [role.name for role in roles]


def the(role, pid):
    """The id of a role's process among the children of `run`."""
    words = {"valkey": "valkey-server|daemon valkey"}.get(role, f"daemon {role}( |$)")
    found = [child for child, line in children_of(pid).items() if re.search(words, line)]
    return found[0] if len(found) == 1 else None


# --- what is decided


def test_every_role_is_planned_and_the_server_starts_first_and_stops_last(settings):
    roles = plan_roles(settings)
    assert names(roles) == [
        *("valkey", "sweep", "receive", "watch", "filing-1", "pairing-1", "web")
    ]
    assert [role.name for role in roles if not role.awaited] == ["web"]
    assert roles[0].stage is max(Stage)
    assert {role.name for role in roles if role.stage is min(Stage)} == {"receive", "watch"}


def test_numbers_of_workers_and_a_server_elsewhere_change_the_plan(tmp_path):
    settings = load_settings(
        root=tmp_path,
        overrides={
            "filing": {"workers": 3},
            "pairing": {"enabled": False},
            "redis": {"url": "redis://elsewhere"},
            "web": {"enabled": False},
        },
        environ={},
    )
    roles = plan_roles(settings)
    assert names(roles) == [*("sweep", "receive", "watch", "filing-1", "filing-2", "filing-3")]
    workers = [role.arguments for role in roles if role.name.startswith("filing")]
    # each under a name of its own: starts are counted by it, and alerts tell one that dies again
    assert workers == [("work", "filing"), ("work", "filing-2"), ("work", "filing-3")]


def test_an_unknown_role_is_refused_by_name(settings):
    with pytest.raises(DaemonError, match="teleport"):
        plan_roles(settings, ["teleport"])


def test_restarts_back_off_and_a_steady_life_forgives():
    delays = [restart_delay(deaths) for deaths in range(1, 20)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)
    assert deaths_after(7, STEADY_SECONDS) == 1
    assert deaths_after(7, STEADY_SECONDS - 1) == 8


# --- the mechanism, on small processes

SMALL = """
import signal, sys, time
from pathlib import Path
from config.settings import load_settings
from config.logs import configure_logging
from daemon.planning import Role, Stage
from daemon.supervisor import Supervisor

CHILD = '''
import os, signal, sys, time
name, folder = sys.argv[1:3]
def note(words):
    with open(f"{folder}/notes", "a") as file:
        file.write(f"{name} {words}\\\\n")
if name == "crash":
    note("crashes")
    sys.exit(3)
stop = []
deaf = signal.SIG_IGN if name in ("deaf", "stubborn") else lambda *_: stop.append(1)
signal.signal(signal.SIGTERM, deaf)
sys.path[:] = [p for p in sys.path if p]
from daemon.processes import Notifier
Notifier.from_environment().ready("up")
note("starts")
while not stop:
    time.sleep(0.02)
time.sleep(0.1)
note("ends")
'''

def main(folder, *names):
    settings = load_settings(root=Path(folder))
    configure_logging(settings.logging)
    stages = {"in": Stage.INTAKE, "work": Stage.WORK, "sweep": Stage.SWEEP}
    roles = [
        Role(n, (n, folder), stages.get(n, Stage.WORK), 60.0 if n == "stubborn" else 1.0)
        for n in names
    ]
    Supervisor(settings, roles, (sys.executable, "-c", CHILD)).run()
"""


@pytest.fixture
def small(tmp_path):
    """Return a function that supervises small processes of given names."""
    (tmp_path / "small.py").write_text(textwrap.dedent(SMALL))

    def begin(*words):
        script = f"import small; small.main({str(tmp_path)!r}, *{words!r})"
        return running([sys.executable, "-c", script], tmp_path / "run", PYTHONPATH=str(tmp_path))

    return begin


def notes(tmp_path):
    path = tmp_path / "notes"
    return path.read_text().splitlines() if path.exists() else []


def test_stages_stop_one_after_the_other(small, tmp_path):
    with small("sweep", "work", "in") as run:
        run.await_output(READY)
        assert run.end() == 0
    ends = [line for line in notes(tmp_path) if line.endswith("ends")]
    assert ends == ["in ends", "work ends", "sweep ends"]


def test_a_role_that_does_not_stop_is_killed_after_its_time(small):
    with small("deaf", "sweep") as run:
        run.await_output(READY)
        began = time.monotonic()
        assert run.end() == 0
        assert 1.0 < time.monotonic() - began < 5
        assert re.search("role-killed role=deaf", run.stderr)


def test_a_second_signal_kills_what_is_left_at_once(small):
    with small("stubborn") as run:  # it may take a minute
        run.await_output(READY)
        run.process.send_signal(signal.SIGINT)
        run.await_output("stopping")
        began = time.monotonic()
        assert run.end(signal.SIGINT) == 0
        assert time.monotonic() - began < 15


def test_a_role_that_always_dies_is_tried_ever_more_rarely_and_hurts_no_other(small, tmp_path):
    with small("crash", "work") as run:
        said = re.compile(r'role=crash reason="exit 3" .*again_in_seconds=([\d.]+)')
        wait_until(lambda: len(said.findall(run.stderr)) >= 3)
        assert [float(delay) for delay in said.findall(run.stderr)[:3]] == [0.2, 0.4, 0.8]
        wait_until(lambda: "work starts" in notes(tmp_path))
        assert notes(tmp_path).count("work starts") == 1
        assert READY not in run.stdout
        assert run.end() == 0


def test_children_have_their_own_group_in_the_session_of_run(small):
    with small("work", "in") as run:
        run.await_output(READY)
        for child in children_of(run.pid):
            assert os.getpgid(child) == child
            assert os.getsid(child) == os.getsid(run.pid)


def test_run_tells_systemd_when_it_is_ready_and_that_it_lives(small, tmp_path, monkeypatch):
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with small("work") as run:
            assert systemd.recv(4096).startswith(b"READY=1")
            assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            assert run.end() == 0
            rest = set()
            while b"STOPPING=1" not in rest:
                rest.add(systemd.recv(4096))


# --- the whole


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def whole(root, tmp_path):
    """Everything, up and ready."""
    with running(petct("run", "--root", root, "--port", 0), tmp_path / "run") as run:
        run.await_output(READY, 60)
        yield run


def test_run_brings_all_up_and_says_where_it_listens(whole, root):
    port = int((root / "run" / "receiver.port").read_text())
    assert f"127.0.0.1:{port}" in whole.stdout
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    assert len(children_of(whole.pid)) == 6


def test_a_second_run_on_the_same_root_is_refused_in_words(whole, root, tmp_path):
    with running(petct("run", "--root", root, "--port", 0), tmp_path / "second") as second:
        assert second.process.wait(30) == 2
        assert f"already (process {whole.pid})" in second.stderr
    assert len(children_of(whole.pid)) == 6


def test_every_killed_role_comes_back(whole):
    for role in ("valkey", "sweep", "receive", "watch", "work filing", "work pairing"):
        before = wait_until(lambda role=role: the(role, whole.pid), what=role)
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda role=role, before=before: the(role, whole.pid) not in (None, before),
            what=f"{role} again",
        )
        assert not alive(before)
    assert whole.end(seconds=60) == 0


def test_a_queue_server_whose_socket_was_removed_is_replaced(whole, root):
    layout = load_settings(root=root, environ={}).layout
    before = the("valkey", whole.pid)
    socket_path(layout).unlink()
    wait_until(lambda: answers(socket_path(layout)), what="a queue server that can be reached")
    assert the("valkey", whole.pid) not in (None, before)
    assert "queue-server-unreachable" in whole.stderr


def test_sigterm_ends_all_in_order_with_exit_zero(whole):
    family = descendants_of(whole.pid)
    assert whole.end(seconds=60) == 0
    assert not [pid for pid in family if alive(pid)]
    assert "role-killed" not in whole.stderr
    assert "role-ended" not in whole.stderr
    stopped = re.findall(r"role-stopped role=(\w+)|worker-stopped queue=(\w+)", whole.stderr)
    order = ["".join(words) for words in stopped]
    assert set(order[:2]) == {"receive", "watch"}
    assert set(order[2:4]) == {"filing", "pairing"}
    assert order[4:] == ["sweep"]


def test_when_run_is_killed_no_process_of_it_survives(whole, root, tmp_path):
    family = descendants_of(whole.pid)
    assert len(family) >= 6
    whole.end(signal.SIGKILL)
    for pid, line in family.items():
        wait_until(lambda pid=pid: not alive(pid), 5, f"the end of {line}")
    with running(petct("run", "--root", root, "--port", 0), tmp_path / "again") as again:
        again.await_output(READY, 60)
        assert again.end(seconds=60) == 0


def test_a_demonstration_that_is_killed_leaves_nothing_running(tmp_path):
    root = tmp_path / "demo"
    root.mkdir()
    (root / "settings.toml").write_text("")

    def demonstrate() -> None:
        with demo._daemon(root, root / "settings.toml") as daemon:
            (tmp_path / "run").write_text(str(daemon.pid))
            die()

    assert in_child(demonstrate) == -9
    run = int((tmp_path / "run").read_text())
    wait_until(lambda: not alive(run), 10, "the end of the daemon")
