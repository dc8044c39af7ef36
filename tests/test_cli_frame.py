"""The frame of the command line: lazy commands, shared options, errors in one line."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from daemon.cli.app import COMMANDS, app
from workers.index.engine import prepare_index

HEAVY = ("sqlalchemy", "SimpleITK", "pynetdicom", "matplotlib", "numpy", "rq", "pydicom")


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_help_names_every_command_with_its_summary():
    shown = run("--help").stdout
    for command in COMMANDS:
        assert command.name in shown
        assert command.summary.split()[0] in shown


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_no_help_has_brackets_that_would_be_taken_for_a_style(entry):
    whole = entry.load()
    for one in (whole, *getattr(whole, "commands", {}).values()):
        helps = [one.help or "", *(getattr(option, "help", "") or "" for option in one.params)]
        assert not [text for text in helps if re.search(r"\[[a-z@#/]", text)], one.name


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    script = (
        "import sys, json\n"
        f"sys.argv = {['petct-ingest', *arguments]!r}\n"
        "from daemon.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_and_version_load_nothing_heavy():
    assert not loaded_by("--help") & {*HEAVY, "rich", "pydantic"}
    assert run("--version").stdout.startswith("petct-ingest ")


def test_status_of_an_installation_loads_nothing_heavy(settings):
    prepare_index(settings).close()
    loaded = loaded_by("status", "--json", "--root", str(settings.root))
    assert "sqlite3" in loaded
    assert not loaded & {*HEAVY, "redis", "rich", "pydantic_settings", "asyncio"}


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_can_be_loaded_and_explains_itself(name):
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"petct-ingest {name}" in shown.stdout


def commands_below(command, name=""):
    yield name, command
    for inner in getattr(command, "commands", {}):
        yield from commands_below(command.commands[inner], f"{name} {inner}".strip())


GOES_ON = {"run", "receive", "watch", "work", "sweep", "web", "valkey", "demo"}
"""Commands with nothing to print in the end: roles, and the demonstration, which explains."""


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda command: command.name)
def test_every_command_that_prints_an_end_prints_it_as_json_too(entry):
    found = {
        path
        for path, command in commands_below(entry.load(), entry.name)
        if getattr(command, "invoke_without_command", True)  # else it only groups others
        and not any("--json" in option.opts for option in command.params)
    }
    assert found <= GOES_ON


def test_a_phantom_is_told_as_json(tmp_path):
    words = ["phantom", str(tmp_path / "p"), "--size", "tiny", "--patients", "2", "--json"]
    (first, second) = json.loads(CliRunner().invoke(app, words).stdout)["studies"]
    assert first["folder"] == str(tmp_path / "p/patient-001")
    assert first["instances"] == len(list((tmp_path / "p/patient-001").rglob("*.dcm")))
    assert first["study"] != second["study"]


def test_an_unknown_command_names_the_nearest_one():
    assert "status" in run("statos", code=2).stderr


def test_an_error_of_ours_is_one_line_on_stderr_and_exit_two(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('[receiver]\nprot = 104\nroot = "x"\n')
    done = run("sweep", "--config", str(config), code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "receiver.port" in done.stderr


def test_a_command_without_a_root_says_how_to_give_one():
    assert "--root" in run("sweep", code=2).stderr
