"""Five hosts in a lab, cut, killed and restarted, and what is left judged: `make lab`.

A and B receive, C has the queue server and PostgreSQL, D and E pair; the archive is shared.
docs/several-hosts.md says what is done and what is judged.
"""

import argparse
import contextlib
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from chaos_delivery import Piece, data_set_digest, study_pieces
from chaos_judge import Promise, files_below, judge_archive
from chaos_run import undisturbed_pairs
from chaos_senders import Ledger, Senders, Target
from chaos_system import signal_to
from lab_net import Network
from lab_system import DICOM_PORT, PAIRING, RECEIVING, Lab
from running import state_of, wait_until

from workers.phantom.study import write_many

IDLE_SECONDS = 300
_ANSWER_SECONDS = 60.0
_PAIR_SECONDS = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class LabPlan:
    """One run; equal plans make equal deliveries."""

    seed: int = 1
    studies: int = 20
    instances: int = 1500
    """Small CT instances, beside the studies."""
    senders: int = 4
    quiet_seconds: float = 10.0
    cut_seconds: float = 8.0

    def draw(self, purpose: str) -> Random:
        return Random(f"{self.seed} {purpose}")


@dataclass
class LabReport:
    """What one run did and what the judge found."""

    seed: int
    archive: str
    instances: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    refused: int = 0
    associations: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    by_host: dict[str, int] = field(default_factory=dict)
    """Arrivals by the host that filed them."""
    pairs: int = 0
    lost: int = 0
    doubled: int = 0
    corrupted: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    idle_seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.corrupted or self.problems)


def run_lab(
    plan: LabPlan, folder: Path, pairs: Mapping[str, Mapping[str, str]], say: Say = lambda _: None
) -> LabReport:
    """Run a plan in an empty folder and judge it; `pairs` are those of `undisturbed_pairs`."""
    began = time.monotonic()
    parts, digests = _delivery(plan, folder / "delivery")
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        lab = Lab(folder, plan.quiet_seconds, stack)
        report = LabReport(plan.seed, "bindfs" if lab.is_cached else "one folder", len(digests))
        lab.start()
        say("ready")
        target = Target(
            DICOM_PORT,
            tuple(lab.network.addresses[name] for name in RECEIVING),
            kinds=("dcmsend", "storescu"),
            enter=lab.network.enter(Network.OUTSIDE),
            options=("-to", "3", "-ta", "5", "-td", "5"),
        )
        senders = Senders(plan, target, ledger, folder / "senders")
        senders.start([], later=len(parts))
        try:
            Disturber(plan, lab, Delivery(parts, senders, ledger), report, say).run()
            lab.wait_until(lambda: senders.done, IDLE_SECONDS, "the end of the delivery")
        finally:
            senders.stop()
        quiet = time.monotonic()
        try:
            lab.wait_until(lambda: not _what_waits(lab, len(pairs)), IDLE_SECONDS)
        except AssertionError:
            report.problems.append(f"still waiting: {_what_waits(lab, len(pairs))}")
        report.idle_seconds = round(time.monotonic() - quiet, 1)
        _ask_the_system_itself(lab, len(digests), report)
        for host in lab.hosts.values():
            host.stop()
            report.problems += host.unexpected_ends
            if "Traceback" in host.output or '"traceback"' in host.output:
                report.problems.append(f"a traceback in the log of {host.name}")
        promise = Promise(digests, ledger.acknowledged, ledger.unanswered, ledger.dropped, pairs)
        with lab.database.connect() as index:
            verdict = judge_archive(index, lab.archive, promise)
        left = [
            f"{name}: {path}"
            for name in RECEIVING
            for top in ("spool/ready", "spool/incoming", "quarantine")
            for path in files_below(lab.hosts[name].root / top)
        ]
        if left:
            verdict.say("left over", left)
        counted = lab.ask("select host, count(*) from arrival group by host order by host")
        report.by_host = dict(counted)  # type: ignore[arg-type]
    report.acknowledged = ledger.acknowledged.total()
    report.unanswered = ledger.unanswered.total()
    report.refused, report.associations = ledger.refused, dict(ledger.associations)
    report.pairs = len(pairs)
    report.lost, report.doubled = len(verdict.lost), len(verdict.doubled)
    report.corrupted = len(verdict.corrupted)
    report.problems += verdict.drift + ledger.troubles
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _delivery(plan: LabPlan, folder: Path) -> tuple[list[list[Piece]], dict[str, str]]:
    """Write what is sent; each study in two halves, which may go to two hosts.

    The first study comes first, so that a pair is due early.
    """
    parts: list[list[Piece]] = []
    for number in range(plan.studies):
        pieces = study_pieces(folder, number)
        parts += [pieces[::2], pieces[1::2]]
    if plan.instances:
        written = [Piece(uid, path) for uid, path in
                   write_many(folder / "small", plan.instances, folders=10).items()]  # fmt: skip
        parts += [written[start : start + 50] for start in range(0, len(written), 50)]
    rest = parts[2:]
    plan.draw("delivery").shuffle(rest)
    parts[2:] = rest
    return parts, {piece.uid: data_set_digest(piece.path) for part in parts for piece in part}


