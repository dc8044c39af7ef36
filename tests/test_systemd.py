"""The units: valid for systemd, tightly confined, and true to what the roles do."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, missing
from running import petct, running, wait_until

from daemon.cli.app import COMMANDS
from daemon.planning import plan_roles
from daemon.valkey import answers
from workers.index.engine import prepare_index
from workers.queues import socket_path

UNITS = PROJECT / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
PREFIX = "/opt/petct-ingest"
EXPOSURE_TENTHS = 20


def words_of(unit: Path) -> dict[str, list[str]]:
    """The assignments of a unit: key to values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def units(tmp_path):
    """The units as they would be installed, with a prefix that exists here."""
    if not shutil.which("systemd-analyze"):
        missing("systemd-analyze is not installed")
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in UNITS.iterdir():
        if unit.is_file():
            text = unit.read_text().replace(f"{PREFIX}/bin", str(Path(sys.executable).parent))
            (folder / unit.name).write_text(text)
    for name in ("filing", "pairing", "filing-2"):
        shutil.copy(folder / "petct-ingest-worker@.service", folder / instance(name))
    return folder


def instance(name: str) -> str:
    return f"petct-ingest-worker@{name}.service"


def analyze(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_accepts_every_unit_without_a_word(units):
    names = sorted(path.name for path in units.iterdir() if "@." not in path.name)
    assert analyze(units, "verify", "--man=no", "--recursive-errors=no", *names) == ""


def test_the_install_page_names_every_unit():
    page = (PROJECT / "docs" / "install.md").read_text()
    for path in UNITS.iterdir():
        if path.is_file() and "@" not in path.name:
            assert f"`{path.name}`" in page


@pytest.mark.parametrize("service", SERVICES)
def test_the_exposure_of_every_service_is_low(units, service):
    name = service.replace("@.", "@filing.")
    analyze(units, "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", f"./{name}")


def test_the_target_starts_every_role_that_run_starts(settings):
    wanted = {
        "valkey": "petct-ingest-valkey.service",
        "sweep": "petct-ingest-sweeper.service",
        "receive": "petct-ingest-receiver.service",
        "watch": "petct-ingest-watcher.service",
        "filing-1": instance("filing"),
        "pairing-1": instance("pairing"),
        "web": "petct-ingest-web.service",
    }
    assert {role.name for role in plan_roles(settings)} == set(wanted)
    named = " ".join(words_of(UNITS / "petct-ingest.target")["Wants"]).split()
    assert set(wanted.values()) | {"petct-ingest-receiver.socket"} == set(named)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_runs_a_command_that_exists_and_never_gives_up(service):
    words = words_of(UNITS / service)
    program, command, *_ = words["ExecStart"][0].split()
    assert program == f"{PREFIX}/bin/petct-ingest"
    assert command in {entry.name for entry in COMMANDS}
    assert words["Restart"] == ["always"]
    assert words["StartLimitIntervalSec"] == ["0"]
    assert words["KillMode"] == ["mixed"]
    assert words["User"] == ["petct-ingest"]


@pytest.mark.parametrize("service", SERVICES)
def test_everything_writable_lies_on_one_mount(service):
    """Two ReadWritePaths would be two mounts, and a rename between them a copy."""
    words = words_of(UNITS / service)
    assert words["ReadWritePaths"] == words["RequiresMountsFor"] == ["/var/lib/petct-ingest"]
    assert "StateDirectory" not in words


def test_stopping_takes_no_longer_than_systemd_allows(settings):
    webhook = settings.notify.webhook.model_copy(update={"url": "http://127.0.0.1/"})
    notify = settings.notify.model_copy(update={"webhook": webhook})
    mirror = settings.mirror.model_copy(update={"url": "s3://petct"})
    all_roles = plan_roles(settings.model_copy(update={"notify": notify, "mirror": mirror}))
    limits = {role.arguments[0]: role.stop_seconds for role in all_roles}
    for service in SERVICES:
        words = words_of(UNITS / service)
        assert float(words["TimeoutStopSec"][0]) >= limits[words["ExecStart"][0].split()[1]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to an account")
def test_the_account_and_the_folders_are_made_as_the_units_need_them(tmp_path):
    if not shutil.which("systemd-sysusers"):
        missing("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    for program, *rest in (
        ("systemd-sysusers", UNITS / "sysusers.d/petct-ingest.conf"),
        ("systemd-tmpfiles", "--create", UNITS / "tmpfiles.d/petct-ingest.conf"),
    ):
        command = [program, f"--root={tmp_path}", *rest]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    account = (tmp_path / "etc/passwd").read_text().split(":")
    assert (account[0], account[6].strip()) == ("petct-ingest", "/usr/sbin/nologin")
    root = tmp_path / "var/lib/petct-ingest"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root, *root.iterdir())}
    assert modes == {
        "petct-ingest": 0o750,
        "archive": 0o2750,
        "inbox": 0o2770,
        "spool": 0o700,
        "quarantine": 0o700,
        "run": 0o700,
    }
    assert {path.stat().st_uid for path in (root, *root.iterdir())} == {int(account[2])}


