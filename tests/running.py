"""Start, look at and end real processes of ours, and await conditions."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WITHOUT_PAGE = {"PETCT_INGEST_WEB__ENABLED": "false"}
"""The many that run at once would fight for its port; a test of the page asks for it."""


def wait_until(condition: Callable[[], object], seconds: float = 20, what: str = "") -> object:
    """Return the first true value of a condition; fail after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    return state_of(pid) not in ("", "Z", "X")


def state_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def children_of(pid: int) -> dict[int, str]:
    """Return the live children of a process: id and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and alive(int(entry.name)):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = words.decode(errors="replace").strip()
    return found


def descendants_of(pid: int) -> dict[int, str]:
    found = children_of(pid)
    for child in list(found):
        found |= descendants_of(child)
    return found


class Running:
    """A process with its output in files, so that a full pipe never stops it."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | WITHOUT_PAGE | environment,
            )
        self.pid = self.process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def await_output(self, words: str, seconds: float = 30) -> None:
        def there() -> bool:
            if words in self.stdout or words in self.stderr:
                return True
            assert self.process.poll() is None, f"ended early: {self.stderr}"
            return False

        wait_until(there, seconds, f"{words!r} in the output of {self.process.args}")

    def end(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def running(arguments: list[str], folder: Path, **environment: str) -> Iterator[Running]:
    """Run a process; at the end it and all that it started are gone, or the test fails."""
    one = Running(arguments, folder, **environment)
    family = {}
    try:
        yield one
    finally:
        if one.process.poll() is None:
            family = descendants_of(one.pid)
            one.process.kill()
            one.process.wait(10)
        for pid in family:
            wait_until(lambda pid=pid: not alive(pid), 10, f"end of {pid}: {family[pid]}")


def petct(*arguments: object) -> list[str]:
    """The command line of petct-ingest in this environment."""
    return [sys.executable, "-P", "-m", "daemon", *map(str, arguments)]
