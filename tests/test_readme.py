"""What README and docs say is what the program does.

The commands of README are run; commands, options, settings, links, tables that any paper names are
looked up.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from conftest import PROJECT, missing
from installation import free_port
from running import running, wait_until
from typer.testing import CliRunner

from config.settings import known_keys, load_settings
from daemon.cli import app as frame
from daemon.cli import offline
from workers.completeness.role_names import Role
from workers.errors import DataError, PixelError
from workers.filing.comparing import Likeness
from workers.header.read import MediaDirectory
from workers.index.tables import metadata

README = (PROJECT / "README.md").read_text()
PAPERS = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "CHANGELOG.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = "tests|docs|config|workers|daemon|systemd|benchmarks"
READY = "petct-ingest is ready"

pytestmark = pytest.mark.timeout(240)  # the walk counts for whichever test asks for it first


def blocks(text: str, kind: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == kind]


COMMANDS = [line for block in blocks(README, "sh") for line in block.splitlines() if line]


@dataclass
class Done:
    """A command that was run."""

    code: int
    output: str
    error: str
    lacks: str = ""


class Walk:
    """A folder in which the commands of README are run one after the other, with one daemon."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.done: dict[str, Done] = {}
        (home / ".venv").symlink_to(sys.prefix)
        self.environment = {
            **{key: value for key, value in os.environ.items() if "PETCT" not in key},
            "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "80",
            "TCP_NODELAY": "1",  # DCMTK waits 40 ms for each instance on loopback without it
        }

    def sh(self, command: str) -> Done:
        """Run one command as it stands, the port aside."""
        program = shlex.split(command)[0]
        if program != "." and not shutil.which(program, path=self.environment["PATH"]):
            return Done(127, "", "", lacks=program)
        found = subprocess.run(
            ["bash", "-c", command.replace("11112", str(self.port))],
            cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=110,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return Done(found.returncode, found.stdout, found.stderr)

    def status(self) -> dict:
        return json.loads(self.sh("petct-ingest status --root petct --json").output)


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Iterator[Walk]:
    """Every command of README in its order, but that the daemon and the demonstration begin early.

    For `make demo` what it wraps is run; `make test` would be this very run.
    """
    one = Walk(tmp_path_factory.mktemp("readme"))
    (run,) = [command for command in COMMANDS if command.startswith("petct-ingest run ")]
    line = f"cd {one.home} && exec {run} --port {one.port}"
    with (
        running(["bash", "-c", line], one.home / "run-output", **one.environment) as daemon,
        ThreadPoolExecutor(1) as aside,
    ):
        demo = aside.submit(one.sh, "petct-ingest demo")
        daemon.await_output(READY, 90)
        one.done[run] = Done(0, daemon.stdout, "")
        for command in COMMANDS:
            if command != run and not command.startswith("make "):
                one.done[command] = one.sh(command)
        one.done["make demo"] = demo.result()
        aside.shutdown()
        yield one
        assert daemon.end() == 0


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.startswith("make test")])
def test_a_command_of_the_readme_does_its_work(walk, command):
    done = walk.done[command]
    if done.lacks:
        missing(done.lacks)
    assert done.code == 0, done.error


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("make ")])
def test_a_make_target_of_the_readme_runs_what_it_says(command):
    recipes = {
        "demo": "$(BIN)/petct-ingest demo $(ARGS)",
        "test": "$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)",
    }
    target = command.split()[1]
    makefile = (PROJECT / "Makefile").read_text()
    assert re.search(rf"^{target}: .*\n\t{re.escape(recipes[target])}$", makefile, re.MULTILINE)


def test_the_demonstration_says_what_the_readme_shows(walk):
    (shown,) = blocks(README, "text")
    said = {plain(line) for line in walk.done["make demo"].output.splitlines()}
    absent = [line for line in shown.splitlines() if line and plain(line) not in said]
    assert not absent


def plain(line: str) -> str:
    """A line of the demonstration without what differs from run to run."""
    return re.sub(r"port \d+|[\d.]+ s after", "…", line).rstrip()


def test_what_was_sent_and_dropped_is_filed_counted_and_paired(walk):
    lacks = [done.lacks for done in walk.done.values() if done.lacks]
    if lacks:
        missing(lacks[0])
    sent = len(list((walk.home / "patients/patient-001").rglob("*.dcm")))
    wait_until(lambda: walk.status()["pairs"]["ready"] == 2, 60, "both pairs")
    wait_until(lambda: walk.status()["instances"]["waiting"] == 0, 30, "nothing waits")
    assert walk.status()["instances"] == {
        "filed": 2 * sent, "duplicates": sent, "quarantined": 0, "skipped": 0, "waiting": 0,
    }  # fmt: skip
    studies = walk.sh("petct-ingest studies --root petct").output
    assert "PHANTOM-0001" in studies
    assert "PHANTOM-0002" in studies
    assert "…" not in studies  # nothing is cut off in eighty columns