class Delivery:
    """What is sent, in portions: something is on its way whenever something happens."""

    def __init__(self, parts: list[list[Piece]], senders: Senders, ledger: Ledger) -> None:
        self._parts, self._senders, self._ledger = parts, senders, ledger
        self._given, self._total = 0, sum(map(len, parts))

    def give(self, share: float) -> None:
        """Let so much of it be sent, and await the first answer to what was added."""
        before, end = self._ledger.taken, math.ceil(share * len(self._parts))
        added, self._given = self._parts[self._given : end], end
        self._senders.more(added)
        if added:
            wait_until(lambda: self._ledger.taken > before, _ANSWER_SECONDS, "an answer")

    @property
    def share(self) -> float:
        return self._ledger.taken / self._total


class Disturber:
    """Does to the lab what a bad night does, one thing after the other."""

    def __init__(
        self, plan: LabPlan, lab: Lab, delivery: Delivery, report: LabReport, say: Say
    ) -> None:
        self._plan, self._lab, self._delivery = plan, lab, delivery
        self._report, self._say = report, say
        self._rng = plan.draw("disturber")

    def run(self) -> None:
        for share, action in (
            (0.25, self._cut_the_link),
            (0.45, self._kill_a_receiving_host),
            (0.6, self._kill_a_pairing_host),
            (0.75, self._restart_the_queues),
            (0.9, self._restart_the_database),
        ):
            self._delivery.give(share)
            action()
        self._delivery.give(1.0)
        for name in PAIRING:  # in whatever second of the above they came up
            self._lab.hosts[name].await_ready()

    def _did(self, words: str) -> None:
        self._report.events.append(words)
        self._say(f"{100 * self._delivery.share:5.1f} %  {words}")

    def _cut_the_link(self) -> None:
        self._lab.network.cut("a")
        self._did("the link of A is cut")
        time.sleep(self._plan.cut_seconds)
        self._lab.network.mend("a")
        self._did("the link of A is back")

    def _kill_a_receiving_host(self) -> None:
        host = self._lab.hosts["b"]
        host.kill()
        self._did("B lost its power")
        time.sleep(self._rng.uniform(0.5, 3))
        host.start()
        host.await_ready()
        self._did("B is back")

    def _restart_the_queues(self) -> None:
        self._lab.queues.restart()
        self._did("the queue server was killed and came back empty")

    def _restart_the_database(self) -> None:
        self._lab.database.restart()
        self._did("PostgreSQL crashed and came back")

    def _kill_a_pairing_host(self) -> None:
        """Let D pair, which nobody did yet, and kill it over its first one; E is added."""
        host = self._lab.hosts["d"]
        host.start()
        host.await_ready()
        wait_until(self._stop_a_pair, _PAIR_SECONDS, "a pair that D makes")
        host.kill()
        self._did("D lost its power in the middle of a pair")
        for name in "ed":
            self._lab.hosts[name].start()
        self._did("E starts, and D again")

    def _stop_a_pair(self) -> bool:
        """Stop the process that makes a pair while what it builds is there."""
        horse = self._lab.hosts["d"].horse()
        if horse is None or not signal_to(horse, signal.SIGSTOP):
            return False
        wait_until(lambda: state_of(horse) not in "RSD", 5, "a process that stands still")
        if self._lab.is_building():
            return True
        signal_to(horse, signal.SIGCONT)
        return False


