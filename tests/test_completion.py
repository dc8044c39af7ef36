"""The shell completes commands, subcommands, options and values, and loads what it needs alone."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing


@pytest.fixture
def home(tmp_path) -> Path:
    """A home in which the completion was installed, for a program that is on PATH."""
    if not shutil.which("bash"):
        missing("bash is not installed")
    program = tmp_path / "bin" / "petct-ingest"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m daemon "$@"\n')
    program.chmod(0o755)
    done = in_bash(tmp_path, "petct-ingest --install-completion bash")
    assert done.returncode == 0, done.stderr
    return tmp_path


def in_bash(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = f"{home}/bin{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--norc", "-c", script], env=os.environ | {"HOME": str(home), "PATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_bash_completes_what_is_typed(home):
    def completed(*words: str) -> set[str]:
        script = (
            '. "$HOME/.bashrc"\n'
            f"COMP_WORDS=({shlex.join(['petct-ingest', *words])})\n"
            f"COMP_CWORD={len(words)}\n"
            "function=$(complete -p petct-ingest | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
            '$function petct-ingest\nprintf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = in_bash(home, script)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert completed("st") == {"status", "studies"}
    assert completed("held", "fo") == {"force", "forget"}
    assert completed("config", "c") == {"check"}
    assert completed("studies", "--mod") == {"--modality"}
    assert completed("studies", "--state", "") == {"pending", "ready", "held", "no_pair"}


def test_to_complete_a_command_loads_no_command():
    script = (
        "import sys\n"
        "from daemon.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    asked = {"_PETCT_INGEST_COMPLETE": "complete_bash", "COMP_WORDS": "petct-ingest st",
             "COMP_CWORD": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=os.environ | asked,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["status", "studies"]
    loaded = set(done.stderr.split())
    assert not loaded & {"sqlalchemy", "SimpleITK", "numpy", "pydicom", "rq", "daemon.cli.finding"}
