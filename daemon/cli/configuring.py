"""The command `config check`: each setting, where it came from, and what cannot work."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from config.origins import Explained, Origin, explain
from config.places import lines_of, variable_of
from config.problems import Problem, device_of, find_problems, why_unreadable
from config.settings import Settings
from daemon.cli.escaping import plain, shown
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.sentences import tell

EXIT_PROBLEM = 3
"""A setting cannot work; it was named."""

config = typer.Typer(no_args_is_help=True, help="Explain the settings.")


@config.callback()
def _group() -> None:
    """Explain the settings."""


@config.command()
def check(
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show every setting, its default and its origin, and what cannot work; exit code 3 then.

    Secrets are hidden. A key that is none, or a value that cannot be, is exit code 2.
    """
    settings = settings_of(root, config)
    found = explain(settings, config)
    defaults = {one.key: one.value for one in explain(Settings(root=settings.root), None, {})}
    problems = find_problems(settings, why_unreadable, device_of)
    lines: dict[str, int] = {}
    if config is not None:
        with suppress(OSError, UnicodeDecodeError):
            lines = lines_of(config.read_text("utf-8"))
    rows = [(one, defaults[one.key], _place(one, config, lines)) for one in found]
    well = not any(one.fails for one in problems)
    if as_json:
        print(json.dumps({"ok": well, "settings": _objects(rows), "problems": _told(problems)}))
    else:
        _print(Console(highlight=False), rows, problems)
    if not well:
        raise typer.Exit(EXIT_PROBLEM)


_Row = tuple[Explained, str, str]


def _place(one: Explained, file: Path | None, lines: dict[str, int]) -> str:
    if one.origin is Origin.ENVIRONMENT:
        return variable_of(one.key)
    if one.origin is Origin.FILE and file is not None:
        line = lines.get(one.key)
        return f"{file}:{line}" if line else str(file)
    return str(one.origin)


def _objects(rows: list[_Row]) -> list[dict[str, Any]]:
    return [
        {"key": one.key, "value": one.value, "default": default, "origin": str(one.origin),
         "place": place, "meaning": one.meaning}
        for one, default, place in rows
    ]  # fmt: skip


def _told(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [
        {"key": one.key, "level": "fail" if one.fails else "warn", "words": one.words}
        for one in problems
    ]


def _print(console: Console, rows: list[_Row], problems: tuple[Problem, ...]) -> None:
    for one, default, place in rows:
        name = one.key
        if one.origin is not Origin.DEFAULT:
            name = f"[bold]{name}[/bold]"
            if default != one.value:
                place += f", default {default}"
        console.print(f"{name} = {plain(one.value)}")
        words = f": {one.meaning}" if one.meaning else ""
        tell(console, "    ", f"{shown(place)}{words}", "dim")
    for problem in problems:
        style = "bold red" if problem.fails else "bold yellow"
        tell(console, "! ", f"{problem.key}: {shown(problem.words)}", style)
    if not problems:
        console.print("nothing speaks against them", style="green")
