"""The command `doctor`: look at all that an installation stands on, with advice."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from daemon.cli.escaping import shown
from daemon.cli.options import Config, Root, settings_of
from daemon.doctor.examining import examine
from daemon.doctor.findings import Finding, Level, exit_is_clean

EXIT_ILL = 3
"""Something does not work; it was named, with advice."""

_STYLES = {Level.OK: "green", Level.WARN: "bold yellow", Level.FAIL: "bold red"}


def doctor(
    root: Root = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Look at ports, permissions, disks, limits, clock and servers; exit code 3 where one fails.

    It changes nothing, and may run beside a running system, as the same user.
    """
    found = examine(settings_of(root, config))
    well = exit_is_clean(found)
    if as_json:
        print(json.dumps({"ok": well, "checks": [asdict(one) for one in found]}))
    else:
        _print(Console(), found)
    if not well:
        raise typer.Exit(EXIT_ILL)


def _print(console: Console, found: list[Finding]) -> None:
    table = Table(Column("What", ratio=2), Column("", no_wrap=True), Column("Found", ratio=5))
    for one in found:
        words = escape(shown(one.words))
        if one.advice:
            words += f"\n[bold]→ {escape(shown(one.advice))}[/bold]"
        style = _STYLES[one.level]
        table.add_row(escape(one.name), f"[{style}]{one.level}[/{style}]", words)
    console.print(table)
