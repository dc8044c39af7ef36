"""The command `doctor`: look at all that an installation stands on, with advice."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from daemon.cli.escaping import plain
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.doctor.findings import Finding, Level, exit_is_clean

if TYPE_CHECKING:
    from config.settings import Settings

EXIT_ILL = 3
"""Something does not work; it was named, with advice."""


class Who(StrEnum):
    """What can be asked alone."""

    RECEIVER = "receiver"
    PAGE = "page"


_STYLES = {Level.OK: "green", Level.WARN: "bold yellow", Level.FAIL: "bold red"}


def doctor(
    root: Root = None,
    config: Config = None,
    answers: Annotated[
        Who | None, typer.Option(help="Ask one role alone whether it answers: for health checks.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at ports, permissions, disks, limits, clock and servers; exit code 3 where one fails.

    It changes nothing, and may run beside a running system, as the same user.
    """
    settings = settings_of(root, config)
    found = _examine(settings) if answers is None else [_ask(settings, answers)]
    well = exit_is_clean(found)
    if as_json:
        print(json.dumps({"ok": well, "checks": [asdict(one) for one in found]}))
    else:
        _print(Console(), found)
    if not well:
        raise typer.Exit(EXIT_ILL)


def _examine(settings: Settings) -> list[Finding]:
    from daemon.doctor.examining import examine  # the index: not for a health check

    return examine(settings)


def _ask(settings: Settings, who: Who) -> Finding:
    from daemon.doctor.network import ask_page, ask_receiver

    return ask_receiver(settings) if who is Who.RECEIVER else ask_page(settings)


def _print(console: Console, found: list[Finding]) -> None:
    table = Table(Column("What", ratio=2), Column("", no_wrap=True), Column("Found", ratio=5))
    for one in found:
        words = plain(one.words)
        if one.advice:
            words += f"\n[bold]→ {plain(one.advice)}[/bold]"
        style = _STYLES[one.level]
        table.add_row(plain(one.name), f"[{style}]{one.level}[/{style}]", words)
    console.print(table)
