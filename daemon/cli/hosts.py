"""The hosts that share an index: list them, and let one be forgotten."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from daemon.cli.options import Config, Json, Root, settings_of
from workers.index.engine import asking, open_index
from workers.index.hosts import forget_host
from workers.index.seen import list_hosts

hosts = typer.Typer(invoke_without_command=True, help="List the hosts that share the index.")


@hosts.callback()
def show(
    context: typer.Context,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the hosts that share the index, when each was seen, and what waits there."""
    context.obj = (root, config)
    if context.invoked_subcommand is not None:
        return
    with closing(open_index(settings_of(root, config))) as index, index.read() as connection:
        found = list_hosts(asking(connection))
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    console = Console(soft_wrap=True)
    if not found:
        console.print("One host without a name uses this index (spool.name).")
        return
    table = Table(show_header=False)
    for one in found:
        table.add_row(one.name, one.state)
    console.print(table)


@hosts.command()
def forget(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name, as the list tells it.")],
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Wait no longer for a host that is away; should it come back, its spool is filed."""
    before_root, before_config = context.obj or (None, None)
    settings = settings_of(root or before_root, config or before_config)
    with closing(open_index(settings)) as index, index.write() as connection:
        forget_host(connection, host)
    if as_json:
        print(json.dumps({"forgotten": host}))
        return
    Console(soft_wrap=True).print(f"{host} is forgotten; nothing waits for it")
