"""The command `notify`: who is to be told is told, or tried once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from daemon.cli.options import Config, Json, Root, settings_of


def notify(
    root: Root = None,
    config: Config = None,
    test: Annotated[
        bool, typer.Option("--test", help="Send one message to each channel, and say how it went.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell by webhook and e-mail what the table notify asks for, until it is told to stop."""
    settings = settings_of(root, config)
    from daemon.cli.roles import serve
    from daemon.errors import Undelivered
    from daemon.notifying.telling import greeting, run_notifier, senders_of

    senders = senders_of(settings)
    if not test:
        words = f"messages go out by {' and '.join(one.name for one in senders) or 'nothing'}"
        serve(run_notifier, settings, "notify", status=lambda: words)
        return
    if not senders:
        raise Undelivered("nobody is to be told: give notify.webhook.url or notify.email.host")
    for sender in senders:
        sender.send([greeting()])
        if not as_json:
            typer.echo(f"{sender.name}: taken")
    if as_json:
        typer.echo(json.dumps({"taken": [sender.name for sender in senders]}))
