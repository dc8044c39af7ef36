"""Containerfile and compose.yaml fit the program: roles, users, ports, volumes, checks."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from certificates import Authority
from conftest import PROJECT
from running import petct, running, wait_until

from config.settings import load_settings
from daemon.cli.app import COMMANDS
from daemon.planning import plan_roles
from workers.index.engine import prepare_index
from workers.spool.notes import take_notes

CONTAINERFILE = (PROJECT / "Containerfile").read_text()
COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())
ROLES = {name: one for name, one in COMPOSE["services"].items() if name != "anchor"}
ROOT = "/var/lib/petct-ingest"


def instructions(name: str) -> list[str]:
    joined = CONTAINERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def environment() -> dict[str, str]:
    return dict(word.partition("=")[::2] for line in instructions("ENV") for word in line.split())


def test_the_image_runs_a_command_that_exists_as_nobody_special():
    assert instructions("ENTRYPOINT") == ['["petct-ingest"]']
    command, *options = yaml.safe_load(instructions("CMD")[0])
    assert (command, options) == ("run", ["--host", "0.0.0.0"])
    (user,) = instructions("USER")
    number = user.split(":")[0]
    assert int(number) > 999
    assert f"--uid {number} " in CONTAINERFILE
    assert environment()["PATH"].startswith("/opt/petct-ingest/bin:")
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    versions = re.findall(r"python:(3\.\d+)", CONTAINERFILE)
    assert [f">={version}" for version in versions] == [wanted] * 2


def test_settings_ports_and_volume_of_the_image_are_the_programs_own():
    settings = load_settings(environ=environment())
    assert str(settings.root) == instructions("VOLUME")[0] == ROOT
    assert settings.logging.format == "json"
    exposed = {int(port) for port in instructions("EXPOSE")[0].split()}
    assert exposed == {settings.receiver.port, settings.web.port}


def test_each_role_of_run_has_a_container_of_its_own(settings):
    webhook = settings.notify.webhook.model_copy(update={"url": "http://127.0.0.1/"})
    notify = settings.notify.model_copy(update={"webhook": webhook})
    planned = plan_roles(settings.model_copy(update={"notify": notify}))
    wanted = sorted([one.arguments[0], *one.arguments[1:2][: one.arguments[0] == "work"]]
                    for one in planned)  # fmt: skip
    given = [one["command"] for one in ROLES.values()]
    assert sorted(command[: 2 if command[0] == "work" else 1] for command in given) == wanted
    assert {command[0] for command in given} <= {entry.name for entry in COMMANDS}
    longest = max(one.stop_seconds for one in planned)
    for one in ROLES.values():
        assert int(one["stop_grace_period"].removesuffix("s")) >= longest


@pytest.mark.parametrize("name", ROLES)
def test_every_role_shares_the_volume_and_the_numbering_and_may_do_little(name):
    role = ROLES[name]
    assert role["volumes"] == [f"data:{ROOT}"]
    assert set(COMPOSE["volumes"]) == {"data"}
    assert (role["hostname"], role["pid"]) == ("petct-ingest", "service:anchor")
    assert role["cap_drop"] == ["ALL"]
    assert role["read_only"] is True
    assert role["restart"] == "always"
    assert ("network_mode" in role) == (name not in ("receiver", "web", "notify"))
    environ = environment() | role.get("environment", {})
    settings = load_settings(environ=environ)
    listens = {"receiver": settings.receiver.port, "web": settings.web.port}
    if name in listens:
        assert role["ports"] == [f"127.0.0.1:{listens[name]}:{listens[name]}"]
    else:
        assert "ports" not in role


LISTS = {
    "RECEIVER__ALLOW_CALLING_AE": '["PACS1"]',
    "RECEIVER__ALLOW_CALLED_AE": '["RESEARCH"]',
    "RECEIVER__ALLOW_ADDRESSES": '["127.0.0.0/8"]',
}


@pytest.mark.parametrize(("name", "arguments", "kind"), [
    ("receiver", ("receive",), "plain"),
    ("receiver", ("receive",), "lists"),
    ("receiver", ("receive",), "tls"),
    ("web", ("web",), "plain"),
    ("web", ("web",), "tls"),
])  # fmt: skip
def test_a_health_check_tells_a_role_that_answers_from_one_that_does_not(
    settings, tmp_path, name, arguments, kind
):
    index = prepare_index(settings)
    table = "RECEIVER__TLS__" if name == "receiver" else "WEB__"
    given = {"RECEIVER__PORT": "0", "WEB__PORT": "0", "ROOT": str(settings.root)}
    if kind == "tls":
        certificate, key = Authority(tmp_path / "ca").sign("localhost")
        given |= {f"{table}CERTIFICATE": str(certificate), f"{table}KEY": str(key)}
    elif kind == "lists":
        given |= LISTS
    environ = {f"PETCT_INGEST_{key}": value for key, value in given.items()}
    mark, program, *rest = ROLES[name]["healthcheck"]["test"]
    assert (mark, program) == ("CMD", "petct-ingest")
    command = [sys.executable, "-P", "-m", "daemon", *rest]

    def healthy() -> bool:
        done = subprocess.run(command, env=os.environ | environ, capture_output=True, timeout=60,
                              check=False)  # fmt: skip
        assert done.returncode in (0, 3), done.stderr
        return done.returncode == 0

    assert not healthy()
    with running(petct(*arguments), tmp_path / "role", **environ):
        wait_until(lambda: list(settings.layout.run.glob("*.port")))
        assert healthy(), shlex.join(command)
    assert not [note for note in take_notes(settings.layout) if "reject" in note.kind]
    index.close()
