"""The command `top`: what happens now, in a terminal, drawn anew every other second."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from daemon.cli.escaping import shown
from daemon.cli.naming import words_of
from daemon.cli.options import Config, Root, settings_of
from daemon.looking import RATE_SECONDS
from daemon.web.reading import Installation
from daemon.web.snapshot import LATELY_SECONDS, Snapshot, Snapshots
from workers import clock
from workers.errors import IndexUnusable
from workers.index.queries import list_studies

_LAST_PAIRS = 5
_BARS = " ▁▂▃▄▅▆▇█"
_MOST_TROUBLES = 5
_MOST_SERIES = 8


@dataclass(frozen=True, slots=True)
class View:
    """What is drawn once."""

    at: str
    """UTC."""
    snapshot: Snapshot
    paired: tuple[dict[str, Any], ...]
    """Some studies whose pair is ready, the newest first."""
    rate: float | None
    """Instances filed a second since the view before; None where there is none."""

    def to_json_object(self) -> dict[str, Any]:
        """Return the object of `top --json`: that of `status --json`, and what is drawn beside."""
        status = self.snapshot.status
        return {
            **status.to_json_object(),
            "at": self.at,
            "filed_lately": status.filed_lately,
            "oldest_seconds": status.oldest_seconds,
            "arriving": list(self.snapshot.arriving),
            "paired": list(self.paired),
            "held": list(self.snapshot.held),
            "disks": [asdict(one) for one in self.snapshot.disks],
            "hours": [asdict(one) for one in self.snapshot.hours],
            "troubles": list(status.troubles),
        }


def top(
    root: Root = None,
    config: Config = None,
    interval: Annotated[
        float, typer.Option(min=0.2, metavar="S", help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, once.")] = False,
) -> None:
    """Show what arrives, waits, is paired and hinders now; Ctrl+C ends it.

    Where stdout is no terminal it looks once. It reads only, and may run beside a running system.
    """
    with closing(Installation(settings_of(root, config))) as installation:
        snapshots = Snapshots(installation)
        view = _look(installation, snapshots, None)
        if as_json:
            print(json.dumps(view.to_json_object()))
            return
        console = Console(highlight=False)
        if once or not sys.stdout.isatty():
            console.print(draw(view))
            return
        with (
            suppress(KeyboardInterrupt),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                live.update(draw(view), refresh=True)
                time.sleep(interval)
                view = _look(installation, snapshots, view)


def _look(installation: Installation, snapshots: Snapshots, before: View | None) -> View:
    snapshot, paired, at = snapshots.newest(), [], clock.utc_now()
    with suppress(IndexUnusable), installation.index.read() as connection:
        paired = list_studies(connection, limit=_LAST_PAIRS, state="ready")
    return View(at, snapshot, tuple(paired), rate_between(before, at, snapshot))


def rate_between(before: View | None, at: str, snapshot: Snapshot) -> float | None:
    """Return how many instances a second were filed between two views."""
    if before is None:
        return None
    seconds = clock.seconds_between(before.at, at)
    more = snapshot.status.counts.filed - before.snapshot.status.counts.filed
    return max(0, more) / seconds if seconds > 0 else None


def draw(view: View) -> RenderableType:
    """Draw a view; what matters most stands above, for a small terminal shows no more."""
    parts: list[RenderableType] = [_heading(view)]
    troubles = view.snapshot.status.troubles
    parts += [Text(f"! {shown(one)}", "bold red") for one in troubles[:_MOST_TROUBLES]]
    if len(troubles) > _MOST_TROUBLES:
        parts.append(
            Text(f"! and {len(troubles) - _MOST_TROUBLES} more: petct-ingest status", "red")
        )
    parts += [_numbers(view), _arriving(view)]
    if view.paired:
        parts.append(_pairs(view))
    return Group(*parts)


def _heading(view: View) -> Text:
    hours = [one.received for one in view.snapshot.hours]
    text = Text(f"petct-ingest  {view.at[11:19]} UTC", "bold")
    if any(hours):
        text.append("   24 h ", "dim").append(_spark(hours), "cyan")
        text.append(f" {sum(hours):,} received", "dim")
    return text


def _spark(counts: list[int]) -> str:
    """Draw counts as bars of one character; only nothing is blank."""
    most = max(counts)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def _numbers(view: View) -> Table:
    status, counts = view.snapshot.status, view.snapshot.status.counts
    table = Table(
        Column(no_wrap=True), Column(ratio=1), show_header=False, box=None, pad_edge=False
    )
    studies = "study" if counts.studies == 1 else "studies"
    lately = f"{status.filed_lately / RATE_SECONDS:.1f} a second in 5 minutes"
    now = "" if view.rate is None else f"{view.rate:.1f} a second now, "
    table.add_row(
        "filed", f"{counts.filed:,} instances, {counts.studies:,} {studies}; {now}{lately}"
    )
    oldest = "" if status.oldest_seconds is None else f", oldest for {status.oldest_seconds:,.0f} s"
    queues = ", ".join(f"{name} {depth:,}" for name, depth in status.queues.items())
    table.add_row("waiting", f"{status.waiting:,}{oldest}; queues: {queues}")
    for host in status.hosts:
        table.add_row("host", f"{host.name}: {host.state}")
    table.add_row(
        "pairs", ", ".join(f"{number:,} {state}" for state, number in counts.pairs.items())
    )
    aside = f"{counts.quarantined:,} quarantined, {counts.duplicates:,} duplicates"
    table.add_row("aside", f"{aside}, {counts.skipped:,} skipped")
    for disk in view.snapshot.disks:
        free, whole = disk.free / 2**30, disk.total / 2**30
        words = f"{free:,.1f} GiB free of {whole:,.1f} ({100 * disk.used_fraction:.0f} % used)"
        table.add_row("disk", f"{disk.names}: {words}")
    return table


def _arriving(view: View) -> RenderableType:
    if not view.snapshot.arriving:
        return Text(f"\nNothing was filed in the last {LATELY_SECONDS // 60} minutes.", "dim")
    table = Table(
        Column("Arriving", ratio=2, overflow="fold"),
        Column("Series", ratio=3, overflow="fold"),
        Column("Pair", no_wrap=True),
        Column("Last", no_wrap=True, justify="right"),
    )
    for one in view.snapshot.arriving:
        members = one["series"]
        series = [words_of(member) for member in members[:_MOST_SERIES]]
        if len(members) > _MOST_SERIES:
            series.append(f"and {len(members) - _MOST_SERIES} more")
        name = "\n".join(
            shown(part) for part in (one["patient_ID"], one["study_description"]) if part
        )
        pair = one["pair"]["state"] if one["pair"] else "none"
        table.add_row(
            Text(name), Text(", ".join(map(shown, series))), pair, _ago(one["last_at"], view.at)
        )
    return table


def _pairs(view: View) -> Table:
    table = Table(
        Column("Last pairs", ratio=3, overflow="fold"),
        Column("Revision", justify="right"),
        Column("Took", no_wrap=True, justify="right"),
        Column("Ready", no_wrap=True, justify="right"),
    )
    for one in view.paired:
        pair = one["pair"]
        took = ""
        if pair["needed_at"] and pair["ready_at"]:
            took = f"{clock.seconds_between(pair['needed_at'], pair['ready_at']):.1f} s"
        ready = _ago(pair["ready_at"], view.at) if pair["ready_at"] else ""
        table.add_row(Text(shown(one["patient_ID"])), str(pair["revision"]), took, ready)
    return table


def _ago(earlier: str, later: str) -> str:
    seconds = max(0.0, clock.seconds_between(earlier, later))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
