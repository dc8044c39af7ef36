"""The command `install`: what systemd is given, printed or written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.options import Host, Json, Port

_MODE = 0o644


def install(
    printing: Annotated[bool, typer.Option("--print", help="Print every file.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Write them below DIR; / installs them."),
    ] = None,
    prefix: Annotated[
        Path | None,
        typer.Option(metavar="P", help="Where the program lies (where this one does)."),
    ] = None,
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="The settings that the units run with.")
    ] = Path("/etc/petct-ingest/config.toml"),
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="R", help="Where everything lies (the settings, or /var/lib)."
        ),
    ] = None,
    host: Host = None,
    port: Port = None,
    as_json: Json = False,
) -> None:
    """Print or write systemd's units, the account and the folders, as the settings ask for them.

    It starts nothing and touches no data. docs/install.md says what comes before and after.
    """
    if printing == (to is not None):
        raise typer.BadParameter("give --print or --to DIR")
    from config.settings import load_settings
    from daemon.errors import CannotInstall
    from daemon.units import SHIPPED_ROOT, Places, render
    from workers.durable import replace_file
    from workers.export.bundled import bundled

    given: dict[str, Any] = {
        key: value for key, value in (("host", host), ("port", port)) if value is not None
    }
    config = config.absolute()
    there = config if os.path.exists(config) else None
    if there is None:
        print(f"petct-ingest: no {config} yet: made for the defaults", file=sys.stderr)
    # without a file to say it, the root is the usual one; what this shell has set does not count
    usual = None if there else SHIPPED_ROOT
    settings = load_settings(
        there,
        root=root.absolute() if root else usual,
        overrides={"receiver": given} if given else None,
        environ={},
    )
    if settings.receiver.port == 0:
        raise CannotInstall("receiver.port is 0: senders need a port that stays; give --port")
    places = Places((prefix or Path(sys.prefix)).absolute(), config, rooted=root is not None)
    folder = bundled("systemd")
    shipped = {
        str(path.relative_to(folder)): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files = {
        to / path.relative_to("/") if to else path: text
        for path, text in render(shipped, settings, places).items()
    }
    for path, text in files.items():
        if to is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode(), _MODE)
        if not as_json:
            print(f"### {path}\n{text}" if to is None else path)
    if as_json:
        found = [{"path": str(path), "content": text} for path, text in files.items()]
        print(json.dumps({"files": found}))
