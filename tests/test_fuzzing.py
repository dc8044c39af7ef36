"""Every target of the fuzzing takes its seeds, and some hundred changed ones."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT
from fuzzing import targets
from fuzzing.run import LONGEST_INPUT, mutated
from fuzzing.seeds import seeds_of
from fuzzing.targets import TARGETS

INPUTS = 60


CACHED = (
    targets.workplace,
    targets.kept_files,
    targets.installation,
    targets.receiver,
    targets.deidentifier,
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PETCT_FUZZ_PLACE", str(tmp_path))
    monkeypatch.delenv("PETCT_TEST_DATA", raising=False)
    yield
    if targets.receiver.cache_info().currsize:
        targets.receiver().close()
    for cached in CACHED:
        cached.cache_clear()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_whatever_it_is_given(name: str) -> None:
    pool = list(seeds_of(name).values())
    chance = random.Random(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in pool:
            TARGETS[name](data[:LONGEST_INPUT])
        for _ in range(INPUTS):
            TARGETS[name](mutated(chance.choice(pool), pool, chance))


def test_a_target_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "tests" / "fuzzing" / "run.py", "nonsense"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "header, placing" in done.stdout


def test_the_page_of_limits_names_every_target_and_make_runs_them() -> None:
    page = (PROJECT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in TARGETS)
    done = subprocess.run(
        ["make", "--dry-run", "fuzz", "ARGS=--seconds 60 header archives"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tests/fuzzing/run.py --seconds 60 header archives" in done.stdout