def test_the_commands_that_need_no_daemon_leave_what_the_readme_says(walk):
    assert {"ct.npy", "pet.npy", "pair.json", "qc.png"} == names_in(walk.home / "pair-1")
    assert {"ct.nii.gz", "pet.nii.gz"} < names_in(walk.home / "pair-4mm")
    words, inspected = [walk.done[one].output for one in COMMANDS if " inspect " in one]
    assert "…" not in words  # nothing is cut off in eighty columns
    assert json.loads(inspected)["studies"][0]["pair"]["state"] == "ready"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_the_python_of_the_readme_prints_what_its_comments_say(walk, block):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=walk.home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = re.findall(r"# (\(\d.*)$", block, re.MULTILINE)
    assert said
    assert set(said) <= set(found.stdout.splitlines())


@pytest.mark.parametrize("block", blocks(README, "toml"))
def test_the_settings_of_the_readme_are_settings(tmp_path, block):
    (tmp_path / "petct.toml").write_text(block)
    settings = load_settings(tmp_path / "petct.toml", environ={})
    assert settings.root == tmp_path / "petct"


def test_a_held_pair_ends_with_three_and_writes_nothing(tmp_path):
    runner = CliRunner()
    assert (
        runner.invoke(frame.app, ["phantom", str(tmp_path / "in"), "--size", "tiny"]).exit_code == 0
    )
    sorted((tmp_path / "in" / "PET AC").iterdir())[3].unlink()
    done = runner.invoke(frame.app, ["pair", str(tmp_path / "in"), str(tmp_path / "out")])
    assert done.exit_code == offline.EXIT_HELD == 3
    assert "7 of 8" in done.output
    assert not (tmp_path / "out").exists()


def test_the_page_of_exit_codes_has_them_all():
    page = (PROJECT / "docs/exit-codes.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)}
    assert codes == {0, frame.EXIT_UNEXPECTED, frame.EXIT_ERROR, offline.EXIT_HELD}


# names in every paper ---------------------------------------------------------------------------


def calls(text: str) -> list[str]:
    """The command lines of petct-ingest that a paper names, without the program."""
    lines = [line for _, body in FENCE.findall(text) for line in body.splitlines()]
    places = [*lines, *CODE.findall(FENCE.sub("", text))]
    return [
        found[1]
        for place in places
        if (found := re.search(r"(?:^|[\s/])petct-ingest ([a-z][^#|`]*)", place))
    ]


def every_call() -> list[tuple[str, str]]:
    return [(path.name, call) for path in PAPERS for call in calls(path.read_text())]


@pytest.mark.parametrize(("paper", "call"), sorted(set(every_call())))
def test_a_command_that_a_paper_names_exists_with_its_options(paper, call):
    words = call.split()
    table = {entry.name: entry for entry in frame.COMMANDS}
    assert words[0] in table, paper
    command = table[words.pop(0)].load()
    options = {name for one in command.params for name in one.opts}
    if isinstance(command, typer.core.TyperGroup) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, paper
        options |= {name for one in command.commands[words[0]].params for name in one.opts}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= options, paper


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_what_a_paper_links_to_is_there(path):
    text = FENCE.sub("", path.read_text())
    links = [one for one in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in one]
    named = [one for one in CODE.findall(text) if re.fullmatch(rf"({FOLDERS})/[\w./*-]*", one)]
    absent = [one for one in links if not (path.parent / one).exists()]
    absent += [one for one in named if not list(PROJECT.glob(one.rstrip("/")))]
    assert not absent


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_a_setting_that_a_paper_names_is_in_the_defaults(path):
    text = path.read_text()
    keys = set(known_keys())
    tables = {key.partition(".")[0] for key in keys if "." in key}
    pattern = rf"`((?:{'|'.join(tables)})(?:\.[a-z_]+)+)\b(?! *\()"
    files = (".py", ".npy", ".sqlite", ".toml")
    named = {one for one in re.findall(pattern, text) if not one.endswith(files)}
    variables = set(re.findall(r"PETCT_INGEST_([A-Z_]+)=", text))
    named |= {one.lower().replace("__", ".") for one in variables}
    assert named <= keys
    defaults = (PROJECT / "config/default.toml").read_text()
    for one in named:
        assert re.search(rf"^(# )?{one.rpartition('.')[2]} *=", defaults, re.MULTILINE), one


def test_the_page_of_the_index_has_every_table_and_column_and_no_other():
    page = (PROJECT / "docs/index.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(metadata.tables)
    for name, table in metadata.tables.items():
        assert set(table.columns.keys()) <= set(CODE.findall(sections[name])), name


def test_the_page_of_pairing_has_every_role():
    page = (PROJECT / "docs/pairing.md").read_text()
    assert {str(role) for role in Role} <= set(CODE.findall(page))


def test_the_page_of_operations_has_every_reason_for_quarantine():
    page = set(CODE.findall((PROJECT / "docs/operations.md").read_text()))
    kinds = {DataError}
    while more := {below for one in kinds for below in one.__subclasses__()} - kinds:
        kinds |= more
    of_ours = {one for one in kinds if one.__module__.startswith("workers.")}
    codes = {one.code for one in of_ours - {PixelError, MediaDirectory}}  # no way to quarantine
    assert codes | {str(Likeness.VARIANT), str(Likeness.CONFLICT), "replaced"} <= page


@pytest.mark.parametrize("path", sorted((PROJECT / "docs/decisions").iterdir()), ids=str)
def test_a_decision_is_short_and_has_a_number_of_its_own(path):
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
    assert len(path.read_text().splitlines()) <= 40
    assert len(list(path.parent.glob(f"{path.name[:4]}-*"))) == 1
