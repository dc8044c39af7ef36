"""The command `check`: compare what lies on disk with what the index says, and mend it."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.console import Console

from daemon.cli.escaping import plain
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.progress import progress
from workers.checking.checker import check
from workers.checking.findings import Report
from workers.checking.scene import Scene
from workers.errors import IndexUnusable
from workers.index.engine import open_index

EXIT_DRIFT = 3
"""Something is wrong and was not mended; it was named."""

_SHOWN = 10


def check_installation(
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read every file and compare its bytes.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended; deletes no data.")
    ] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Compare tree, index, spool, quarantine, queues, pairs and journal; exit code 3 when they
    differ.

    It may run beside `petct-ingest run`, and needs no queue server. docs/check.md explains the
    codes.
    """
    settings = settings_of(root, config)
    try:
        with closing(open_index(settings)) as index, progress(quiet=as_json) as step:
            scene = Scene(settings, index, checksums=checksums, repair=repair, progress=step)
            report = check(scene)
    except sa.exc.DBAPIError as error:
        words = f"the index cannot be read: {error.orig}: restore a backup, or make it anew"
        raise IndexUnusable(words) from error
    if as_json:
        print(json.dumps({**report.to_json_object(), "repair": repair}))
    else:
        _print(Console(soft_wrap=True, highlight=False), report, repair=repair)
    if not report.is_clean:
        raise typer.Exit(EXIT_DRIFT)


def _print(console: Console, report: Report, *, repair: bool) -> None:
    found = report.to_json_object()
    looked = ", ".join(f"{count:,} {what}" for what, count in found["compared"].items())
    console.print(f"compared: {looked or 'nothing is filed yet'}")
    for one in found["findings"]:
        _print_code(console, one, repair=repair)
    if report.is_clean:
        console.print("[bold green]clean[/bold green]")
    else:
        hint = "" if repair else ": `petct-ingest check --repair` mends what can be mended"
        console.print(f"[bold red]{report.left:,} left[/bold red]{hint}")


def _print_code(console: Console, one: dict[str, Any], *, repair: bool) -> None:
    style = {"damage": "bold red", "drift": "bold yellow", "note": "dim"}[one["severity"]]
    mended = f", {one['mended']:,} mended" if repair else ""
    console.print(f"[{style}]{one['code']}[/{style}] ({one['severity']}): {one['count']:,}{mended}")
    console.print(f"  {plain(one['words'])}")
    for example in one["examples"][:_SHOWN]:
        outcome = f" ({example['outcome']})" if repair else ""
        detail = f": {example['detail']}" if example["detail"] else ""
        console.print(f"    {plain(example['where'] + detail)}{outcome}")
    if one["count"] > _SHOWN:
        console.print(f"    and {one['count'] - _SHOWN:,} more")
    if not repair and one["severity"] != "note":
        console.print(f"  --repair: {plain(one['repair'])}")
