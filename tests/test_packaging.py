"""What is installed: names that clash with nobody, a wheel with all it needs, pinned versions."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest
from conftest import PROJECT, missing

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {plain(name): version for name, _, version in pins}


@pytest.mark.parametrize("package", ["config", "workers", "daemon"])
def test_no_other_distribution_claims_a_package_of_ours(package):
    assert set(packages_distributions().get(package, [])) <= {"petct-ingest"}


def test_the_wheel_holds_code_units_migrations_and_defaults_and_no_tests(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"config/default.toml", "daemon/__main__.py", "workers/jobs.py"} <= set(names)
    units = {path.name for path in (PROJECT / "systemd").iterdir() if path.is_file()}
    assert units <= {name.rpartition("/")[2] for name in names if "/systemd/" in name}
    migrations = PROJECT / "workers/index/migrations"
    wanted = {str(path.relative_to(PROJECT)) for path in migrations.rglob("*.py")}
    assert wanted
    assert wanted <= set(names)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"config", "workers", "daemon", "petct_ingest_share"}


def test_every_dependency_is_pinned_to_a_version_and_to_no_host():
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    names = {plain(re.match(r"[A-Za-z0-9._-]+", one).group()) for one in wanted}
    assert names <= set(pinned())
    text = (PROJECT / "constraints.txt").read_text()
    assert not re.search(r"://|@|^-|\bfile:", text, re.M)


def test_the_pins_fulfil_what_the_project_asks_for():
    requirements = pytest.importorskip("packaging.requirements")
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    for one in map(requirements.Requirement, wanted):
        assert one.specifier.contains(pinned()[plain(one.name)]), one


def test_no_package_file_names_what_only_tests_need():
    """The dev group is not installed where the program runs; an extra may be."""

    def names(requirements):
        return {plain(re.match(r"[A-Za-z0-9._-]+", one).group()) for one in requirements}

    extras = names(itertools.chain(*PYPROJECT["project"]["optional-dependencies"].values()))
    dev = names(PYPROJECT["dependency-groups"]["dev"]) - extras
    modules = {name.replace("-", "_") for name in dev}
    for package in ("config", "workers", "daemon"):
        for path in (PROJECT / package).rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M))
            assert not imported & modules, path


def test_make_explains_itself():
    if not shutil.which("make"):
        missing("make is not installed")
    shown = subprocess.run(
        ["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    targets = set(re.findall(r"^make (\w+)", shown, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", (PROJECT / "Makefile").read_text(), re.M).group(1)
    assert targets | {"help"} == set(phony.split())


def test_make_builds_the_environment_and_refuses_an_old_python_in_words(tmp_path):
    if not shutil.which("make"):
        missing("make is not installed")
    stamp = f"{tmp_path}/venv/.made"

    def make(*words):
        command = ["make", f"VENV={tmp_path}/venv", stamp, *words]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)

    refused = make("PYTHON=/bin/false")
    assert refused.returncode != 0
    assert "Python 3.11 or newer" in refused.stdout
    assert make(f"PYTHON={sys.executable}").returncode == 0
    assert (tmp_path / "venv/bin/python").exists()
    assert "up to date" in make().stdout


def test_the_script_for_ci_is_a_valid_program():
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
