"""Measure what an idle system costs: CPU seconds of each process, while nothing arrives.

    python benchmarks/idle.py                              a new installation
    python benchmarks/idle.py --instances 200000 --files 10000
                                                           with an index of 200 studies, and a
                                                           watched folder of 10,000 files whose
                                                           files stay (mode "copy")

`petct-ingest run` with its settings as they come; what /proc says of it and of all its descendants
is read, a minute is waited, and it is read again. Exits 1 above one hundredth of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MOST = 0.01
"""Of one core."""
_TICKS = os.sysconf("SC_CLK_TCK")


def processes(top: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds (its ended children's too) of a process and all below it."""
    parents: dict[int, int] = {}
    facts: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            facts[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS
    family = {top}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    return {one: (_role(one), facts[one]) for one in sorted(family) if one in facts}


def _role(pid: int) -> str:
    """What stands behind `daemon` on its command line; the queue server's own name."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "daemon" in words:
            role = words[words.index("daemon") + 1 :]
            return " ".join(role[:2] if role[0] == "work" else role[:1])
        return os.path.basename(words[0].split()[0])
    return str(pid)


@contextlib.contextmanager
def system(root: Path, inbox: Path) -> Iterator[int]:
    """Run everything below a root; yields the process to look at."""
    config = root.parent / "config.toml"
    config.write_text(
        f'root = "{root}"\n[receiver]\nport = 0\n[spool]\nminimum_free_mb = 100\n'
        f'[[watch]]\npath = "{inbox}"\nmode = "copy"\n'
    )
    words = root.with_suffix(".log")
    with words.open("wb") as log:
        command = [sys.executable, "-P", "-m", "daemon", "run", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 180
        while b"petct-ingest is ready" not in words.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(words.read_text())
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fill_folder(folder: Path, count: int) -> None:
    """Write small instances of one series that differ in their SOPInstanceUID."""
    from workers.phantom.spec import PhantomSpec
    from workers.phantom.study import instance

    data_set = instance(PhantomSpec(size="tiny"), "CT IMAGES", 0)
    encoded = io.BytesIO()
    data_set.save_as(encoded, enforce_file_format=True)
    uid = str(data_set.SOPInstanceUID).encode()
    for number in range(count):
        own = uid[:-7] + str(1_000_000 + number).encode()
        (folder / f"{number:06d}.dcm").write_bytes(encoded.getvalue().replace(uid, own))


def wait_filed(root: Path, files: int, seconds: float) -> None:
    """Wait until every file of the folder is filed, and the first sweep after it is over."""
    import sqlite3

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.closing(sqlite3.connect(root / "index.sqlite", timeout=30)) as index:
            (found,) = index.execute(
                "SELECT count(*) FROM arrival WHERE source LIKE 'folder:%'"
            ).fetchone()
        if found >= files:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{found} of {files} filed")


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seconds", type=float, default=60)
    asked.add_argument("--instances", type=int, default=0, help="in the index, of 1,000 a study")
    asked.add_argument("--files", type=int, default=0, help="in a watched folder, and stay there")
    asked.add_argument("--settle", type=float, default=70, help="seconds before the first look")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, inbox = Path(folder) / "root", Path(folder) / "drop"
        inbox.mkdir()
        fill_folder(inbox, given.files)
        if given.instances:
            from synthetic_index import fill

            fill(root, given.instances)
        with system(root, inbox) as top:
            wait_filed(root, given.files, 600)
            time.sleep(given.settle)  # the series that came last is found quiet after a minute
            before = processes(top)
            time.sleep(given.seconds)
            after = processes(top)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {given.seconds:.0f} s idle")
    total = 0.0
    for pid, (role, seconds) in after.items():
        used = seconds - before.get(pid, (role, 0.0))[1]
        total += used
        print(f"{role:<16} {used:5.2f} s  {used / given.seconds:7.2%} of a core")
    share = total / given.seconds
    print(f"{'all':<16} {total:5.2f} s  {share:7.2%} of a core (at most {MOST:.0%})")
    return int(share > MOST)


if __name__ == "__main__":
    sys.exit(main())
