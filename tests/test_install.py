"""What `install` gives to systemd: the shipped units, fitted to places and settings, as tight."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, missing
from typer.testing import CliRunner

from config.settings import Settings, load_settings
from daemon.cli.app import app
from daemon.errors import CannotInstall
from daemon.units import SHIPPED_ROOT, Places, render

SHIPPED = {
    str(path.relative_to(PROJECT / "systemd")): path.read_text()
    for path in (PROJECT / "systemd").rglob("*")
    if path.is_file()
}
ELSEWHERE = """
root = "/srv/petct"
[paths]
archive = "/mnt/archive"
[[watch]]
path = "/mnt/drop"
[[watch]]
path = "/mnt/shown"
mode = "copy"
[receiver]
host = "0.0.0.0"
port = 104
[receiver.tls]
certificate = "/etc/petct-ingest/receiver.pem"
key = "/etc/petct-ingest/receiver.key"
[redis]
url = "rediss://10.1.2.3:6379/0"
password_file = "/etc/petct-ingest/redis.password"
[web]
password_file = "web.password"
token_file = "/etc/petct-ingest/web.token"
[notify.webhook]
url = "https://hooks.example.org/petct"
secret_file = "/etc/petct-ingest/webhook.secret"
[mirror]
url = "s3://petct"
credentials_file = "/etc/petct-ingest/s3.ini"
"""


@pytest.fixture
def elsewhere_settings(tmp_path) -> Settings:
    (tmp_path / "config.toml").write_text(ELSEWHERE)
    return load_settings(tmp_path / "config.toml", environ={})


def units_of(settings: Settings, **places: Path) -> dict[str, str]:
    made = render(SHIPPED, settings, Places(**places))
    return {path.name: text for path, text in made.items() if path.parent.name == "system"}


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_for_the_usual_places_it_is_what_is_shipped():
    made = render(SHIPPED, load_settings(root=SHIPPED_ROOT, environ={}), Places())
    assert sorted(made.values()) == sorted(SHIPPED.values())
    assert {path.parts[:3] for path in made} == {
        ("/", "etc", "systemd"), ("/", "etc", "sysusers.d"), ("/", "etc", "tmpfiles.d"),
    }  # fmt: skip


def test_units_for_other_places_and_servers_are_valid_and_as_tight(elsewhere_settings, tmp_path):
    if not shutil.which("systemd-analyze"):
        missing("systemd-analyze is not installed")
    made = units_of(elsewhere_settings, prefix=Path(sys.prefix))
    for name, text in made.items():
        (tmp_path / name.replace("@.", "@filing.")).write_text(text)
        assert "/opt/petct-ingest" not in text
        assert "/var/lib/petct-ingest" not in text
        assert "valkey" not in text
    assert "petct-ingest-valkey.service" not in made

    def analyze(*arguments: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
        done = subprocess.run(
            ["systemd-analyze", *arguments], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    units = sorted(path.name for path in tmp_path.glob("petct-*"))
    (tmp_path / "petct-ingest-worker@pairing.service").write_text(
        made["petct-ingest-worker@.service"]
    )
    assert analyze("verify", "--man=no", "--recursive-errors=no", *units) == ""
    services = [f"./{name}" for name in units if name.endswith(".service")]
    assert len(services) == 7
    analyze("security", "--offline=true", "--threshold=20", *services)


def test_each_unit_is_allowed_what_the_settings_ask_of_it_and_no_more(elsewhere_settings):
    made = units_of(elsewhere_settings)
    watcher, web = made["petct-ingest-watcher.service"], made["petct-ingest-web.service"]
    assert values(watcher, "ReadWritePaths") == ["/srv/petct", "/mnt/archive", "/mnt/drop"]
    assert values(watcher, "RequiresMountsFor") == ["/srv/petct", "/mnt/archive", "/mnt/drop"]
    assert values(web, "ReadWritePaths") == ["/srv/petct", "/mnt/archive"]
    assert values(watcher, "IPAddressAllow") == ["10.1.2.3"]
    assert values(made["petct-ingest-receiver.socket"], "ListenStream") == ["0.0.0.0:104"]
    for unit in ("petct-ingest-notify.service", "petct-ingest-mirror.service"):
        assert unit in str(values(made["petct-ingest.target"], "Wants"))


def test_a_unit_gets_the_secrets_that_it_reads_and_no_other(elsewhere_settings, tmp_path):
    wanted = {
        "receiver": {"redis.password_file", "receiver.tls.key"},
        "watcher": {"redis.password_file"},
        "sweeper": {"redis.password_file"},
        "worker@": {"redis.password_file"},
        "web": {"redis.password_file", "web.token_file"},  # the password is below the root: ours
        "notify": {"notify.webhook.secret_file"},
        "mirror": {"mirror.credentials_file"},
    }
    made = units_of(elsewhere_settings)
    for service, keys in wanted.items():
        unit = made[f"petct-ingest-{service}.service"]
        assert {one.partition(":")[0] for one in values(unit, "LoadCredential")} == keys, service
        given = dict(one.split("=") for one in values(unit, "Environment") if "PETCT" in one)
        environ = {name: value.replace("%d", "/run/credentials") for name, value in given.items()}
        settings = load_settings(tmp_path / "config.toml", environ=environ)
        for key in keys:
            value: object = settings
            for name in key.split("."):
                value = getattr(value, name)
            assert value == Path("/run/credentials") / key


@pytest.mark.parametrize("root", ["/home/anna/petct", "/srv/pet ct", "/root/petct", "/srv/%h"])
def test_places_that_units_cannot_see_or_name_are_refused(root):
    with pytest.raises(CannotInstall, match=root):
        render(SHIPPED, load_settings(root=Path(root), environ={}), Places())


def test_what_is_printed_is_what_is_written(tmp_path):
    runner = CliRunner()
    config = "/etc/petct-ingest/not-yet.toml"
    options = ["--config", config, "--root", "/srv/petct", "--port", "104",
               "--prefix", "/opt/elsewhere"]  # fmt: skip
    printed = runner.invoke(app, ["install", "--print", *options])
    written = runner.invoke(app, ["install", "--to", str(tmp_path / "to"), *options])
    listed = runner.invoke(app, ["install", "--print", "--json", *options])
    for_programs = {one["path"]: one["content"] for one in json.loads(listed.stdout)["files"]}
    assert printed.exit_code == written.exit_code == 0, printed.output + written.output
    files = {path for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert len(files) == len(SHIPPED)
    for path in files:
        place = path.relative_to(tmp_path / "to")
        assert f"### /{place}\n{path.read_text()}\n" in printed.stdout
        assert for_programs[f"/{place}"] == path.read_text()
        assert f"{path}\n" in written.stdout
        assert path.stat().st_mode & 0o777 == 0o644
    unit = (tmp_path / "to/etc/systemd/system/petct-ingest-watcher.service").read_text()
    (command,) = values(unit, "ExecStart")
    assert command == f"/opt/elsewhere/bin/petct-ingest watch --config {config} --root /srv/petct"


@pytest.mark.parametrize("options", [[], ["--print", "--to", "x"]], ids=str)
def test_either_print_or_a_folder_is_asked_for(options):
    assert CliRunner().invoke(app, ["install", *options]).exit_code == 2


def test_a_port_that_changes_is_no_port_for_a_unit():
    found = CliRunner().invoke(app, ["install", "--print", "--port", "0"])
    assert isinstance(found.exception, CannotInstall)
