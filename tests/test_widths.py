"""What people read fits a terminal of 80 and of 160 columns, and is whole in a pipe."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner
from web_world import PATIENTS, fill

from daemon.cli.app import app
from daemon.cli.sentences import tell

WORDS = "the study arrived under two PatientIDs: " + "correct one of them at its source, " * 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    world = fill(tmp_path_factory.mktemp("widths"))
    world.index.close()
    return str(world.settings.root)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(
    "command",
    [
        "studies",
        "quarantine",
        "events",
        "top",
        "find modality=PT",
        "find modality=PT --level instance",
    ],
)
def test_a_table_fits_its_terminal_and_cuts_nothing_off(root, command, width):
    environment = {"COLUMNS": str(width), "PETCT_INGEST_LOGGING__LEVEL": "ERROR"}
    done = CliRunner().invoke(app, [*command.split(), "--root", root], env=environment)
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "…" not in done.stdout
    wanted = {"quarantine": "not-dicom", "events": "pair-ready"}.get(command, PATIENTS[0])
    assert wanted in done.stdout


@pytest.mark.parametrize("width", [80, 160])
def test_a_study_is_named_by_its_whole_uid_to_be_copied(root, width):
    found = CliRunner().invoke(app, ["studies", "--json", "--root", root])
    uids = {one["study"] for one in json.loads(found.stdout)}
    done = CliRunner().invoke(app, ["studies", "--root", root], env={"COLUMNS": str(width)})
    assert len(uids) == 3
    assert uids <= set(re.split(r"[│\s]+", done.stdout))


def told(*, terminal: bool, width: int, words: str = WORDS) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    tell(console, "  reasons    ", words)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 160])
def test_a_sentence_is_wrapped_at_words_under_its_beginning(width):
    first, *rest = told(terminal=True, width=width)
    assert rest
    assert first.startswith("  reasons    the study")
    assert all(line.startswith(" " * 13) and line[13] != " " for line in rest)
    assert max(map(len, [first, *rest])) <= width
    assert "".join(line[13:] + " " for line in [first, *rest]).split() == WORDS.split()


def test_in_a_pipe_it_is_one_line():
    assert told(terminal=False, width=80) == [f"  reasons    {WORDS}".rstrip()]


def test_a_sentence_without_a_head_begins_at_the_edge():
    console = Console(file=io.StringIO(), width=20, force_terminal=True, color_system=None)
    tell(console, "", "one two three four five")
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["one two three four", "five"]


def test_markup_in_a_sentence_is_text():
    assert told(terminal=True, width=80, words="[red]a[/red]") == ["  reasons    [red]a[/red]"]
