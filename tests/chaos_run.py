"""Kill the system at work and judge what is left: `make chaos ARGS="--seeds 1-10"`.

docs/proof.md says what is done and what is judged.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chaos_delivery import Delivery, make_delivery, study_pieces
from chaos_disk import Disk, best_kinds, disk
from chaos_judge import Promise, Verdict, digests_of_pair, judge
from chaos_killer import Killer
from chaos_plan import Plan
from chaos_senders import Dropper, Ledger, Senders, Target
from chaos_system import System
from installation import Installation
from running import petct, wait_until

IDLE_SECONDS = 300
"""How long the system may take, left alone, until nothing waits."""

_SETTINGS = """\
root = "{root}"
[receiver]
port = {port}
[[watch]]
path = "{root}/inbox"
settle_seconds = 1.0
scan_seconds = 10
[[watch]]
path = "{elsewhere}"
settle_seconds = 1.0
scan_seconds = 10
[spool]
minimum_free_mb = {minimum_free_mb}
minimum_free_inodes = 10
[filing]
workers = {filing_workers}
"""

Say = Callable[[str], None]


@dataclass
class Report:
    """What one run did and what the judge found."""

    seed: int
    disk: str
    minimum_free_mb: int
    instances: int = 0
    """Different SOPInstanceUIDs that were delivered."""
    acknowledged: int = 0
    dropped: int = 0
    unanswered: int = 0
    """Sent, but killed before the answer; they were sent again."""
    refused: int = 0
    """Answered 0xA700; they were sent again."""
    associations: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    lost: int = 0
    doubled: int = 0
    corrupted: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    idle_seconds: float = 0.0
    """From the last delivery or kill until nothing waited."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.corrupted or self.problems)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())


@dataclass(frozen=True)
class Scene:
    """The places of one run."""

    folder: Path
    disk: Disk
    one: Installation
    elsewhere: Path
    system: System

    @property
    def inboxes(self) -> list[Path]:
        return [self.one.inbox, self.elsewhere]


@contextmanager
def scene(plan: Plan, kind: str, folder: Path, minimum_free_mb: int) -> Iterator[Scene]:
    with ExitStack() as stack:
        megabytes = 96 + plan.instances // 40
        own = stack.enter_context(disk(kind, folder, megabytes))
        one = Installation(own.place)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        config = folder / "chaos.toml"
        config.write_text(
            _SETTINGS.format(
                root=one.root,
                port=one.port,
                elsewhere=elsewhere,
                minimum_free_mb=minimum_free_mb,
                filing_workers=2 if plan.seed % 3 == 0 else 1,
            )
        )
        system = System(one, config, folder / "logs", own.environment)
        stack.callback(system.end)
        yield Scene(folder, own, one, elsewhere, system)


