"""Measure how long the command line takes to start: `--help`, `--version` and `status`.

    python benchmarks/startup.py                    on an empty installation
    python benchmarks/startup.py --root ROOT        `status` of this one as well, e.g. one that
                                                    benchmarks/synthetic_index.py filled

Each runs ten times after one that warms the caches up; the quickest counts, for whatever else the
machine does only adds to it. CPU seconds are told too. Exits 1 above the limits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP_SECONDS, STATUS_SECONDS = 0.3, 0.5
RUNS = 10


def runs_of(*arguments: str) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each run of a command."""
    command = [str(Path(sys.executable).with_name("petct-ingest")), *arguments]
    found = []
    for _ in range(RUNS + 1):
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - began, os.times()
        cpu = after.children_user + after.children_system
        found.append((wall, cpu - before.children_user - before.children_system))
    return found[1:]


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--root", type=Path, help="an installation that need not run")
    given = asked.parse_args()
    failed = False
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            (("--help",), HELP_SECONDS),
            (("--version",), HELP_SECONDS),
            (("status", "--root", folder), STATUS_SECONDS),
        ]
        if given.root:
            commands.append((("status", "--root", str(given.root)), STATUS_SECONDS))
        for arguments, limit in commands:
            runs = runs_of(*arguments)
            best = min(wall for wall, _ in runs)
            median = statistics.median(wall for wall, _ in runs)
            cpu = min(cpu for _, cpu in runs)
            failed |= best > limit
            words = " ".join(arguments) if arguments[-1] != folder else "status (empty)"
            print(f"{words:<40} best {best:.2f} s, median {median:.2f} s, CPU {cpu:.2f} s", end="")
            print(f" (at most {limit})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
