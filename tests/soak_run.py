"""Send for long and watch what grows: `make soak ARGS="--instances 200000"`.

Memory, file handles and threads of every process, and the keys of the queue server, are sampled
while small instances are sent, dropped and filed and tiny studies are paired. docs/proof.md states
the bounds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import redis
from chaos_delivery import study_pieces
from chaos_plan import ROLES
from chaos_system import System
from installation import AE_TITLE, Installation, dcmtk

from workers.phantom.study import write_many

GROWTH_MB = 20.0
"""What the resident memory of a process may grow by after the first quarter."""
MORE_HANDLES = 8
"""How many more file handles or threads a process may have than it had by the first quarter."""
HANDLES_IN_USE = {"filing worker": 130}
"""So many are no growth: a worker holds the 100 entries of a batch open."""
MOST_KEYS = 200
"""Keys in the queue server at any time."""

_PORTION = 1000
_SENDERS = 4
_A_DROP_EVERY = 5
_A_STUDY_EVERY = 5
_MOST_WAITING = 5000
_PATIENTS = 1000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Process:
    """One process at one moment."""

    pid: int
    rss_mb: float
    handles: int
    threads: int


@dataclass(frozen=True)
class Sample:
    seconds: float
    arrived: int
    processes: dict[str, Process]
    keys: int | None
    """None while the queue server does not answer."""


@dataclass
class SoakReport:
    instances: int
    studies: int = 0
    seconds: float = 0.0
    samples: int = 0
    growth_mb: dict[str, float] = field(default_factory=dict)
    rss_mb: dict[str, float] = field(default_factory=dict)
    handles: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Most in the first quarter, most after it."""
    threads: dict[str, tuple[int, int]] = field(default_factory=dict)
    most_keys: int = 0
    problems: list[str] = field(default_factory=list)


def assess(samples: list[Sample], report: SoakReport) -> None:
    """Compare what was sampled after the first quarter of the instances with what was by then."""
    quarter = report.instances / 4
    early = [s for s in samples if s.arrived <= quarter]
    late = [s for s in samples if s.arrived > quarter]
    report.samples = len(samples)
    if not early or not late:
        report.problems.append("too few samples")
        return
    for role in ROLES.keys() | {"supervisor"}:
        before = [s.processes[role] for s in early if role in s.processes]
        after = [s.processes[role] for s in late if role in s.processes]
        if not before or not after:
            report.problems.append(f"{role} was not seen")
            continue
        few = max(1, len(after) // 5)
        # from the time about the first quarter to the last fifth after it
        first = median(p.rss_mb for p in (before[-few:] + after[:1]))
        report.rss_mb[role] = round(median(p.rss_mb for p in after[-few:]), 1)
        report.growth_mb[role] = round(report.rss_mb[role] - first, 1)
        report.handles[role] = max(p.handles for p in before), max(p.handles for p in after)
        report.threads[role] = max(p.threads for p in before), max(p.threads for p in after)
        if len({p.pid for p in before + after}) != 1:
            report.problems.append(f"{role} did not live through it")
        if report.growth_mb[role] > GROWTH_MB:
            report.problems.append(f"{role} grew by {report.growth_mb[role]} MB")
        for what, (least, most), in_use in (
            ("file handles", report.handles[role], HANDLES_IN_USE.get(role, 0)),
            ("threads", report.threads[role], 0),
        ):
            if most > max(least + MORE_HANDLES, in_use):
                report.problems.append(f"{role} has {most} {what}, {least} before")
    report.most_keys = max((s.keys for s in samples if s.keys is not None), default=0)
    if report.most_keys > MOST_KEYS:
        report.problems.append(f"{report.most_keys} keys in the queue server")


def run_soak(
    instances: int, folder: Path, every_seconds: float = 5.0, say: Say = lambda _: None
) -> SoakReport:
    """Let so many instances through an installation in an empty folder, and sample it."""
    one = Installation(folder)
    config = folder / "soak.toml"
    config.write_text(
        f'root = "{one.root}"\n[receiver]\nport = {one.port}\n'
        f'[[watch]]\npath = "{one.inbox}"\nsettle_seconds = 0.5\n'
    )
    system = System(one, config, folder / "logs", {})
    report = SoakReport(instances)
    samples: list[Sample] = []
    began = time.monotonic()

    def look() -> None:
        now = time.monotonic() - began
        if not samples or now - samples[-1].seconds >= every_seconds:
            samples.append(_sample(system, now))
            say(f"{samples[-1].arrived} of {instances} after {now:.0f} s")

    try:
        system.start()
        system.await_ready()
        total = _deliver(one, instances, folder, report, look)
        _await_arrivals(one, total, look)
        samples.append(_sample(system, time.monotonic() - began))
        if system.stop() != 0:
            report.problems.append("`run` did not end with 0")
        if "Traceback" in system.output or "role-ended" in system.output:
            report.problems.append("a process died")
        one_each = one.ask("select count(*), count(distinct instance_uid) from instance")[0]
        if one_each != (total, total):
            report.problems.append(f"{one_each} instances and UIDs in the index, not {total}")
    finally:
        system.end()
    report.seconds = round(time.monotonic() - began, 1)
    assess(samples, report)
    return report


def _deliver(
    one: Installation, instances: int, folder: Path, report: SoakReport, look: Callable[[], None]
) -> int:
    """Send and drop portion after portion; return how many instances that were in all."""
    total = 0
    for number, start in enumerate(range(0, instances, _PORTION)):
        portion = folder / "portion"
        count = min(_PORTION, instances - start)
        written = write_many(portion, count, folders=10, patient_number=_PATIENTS + number)
        files = list(written.values())
        if number % _A_DROP_EVERY == _A_DROP_EVERY - 1:
            subprocess.run(["mv", portion, one.inbox / f"drop-{number}"], check=True, timeout=60)
        else:
            if number % _A_STUDY_EVERY == 0:
                pieces = study_pieces(portion, report.studies)
                files += [piece.path for piece in pieces]
                report.studies += 1
            _send(one, files, folder, report, look)
            shutil.rmtree(portion)
        total += len(files)
        _await_arrivals(one, total - _MOST_WAITING, look)
    return total


def _await_arrivals(one: Installation, count: int, look: Callable[[], None]) -> None:
    end = time.monotonic() + 600
    while _arrived(one) < count:
        assert time.monotonic() < end, f"{_arrived(one)} of {count} arrived"
        look()
        time.sleep(0.2)


def _send(
    one: Installation, files: list[Path], folder: Path, report: SoakReport, look: Callable[[], None]
) -> None:
    command = [dcmtk("dcmsend"), "-aec", AE_TITLE, "127.0.0.1", str(one.port)]
    senders = [
        subprocess.Popen(
            [*command, *map(str, files[start::_SENDERS])], env=os.environ | {"TCP_NODELAY": "1"}
        )
        for start in range(_SENDERS)
    ]
    for sender in senders:
        while sender.poll() is None:
            look()
            time.sleep(0.02)
        if sender.returncode != 0:
            report.problems.append(f"a sender ended with {sender.returncode}")


def _arrived(one: Installation) -> int:
    """How many entries left the spool; nothing is ever deleted there, so the last key counts."""
    found = one.ask("select max(id) from arrival")
    return int(found[0][0] or 0) if found else 0


def _sample(system: System, seconds: float) -> Sample:
    processes = {}
    for role, pid in {"supervisor": system.process.pid, **system.roles()}.items():
        with suppress(OSError):
            processes[role] = _look_at(pid)
    keys = None
    with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(system.socket)) as client:
        keys = int(str(client.dbsize()))
    return Sample(seconds, _arrived(system.one), processes, keys)


