"""Every dependency is on the page that justifies it, with the licence that its metadata says."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, files, metadata, version
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, missing

PAGE = PROJECT / "docs" / "dependencies.md"
PYPROJECT: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())
_LONGEST_LICENCE_NAME = 50


def named(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", one)[0] for one in requirements}  # type: ignore[index]


def wanted() -> dict[str, set[str]]:
    """What pyproject.toml asks for, under the headings of the page."""
    project = PYPROJECT["project"]
    runs = named(project["dependencies"])
    optional = named([one for group in project["optional-dependencies"].values() for one in group])
    # not the group of the fuzzing, for which there need not be a wheel
    rest = named(PYPROJECT["dependency-groups"]["dev"]) | named(
        PYPROJECT["build-system"]["requires"]
    )
    return {
        "What runs": runs,
        "What is optional": optional,
        "What tests, checks and builds": rest - optional - runs,
    }


def told() -> dict[str, dict[str, list[str]]]:
    """What the page says: heading, package, and the other cells of its line."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| ([\w.-]+) \| (.+) \|$", part, re.MULTILINE)
        found[part.partition("\n")[0]] = {
            name: cells.split(" | ") for name, cells in rows if name != "package"
        }
    return found


def licence_of(package: str) -> str:
    """Name the licence as the package's own metadata does, in the shortest of its ways."""
    says = metadata(package)
    plain = (says.get("License") or "").strip()
    if says.get("License-Expression"):
        return str(says["License-Expression"])
    if plain and "\n" not in plain and len(plain) <= _LONGEST_LICENCE_NAME:
        return plain
    classifiers = [one for one in says.get_all("Classifier") or [] if "OSI Approved" in one]
    if classifiers:
        return classifiers[0].rpartition(" :: ")[2]
    (file,) = [one for one in files(package) or [] if one.name == "LICENSE"]
    return file.read_text().strip().splitlines()[0]


@pytest.mark.parametrize("heading", list(wanted()))
def test_the_page_names_just_what_pyproject_asks_for(heading: str) -> None:
    assert set(told()[heading]) == wanted()[heading], f"docs/dependencies.md, {heading}"


def test_every_line_says_what_it_does_here_and_what_it_replaces() -> None:
    for heading in wanted():
        for package, cells in told()[heading].items():
            assert len(cells) == 3, package
            assert all(cells), package


def test_the_licences_are_those_of_the_packages_metadata() -> None:
    said = {name: cells[0] for heading in wanted() for name, cells in told()[heading].items()}
    real = {}
    for name in said:
        try:
            real[name] = licence_of(name)
        except PackageNotFoundError:
            missing(f"{name} is not installed")
    assert said == real


def test_nothing_that_is_installed_with_the_program_is_under_a_copyleft_licence() -> None:
    page = told()
    for name, cells in page["What runs"].items():
        assert "GPL" not in cells[0], name
    # what somebody asks for besides may be a library under the LGPL, used as it is: we import it,
    # and neither change it nor pass it on
    lesser = {name for name, cells in page["What is optional"].items() if "GPL" in cells[0]}
    assert lesser == {"psycopg"}
    assert page["What is optional"]["psycopg"][0].startswith("LGPL-")


def test_the_tested_set_pins_every_dependency_once_and_names_no_host() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
    names = [normal(pin.partition("==")[0]) for pin in pins]
    assert len(names) == len(set(names))
    asked = {normal(name) for group in wanted().values() for name in group}
    assert asked <= set(names), "make constraints"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_runs_here_is_what_the_tested_set_pins() -> None:
    pins = dict(
        line.split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    other = {name: version(name) for name in wanted()["What runs"] if name in pins}
    assert other == {name: pins[name] for name in other}


AUDITOR = """#!/bin/sh
echo "$PIP_AUDIT_SAYS" >&2
exit $PIP_AUDIT_ENDS
"""


@pytest.mark.parametrize(
    ("ends", "says", "code", "words"),
    [
        (0, "No known vulnerabilities found", 0, "No known vulnerabilities found"),
        (1, "Found 1 known vulnerability in 1 package", 1, "Found 1 known"),
        (1, "ERROR:pip_audit._cli:Could not connect to the service", 3, "nothing was checked"),
        (1, "Traceback (most recent call last):", 3, "nothing was checked"),
    ],
)
def test_an_audit_tells_what_is_known_from_what_could_not_be_asked(
    tmp_path: Path, ends: int, says: str, code: int, words: str
) -> None:
    auditor = tmp_path / "pip-audit"
    auditor.write_text(AUDITOR)
    auditor.chmod(0o755)
    done = subprocess.run(
        ["sh", PROJECT / ".ci" / "audit", auditor, PROJECT / "constraints.txt"],
        env=os.environ | {"PIP_AUDIT_SAYS": says, "PIP_AUDIT_ENDS": str(ends)},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == code
    assert words in done.stdout + done.stderr
