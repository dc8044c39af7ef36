"""`top`: what happens now, once for programs and pipes, again and again in a terminal."""

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import termios
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.console import Console
from running import petct, wait_until
from web_world import MARKUP, PATIENTS, fill

from daemon.cli.topping import View, draw, rate_between
from daemon.web.reading import Installation
from daemon.web.snapshot import Snapshots


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = fill(tmp_path_factory.mktemp("top"))
    yield world
    world.index.close()


@pytest.fixture
def view(world):
    installation = Installation(world.settings)
    yield View("2099-01-01T00:00:00.000Z", Snapshots(installation).newest(), (), None)
    installation.close()


def drawn(view: View, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw(view))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_it_fits_its_terminal_and_cuts_nothing_off(view, width):
    text = drawn(view, width)
    assert max(map(len, text.splitlines())) <= width
    for patient in PATIENTS:
        assert patient in text
    assert "…" not in text
    assert "held" in text


def test_what_others_wrote_is_text(view):
    words = drawn(view, 200)
    assert MARKUP[:8] in words
    hostile = [{**one, "patient_ID": "A\x1b[2Jclear"} for one in view.snapshot.arriving]
    assert "\x1b" not in drawn(replace(view, snapshot=replace(view.snapshot, arriving=hostile)), 80)


def test_the_rate_is_what_was_filed_between_two_views(view):
    counts = view.snapshot.status.counts
    later = replace(
        view.snapshot,
        status=replace(view.snapshot.status, counts=replace(counts, filed=counts.filed + 50)),
    )
    assert rate_between(None, view.at, later) is None
    assert rate_between(view, "2099-01-01T00:00:02.000Z", later) == 25
    assert rate_between(view, view.at, later) is None


def test_in_a_pipe_it_looks_once_and_as_json_it_says_what_status_says_and_more(world):
    def said(*options: str) -> str:
        command = petct("top", "--root", world.settings.root, *options)
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert "Last pairs" in said()
    found = json.loads(said("--json"))
    assert found["pairs"] == {"ready": 1, "held": 1, "pending": 0}
    assert [one["patient_ID"] for one in found["paired"]] == [PATIENTS[0]]
    assert len(found["arriving"]) == 3
    assert found["troubles"]
    assert sum(one["received"] for one in found["hours"]) == found["instances"]["filed"] + 1


def test_in_a_terminal_it_draws_again_until_ctrl_c(world):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen(
        petct("top", "--interval", "0.2", "--root", world.settings.root),
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def drawings() -> int:
        with suppress(BlockingIOError):
            shown.extend(os.read(ours, 1 << 16))
        return shown.count(b"Arriving")

    try:
        wait_until(lambda: drawings() >= 3, 30, "three drawings")
        assert b"\x1b[?1049h" in shown  # a screen of its own: what was there before comes back
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        wait_until(lambda: drawings() and b"\x1b[?1049l" in shown)
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