@contextlib.contextmanager
def systemd(folder):
    """Stand in for systemd: the socket that services tell their state to."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind(str(address))
        ears.settimeout(30)
        yield ears, {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "400000"}


@pytest.mark.parametrize(
    "command",
    [
        ("receive", "--port", "0"),
        ("watch",),
        ("sweep",),
        ("work", "filing"),
        ("work", "pairing-2"),
        ("web",),
        ("notify",),
        ("mirror",),
    ],
    ids=" ".join,
)
def test_a_role_tells_systemd_that_it_is_ready_alive_and_stopping(settings, tmp_path, command):
    prepare_index(settings).close()
    root = ("--root", settings.root)
    with (
        running(petct("valkey", *root), tmp_path / "valkey"),
        systemd(tmp_path) as (ears, environment),
    ):
        wait_until(lambda: answers(socket_path(settings.layout)))
        environment["PETCT_INGEST_WEB__PORT"] = "0"
        with running(petct(*command, *root), tmp_path / "role", **environment) as role:
            assert ears.recv(4096).startswith(b"READY=1\nSTATUS=")
            assert ears.recv(4096) == b"WATCHDOG=1"
            assert ears.recv(4096) == b"WATCHDOG=1"
            role.process.send_signal(signal.SIGTERM)
            last = b""
            while last != b"STOPPING=1":
                last = ears.recv(4096)
            assert role.process.wait(30) == 0


def test_a_role_that_cannot_see_its_spool_no_longer_feeds_the_watchdog(settings, tmp_path):
    prepare_index(settings).close()
    with systemd(tmp_path) as (ears, environment):
        command = petct("watch", "--root", settings.root)
        with running(command, tmp_path / "role", **environment):
            while ears.recv(4096) != b"WATCHDOG=1":
                pass
            settings.layout.spool.rename(tmp_path / "unmounted")
            ears.settimeout(1.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(7):  # at five a second, these would be too many
                    ears.recv(4096)
                pytest.fail("it went on")
            (tmp_path / "unmounted").rename(settings.layout.spool)
            ears.settimeout(30)
            assert ears.recv(4096) == b"WATCHDOG=1"


def test_a_receiver_started_by_its_socket_answers_the_call_that_woke_it(settings, tmp_path):
    activate, echo = shutil.which("systemd-socket-activate"), Path("/usr/bin/echoscu")
    if not activate or not echo.exists():
        missing("systemd-socket-activate or DCMTK's echoscu is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    prepare_index(settings).close()
    command = [activate, f"--listen=127.0.0.1:{port}", *petct("receive", "--root", settings.root)]
    with running(command, tmp_path / "role") as role:
        role.await_output("Listening on")
        call = [str(echo), "-aec", settings.receiver.ae_title, "127.0.0.1", str(port)]
        assert subprocess.run(call, timeout=60, check=False).returncode == 0
        assert int((settings.layout.run / "receiver.port").read_text()) == port
        assert role.end() == 0  # systemd-socket-activate has become the receiver
        assert "socket=inherited" in role.stderr