def run_chaos(
    plan: Plan, folder: Path, pairs: Mapping[str, Mapping[str, str]], say: Say = lambda _: None
) -> Report:
    """Run a plan in an empty folder and judge it; `pairs` are those of `undisturbed_pairs`."""
    kinds = best_kinds()
    kind = kinds[plan.seed % (len(kinds) - 1 or 1)] if plan.disk == "auto" else plan.disk
    # with a low water mark intake ends before the disk is full, without one in the middle of it
    report = Report(plan.seed, kind, 0 if plan.seed // 2 % 2 or kind == "hook" else 1)
    began = time.monotonic()
    delivery = make_delivery(plan, folder / "delivery")
    ledger = Ledger()
    with scene(plan, kind, folder, report.minimum_free_mb) as place:
        place.system.start()
        place.system.await_ready()
        _deliver(plan, place, delivery, ledger, report, say)
        quiet = time.monotonic()
        _await_idle(place, pairs, report)
        report.idle_seconds = round(time.monotonic() - quiet, 1)
        _settle(place, report)
        promise = Promise(
            delivery.digests, ledger.acknowledged, ledger.unanswered, ledger.dropped, pairs
        )
        report.pairs = len(pairs)
        verdict = judge(place.one.root, place.inboxes, promise)
        _ask_the_system_itself(place, len(delivery.digests), report)
        report.problems += place.system.unexpected_ends + ledger.troubles
        if "Traceback" in place.system.output:
            report.problems.append("a traceback in the log")
    _write_down(report, delivery, ledger, verdict)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def undisturbed_pairs(studies: int, folder: Path) -> dict[str, dict[str, str]]:
    """Let the system pair the studies in peace; return the digests of their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    one = Installation(folder)
    files = [piece.path for number in range(studies) for piece in study_pieces(folder, number)]
    if not files:
        return {}
    with one.run() as process:
        with one.sending(files) as sender:
            assert sender.process.wait(120) == 0, sender.stderr
        ready = "select study, folder from pair join study on study.id = study_id"
        ready += " where state = 'ready' and generation = done_generation"
        wait_until(lambda: len(one.ask(ready)) == studies, IDLE_SECONDS, "undisturbed pairs")
        pairs = {
            study: digests_of_pair(one.layout.archive / place) for study, place in one.ask(ready)
        }
        assert process.end() == 0
    return pairs


def _deliver(
    plan: Plan, place: Scene, delivery: Delivery, ledger: Ledger, report: Report, say: Say
) -> None:
    senders = Senders(plan, Target(place.one.port), ledger, place.folder / "senders")
    dropper = Dropper(plan, place.inboxes, ledger)
    killer = Killer(plan, place.system, place.disk, dropper, delivery)
    total = delivery.to_send + delivery.to_drop
    try:
        senders.start(delivery.send)
        # as long as the senders take, at some 150 instances a second
        dropper.start(delivery.drop, 2 * delivery.to_send / 150 / max(1, len(delivery.drop)))
        killer.run(lambda: ledger.taken / total, say)
        end = time.monotonic() + IDLE_SECONDS + total / 50
        while not (senders.done and dropper.done):
            place.system.keep_alive()
            if time.monotonic() > end:
                report.problems.append("not everything could be delivered")
                break
            time.sleep(0.1)
    finally:
        senders.stop()
        dropper.stop()
        place.disk.empty()
    report.kills, report.events = dict(killer.kills), dict(killer.done)
    say(f"{total} delivered, {report.killed} kills")


def _await_idle(place: Scene, pairs: Mapping[str, object], report: Report) -> None:
    """Wait until nothing waits in folders, spool and queues, and every pair is made."""
    place.system.keep_alive()
    end = time.monotonic() + IDLE_SECONDS
    while waits := _what_waits(place, len(pairs)):
        if time.monotonic() > end:
            report.problems.append(f"still waiting after {IDLE_SECONDS} s: {waits}")
            return
        time.sleep(0.2)


def _what_waits(place: Scene, pairs: int) -> str:
    entries = [path for path in _all_files(place.one.layout.ready) if path.name != "batch.json"]
    if entries:
        return f"{len(entries)} entries in the spool"
    for inbox in place.inboxes:
        if files := _all_files(inbox):
            return f"{len(files)} files in {inbox.name}"
    made = place.system.ask(
        "select count(*), sum(state = 'ready' and generation = done_generation) from pair"
    )
    if not made or (made[0][1] or 0) < max(pairs, made[0][0]):
        return f"pairs: {made} of {pairs}"
    return ""


def _all_files(top: Path) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(top) for name in names]


def _settle(place: Scene, report: Report) -> None:
    """Let an hour pass for what kills left half-written, and let the sweeper see it once."""
    layout = place.one.layout
    if place.system.stop() != 0:
        report.problems.append("`run` did not end with 0")
    old = time.time() - 2 * 3600
    tops = (layout.incoming, layout.archive_private / "tmp", layout.quarantine)
    for top in tops:
        for path in top.rglob("*") if top.exists() else ():
            os.utime(path, (old, old), follow_symlinks=False)
    place.system.start()
    place.system.await_ready()
    end = time.monotonic() + 40
    while time.monotonic() < end and (
        any(any(top.iterdir()) for top in tops if top.exists()) or any(layout.ready.iterdir())
    ):
        time.sleep(0.1)
    if place.system.stop() != 0:
        report.problems.append("`run` did not end with 0 at last")


def _ask_the_system_itself(place: Scene, instances: int, report: Report) -> None:
    """Hear `status` and `check`, which must say what the judge sees."""
    status = json.loads(_answer("status", "--json", "--root", place.one.root).stdout)
    told = status["instances"]
    arrived = place.system.ask("select count(*) from arrival where outcome = 'duplicate'")
    expected = {"filed": instances, "duplicates": arrived[0][0], "quarantined": 0, "skipped": 0,
                "waiting": 0}  # fmt: skip
    if told != expected:
        report.problems.append(f"status says {told}, not {expected}")
    if _answer("check", "--help").returncode == 0:
        done = _answer("check", "--json", "--checksums", "--config", place.folder / "chaos.toml")
        if done.returncode != 0:
            report.problems.append(
                f"check: exit {done.returncode}: {done.stdout[:1000]}{done.stderr[-500:]}"
            )


def _answer(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(petct(*words), capture_output=True, text=True, timeout=600, check=False)


def _write_down(report: Report, delivery: Delivery, ledger: Ledger, verdict: Verdict) -> None:
    report.instances = len(delivery.digests)
    report.acknowledged = ledger.acknowledged.total()
    report.dropped = ledger.dropped.total()
    report.unanswered = ledger.unanswered.total()
    report.refused = ledger.refused
    report.associations = dict(ledger.associations)
    report.lost, report.doubled = len(verdict.lost), len(verdict.doubled)
    report.corrupted = len(verdict.corrupted)
    report.problems += verdict.drift
    for name in ("lost", "doubled", "corrupted"):
        if found := getattr(verdict, name):
            report.problems.append(f"{name}: {', '.join(found[:5])}")


def table(reports: list[Report]) -> str:
    """Lay reports out for people, with the sums."""
    heads = ("seed", "disk", "acknowledged", "dropped", "unanswered", "refused", "kills", "other",
             "pairs", "lost", "doubled", "corrupted", "problems", "seconds")  # fmt: skip
    rows = [
        (r.seed, r.disk, r.acknowledged, r.dropped, r.unanswered, r.refused, r.killed,
         sum(r.events.values()) - r.killed, r.pairs, r.lost, r.doubled, r.corrupted,
         len(r.problems), round(r.seconds))
        for r in reports
    ]  # fmt: skip
    sums = ["all", "", *(sum(column) for column in list(zip(*rows, strict=True))[2:])]
    cells = [[str(cell) for cell in row] for row in (heads, *rows, sums)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def kills_by_process(reports: list[Report]) -> dict[str, int]:
    """Add up who was killed, and what else happened."""
    sums: dict[str, int] = {}
    for report in reports:
        for name, count in report.kills.items():
            sums[name] = sums.get(name, 0) + count
    for report in reports:
        for name, count in report.events.items():
            if name != "kill":
                sums[f"({name})"] = sums.get(f"({name})", 0) + count
    return sums


def argument_parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    parser = argparse.ArgumentParser(prog="chaos_run.py", description=__doc__)
    parser.add_argument("--seeds", default="1-3", help="such as 7 or 1-10")
    parser.add_argument("--instances", type=int, default=Plan.instances)
    parser.add_argument("--studies", type=int, default=Plan.studies)
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--senders", type=int, default=Plan.senders)
    parser.add_argument("--disk", default="auto", choices=("auto", "tmpfs", "loop", "hook"))
    parser.add_argument("--results", type=Path, help="a file to add one JSON line a seed to")
    parser.add_argument("--folder", type=Path, help="work here, and keep what has problems")
    return parser


def main(arguments: list[str]) -> int:
    """Run one seed after the other; seeds that stand in the results already are left out."""
    options = argument_parser().parse_args(arguments)
    first, _, last = options.seeds.partition("-")
    reports = _read(options.results)
    done = {report.seed for report in reports}
    seeds = [seed for seed in range(int(first), int(last or first) + 1) if seed not in done]
    top = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.folder))
    try:
        pairs = undisturbed_pairs(options.studies, top / "undisturbed") if seeds else {}
        for seed in seeds:
            plan = Plan(seed, options.instances, options.studies, options.kills,
                        senders=options.senders, disk=options.disk)  # fmt: skip
            folder = top / str(seed)
            folder.mkdir()
            report = run_chaos(plan, folder, pairs, lambda words, seed=seed: _say(seed, words))
            reports.append(report)
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(report)) + "\n")
            _say(seed, "clean" if report.clean else f"NOT CLEAN {report.problems}")
            if report.clean or not options.folder:
                shutil.rmtree(folder)
    finally:
        if not options.folder:
            shutil.rmtree(top, ignore_errors=True)
    print(table(reports))
    print(kills_by_process(reports))
    return 0 if all(report.clean for report in reports) else 1


def _read(results: Path | None) -> list[Report]:
    if results is None or not results.exists():
        return []
    return [Report(**json.loads(line)) for line in results.read_text().splitlines()]


def _say(seed: int, words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} seed {seed}: {words}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmount the disk, end the system
    sys.exit(main(sys.argv[1:]))
