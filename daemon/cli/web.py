"""The command `web`: the page alone, and what is set up for it."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Annotated

import typer

from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.roles import serve

_DEFAULT_FILE = "web.password"

web = typer.Typer(invoke_without_command=True, help="Run the web page alone.")


@web.callback()
def run(context: typer.Context, root: Root = None, config: Config = None) -> None:
    """Run the web page alone, until it is told to stop."""
    context.obj = (root, config)
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(root, config)
    from daemon.web.serving import address_of, port_file, run_web

    bound = port_file(settings.layout)
    bound.unlink(missing_ok=True)
    service = partial(run_web, config=config)
    serve(service, settings, "web", bound, lambda: f"the page is at {address_of(settings)}")


@web.command()
def password(
    context: typer.Context,
    root: Root = None,
    config: Config = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read it from the first line of stdin.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Set the password of the page; whoever is logged in must log in anew.

    Its hash is written where web.password_file says, else to web.password below the root.
    """
    before_root, before_config = context.obj or (None, None)
    settings = settings_of(root or before_root, config or before_config)
    from daemon.errors import AccessUnusable
    from daemon.web.access.passwords import why_unfit, write_password

    path = settings.root.absolute() / (settings.web.password_file or _DEFAULT_FILE)
    given = _read_line() if stdin else typer.prompt("Password", hide_input=True, err=True,
                                                    confirmation_prompt=True)  # fmt: skip
    if unfit := why_unfit(given):
        raise typer.BadParameter(unfit)
    try:
        write_password(path, given)
    except OSError as error:
        raise AccessUnusable("web.password_file", error.strerror or "unwritable") from None
    asked_for = settings.web.password_file is not None
    if as_json:
        typer.echo(json.dumps({"written": str(path), "asked_for": asked_for}))
        return
    typer.echo(f"written: {path}")
    if not asked_for:
        typer.echo(f'ask for it: [web] password_file = "{_DEFAULT_FILE}", then start anew')


def _read_line() -> str:
    return sys.stdin.readline(1 << 16).rstrip("\r\n")
