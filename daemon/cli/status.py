"""The command `status`, which loads little: who types it waits for every import."""

from __future__ import annotations

import json

from daemon.cli.escaping import shown
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.looking import RATE_SECONDS, Status, look


def status(root: Root = None, config: Config = None, as_json: Json = False) -> None:
    """Show what arrived, what became of it, and what hinders the system."""
    found = look(settings_of(root, config))
    if as_json:
        print(json.dumps(found.to_json_object()))
    else:
        _print_status(found)


def _print_status(found: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    from daemon.cli.sentences import tell

    console, counts = Console(soft_wrap=True), found.counts
    table = Table(show_header=False)
    studies_word = "study" if counts.studies == 1 else "studies"
    table.add_row("filed", f"{counts.filed:,} instances in {counts.studies:,} {studies_word}")
    table.add_row("duplicates", f"{counts.duplicates:,}")
    table.add_row("quarantined", f"{counts.quarantined:,}")
    table.add_row("skipped", f"{counts.skipped:,}")
    oldest = (
        "" if found.oldest_seconds is None else f", the oldest for {found.oldest_seconds:.0f} s"
    )
    table.add_row("waiting", f"{found.waiting:,}{oldest}")
    if found.waiting or found.filed_lately:
        rate = found.filed_lately / RATE_SECONDS
        table.add_row("lately", f"{found.filed_lately:,} filed in 5 minutes, {rate:.1f} a second")
    table.add_row("series", ", ".join(f"{n:,} {name}" for name, n in counts.series.items()) or "0")
    table.add_row("pairs", ", ".join(f"{n:,} {name}" for name, n in counts.pairs.items()))
    table.add_row("queues", ", ".join(f"{n:,} {name}" for name, n in found.queues.items()))
    for host in found.hosts:
        table.add_row(f"host {host.name}", host.state)
    console.print(table)
    for trouble in found.troubles:
        tell(console, "! ", shown(trouble), "bold red")
    if counts.quarantined:
        console.print("see: petct-ingest quarantine", style="dim")
    if counts.pairs.get("held"):
        console.print("see: petct-ingest held", style="dim")