def _what_waits(lab: Lab, pairs: int) -> str:
    for name in RECEIVING:
        ready = lab.hosts[name].root / "spool" / "ready"
        if files := [path for path in files_below(ready) if not path.endswith("batch.json")]:
            return f"{len(files)} entries on {name}"
    found = lab.ask(
        "select count(*), count(*) filter (where state = 'ready'"
        " and generation = done_generation) from pair"
    )
    if not found or found[0][1] < max(pairs, found[0][0]):
        return f"pairs: {found} of {pairs}"
    waiting = lab.ask("select count(*) from series where not quiet")
    return f"{waiting[0][0]} series that are not quiet" if waiting and waiting[0][0] else ""


def _ask_the_system_itself(lab: Lab, instances: int, report: LabReport) -> None:
    """Hear `status` on either host, and `check` on one."""
    for name in RECEIVING:
        done = lab.hosts[name].answer("status", "--json")
        told = json.loads(done.stdout or "{}")
        numbers = told.get("instances", {})
        if (numbers.get("filed"), numbers.get("waiting")) != (instances, 0):
            report.problems.append(f"status of {name} says {numbers}: {done.stderr[-300:]}")
        hosts = [one["name"] for one in told.get("hosts", ()) if one["seen_seconds"] < 60]
        if hosts != [*RECEIVING]:
            report.problems.append(f"status of {name} sees {hosts}")
        done = lab.hosts[name].answer("check", "--json", "--checksums")
        if done.returncode != 0:
            report.problems.append(f"check on {name}: {done.stdout[:800]}{done.stderr[-300:]}")


def argument_parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    parser = argparse.ArgumentParser(prog="lab_run.py", description=__doc__)
    parser.add_argument("--seeds", default="1", help="such as 7 or 1-10")
    parser.add_argument("--studies", type=int, default=LabPlan.studies)
    parser.add_argument("--instances", type=int, default=LabPlan.instances)
    parser.add_argument("--results", type=Path, help="a file to add one JSON line a seed to")
    parser.add_argument("--folder", type=Path, help="work here, and keep what has problems")
    return parser


def main(arguments: list[str]) -> int:
    """Run one seed after the other."""
    options = argument_parser().parse_args(arguments)
    first, _, last = options.seeds.partition("-")
    top = Path(tempfile.mkdtemp(prefix="lab-", dir=options.folder))
    clean = True
    try:
        pairs = undisturbed_pairs(options.studies, top / "undisturbed")
        for seed in range(int(first), int(last or first) + 1):
            folder = top / str(seed)
            folder.mkdir()
            plan = LabPlan(seed, options.studies, options.instances)
            report = run_lab(plan, folder, pairs, lambda words, seed=seed: _say(seed, words))
            clean = clean and report.clean
            line = json.dumps(asdict(report))
            _say(seed, line)
            if options.results:
                with options.results.open("a") as file:
                    file.write(line + "\n")
            if report.clean or not options.folder:
                shutil.rmtree(folder)
    finally:
        if not options.folder:
            shutil.rmtree(top, ignore_errors=True)
    print("clean" if clean else "NOT CLEAN")
    return 0 if clean else 1


def _say(seed: int, words: str) -> None:
    print(f"[{seed}] {time.strftime('%H:%M:%S')} {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
