"""Commands that are imported only when they are called.

`petct-ingest --help` and the light commands stay quick although others need SimpleITK or
SQLAlchemy: the table of commands holds name, place and summary, and the module behind a name is
imported when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """One command: its name, where its function (or Typer group) lies, and its line in the help."""

    name: str
    module: str
    attribute: str
    summary: str
    panel: str = "Commands"
    hidden: bool = False

    def stub(self) -> Any:
        """Return a command that only knows its line in the help."""
        return _command_of(_nothing, self.name, self.summary, self.panel, self.hidden)

    def load(self) -> Any:
        """Import the module and return the real command; the table's summary is its short help."""
        target = getattr(import_module(self.module), self.attribute)
        if isinstance(target, typer.Typer):
            group = typer.main.get_group(target)
            group.name = self.name
            return group
        return _command_of(target, self.name, target.__doc__ or self.summary, self.panel, False)


class LazyGroup(TyperGroup):
    """A group of lazy commands; subclasses set `table`."""

    table: tuple[LazyCommand, ...] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands in the table's order."""
        return [entry.name for entry in self.table]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command that only knows its line in the help, for the shell's completion."""
        found = (entry.stub() for entry in self.table if entry.name == cmd_name)
        return next(found, None)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands below their panels, as plain text: rich is as dear as all the rest."""
        shown = [entry for entry in self.table if not entry.hidden]
        for panel in dict.fromkeys(entry.panel for entry in shown):
            with formatter.section(panel):
                formatter.write_dl([(one.name, one.summary) for one in shown if one.panel == panel])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the real command; only the one that runs is imported."""
        for entry in self.table:
            if entry.name == args[0]:
                return entry.name, entry.load(), args[1:]
        self.commands = {entry.name: entry.stub() for entry in self.table}  # for a suggestion
        return super().resolve_command(ctx, args)


def _command_of(
    function: Callable[..., Any], name: str, summary: str, panel: str, hidden: bool
) -> Any:
    app = typer.Typer(add_completion=False)
    app.command(name, help=summary, rich_help_panel=panel, hidden=hidden)(function)
    return typer.main.get_command(app)


def _nothing() -> None:
    """Stand in for a command that was not imported."""
