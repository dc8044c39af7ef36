"""The command `web`: the page alone, and what is set up for it."""

from __future__ import annotations

import typer

from daemon.cli.options import Config, Root, settings_of
from daemon.cli.roles import serve

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
    serve(run_web, settings, "web", bound, lambda: f"the page is at {address_of(settings)}")