def _look_at(pid: int) -> Process:
    status = Path(f"/proc/{pid}/status").read_text()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    rss_mb = int(facts["VmRSS"].split()[0]) / 1024
    return Process(pid, rss_mb, len(os.listdir(f"/proc/{pid}/fd")), int(facts["Threads"]))


def table(report: SoakReport) -> str:
    """Lay a report out for people."""
    lines = [
        f"{report.instances} instances and {report.studies} studies in {report.seconds:.0f} s,"
        f" {report.samples} samples, at most {report.most_keys} keys",
        "| process | MB at the end | growth MB | handles | threads |",
        "|---|--:|--:|--:|--:|",
    ]
    for role in sorted(report.rss_mb):
        handles, threads = report.handles[role], report.threads[role]
        lines.append(
            f"| {role} | {report.rss_mb[role]} | {report.growth_mb[role]:+}"
            f" | {handles[0]} -> {handles[1]} | {threads[0]} -> {threads[1]} |"
        )
    return "\n".join([*lines, *report.problems])


def argument_parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    parser = argparse.ArgumentParser(prog="soak_run.py", description=__doc__)
    parser.add_argument("--instances", type=int, default=200_000)
    parser.add_argument("--every-seconds", type=float, default=10.0)
    parser.add_argument("--results", type=Path, help="a file to add one JSON line to")
    return parser


def main(arguments: list[str]) -> int:
    """Run the long form and print what grew."""
    options = argument_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = run_soak(
            options.instances,
            Path(folder),
            options.every_seconds,
            lambda words: print(time.strftime("%H:%M:%S"), words, flush=True),
        )
    if options.results:
        with options.results.open("a") as file:
            file.write(json.dumps(asdict(report)) + "\n")
    print(table(report))
    return 1 if report.problems else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the system
    sys.exit(main(sys.argv[1:]))
