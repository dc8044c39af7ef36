"""What others wrote never commands the terminal in which somebody looks at it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filing_world import FOLDER, World, changed, encoded, make_world, other_pixels, tiny
from running import petct
from typer.testing import CliRunner

from daemon.cli.app import app
from workers.index.tables import study

HOSTILE = "A\x1b]0;mine\x07\x9b2J\u202e[red]"
"""A window's title, a cleared screen (C1), a line that reads backwards, and a style of Rich."""


def hostile(number: int) -> bytes:
    content = encoded(tiny("CT IMAGES", number))
    return changed(content, SpecificCharacterSet="ISO_IR 192", PatientID=HOSTILE,
                   StudyDescription=HOSTILE, SeriesDescription=HOSTILE, PatientName=HOSTILE,
                   AccessionNumber="7\x1b[2J")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = make_world(tmp_path_factory.mktemp("site") / "root", redis={"url": "unix:///none.sock"})
    made.put({f"{HOSTILE}/0": hostile(0), f"{HOSTILE}/1": b"no instance"}, FOLDER)
    made.file()
    made.put({f"{HOSTILE}/2": other_pixels(hostile(0))}, FOLDER)
    made.file()
    yield made
    made.close()


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drop")
    home = folder / "P" / "A\x1b[2J" / "studies" / "1"
    home.mkdir(parents=True)
    for number in range(2):
        (home / f"{number}\x1b[2J").write_bytes(hostile(number))
    (home / "junk\x1b[2J\u202e").write_text("no instance")
    return folder


def printed(*words: object, codes: tuple[int, ...] = (0,)) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code in codes, f"{done.output}{done.exception!r}"
    return done.output


def commands(output: str) -> set[str]:
    return {char for char in output if not char.isprintable()} - {"\n"}


@pytest.mark.parametrize(
    "words",
    [("studies",), ("find", "modality=CT"), ("show", "STUDY", "--files"), ("held",),
     ("quarantine",), ("events",), ("top", "--once"), ("status",), ("check",)],
    ids=" ".join,
)  # fmt: skip
def test_what_a_header_or_a_path_says_is_shown_and_not_done(
    world: World, words: tuple[str, ...]
) -> None:
    (row,) = world.rows(study)
    asked = [row.study if word == "STUDY" else word for word in words]
    output = printed(*asked, "--root", world.layout.root, codes=(0, 3))
    assert not commands(output)


@pytest.mark.parametrize("words", [("inspect", "DROP"), ("deid-report", "DROP"),
                                   ("reindex", "--no-pair", "--archive", "DROP", "--root", "OUT")],
                         ids=lambda words: words[0])  # fmt: skip
def test_what_a_folder_holds_is_shown_and_not_done(
    drop: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    places = {"DROP": drop, "OUT": tmp_path / "out"}
    output = printed(*(places.get(word, word) for word in words), codes=(0, 3))
    assert not commands(output)
    assert "\\x1b" in output


def test_an_error_is_one_line_whatever_it_quotes(tmp_path: Path) -> None:
    command = petct("reindex", "--root", tmp_path, "--archive", tmp_path / "none\n\x1b[2J")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count("\n") == 1
    assert not commands(done.stderr)
