"""The command `petct-ingest`: which commands there are, and how an error of ours is told."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from config.errors import ConfigError
from daemon.cli.escaping import shown
from daemon.cli.lazy import LazyCommand, LazyGroup
from daemon.errors import DaemonError
from workers.errors import WorkersError

EXIT_ERROR = 2
"""What could not be done for a reason that is told in one line on stderr."""

EXIT_UNEXPECTED = 1
"""What we did not think of; the log names type and place, at DEBUG the whole traceback."""

_ROLES = "daemon.cli.roles"
_LOOKING = "daemon.cli.looking"
_STATUS = "daemon.cli.status"
_OFFLINE = "daemon.cli.offline"
_FINDING = "daemon.cli.finding"
_EVENTS = "daemon.cli.events"
_ADOPTING = "daemon.cli.adopting"
_EXPORTING = "daemon.cli.exporting"
_CHECKING = "daemon.cli.checking"
_DEIDENTIFYING = "daemon.cli.deidentifying"
_WEB = "daemon.cli.web"
_NOTIFYING = "daemon.cli.notifying"
_MIRRORING = "daemon.cli.mirroring"
_INSTALLING = "daemon.cli.installing"
_HOSTS = "daemon.cli.hosts"
_INDEXING = "daemon.cli.indexing"
_TOPPING = "daemon.cli.topping"
_DOCTORING = "daemon.cli.doctoring"
_CONFIGURING = "daemon.cli.configuring"
_RUN, _LOOK, _OFF = "Run", "Look and act", "Without a daemon"

COMMANDS = (
    LazyCommand("run", _ROLES, "run", "Run everything on this machine.", _RUN),
    LazyCommand("demo", _OFFLINE, "demo", "Send a phantom study through it all and explain.", _RUN),
    LazyCommand("receive", _ROLES, "receive", "Run the DICOM receiver alone.", _RUN),
    LazyCommand("watch", _ROLES, "watch", "Run the folder watcher alone.", _RUN),
    LazyCommand("work", _ROLES, "work", "Run one worker of one queue.", _RUN),
    LazyCommand("sweep", _ROLES, "sweep", "Run the sweeper alone.", _RUN),
    LazyCommand("web", _WEB, "web", "Run the web page alone.", _RUN),
    LazyCommand("notify", _NOTIFYING, "notify", "Tell by webhook and e-mail, alone.", _RUN),
    LazyCommand("mirror", _MIRRORING, "mirror", "Copy into an object store.", _RUN),
    LazyCommand("valkey", _ROLES, "valkey", "Run the private queue server alone.", _RUN),
    LazyCommand("status", _STATUS, "status", "Show what arrived and what waits.", _LOOK),
    LazyCommand("top", _TOPPING, "top", "Watch what happens now.", _LOOK),
    LazyCommand("studies", _FINDING, "studies", "List the studies.", _LOOK),
    LazyCommand("find", _FINDING, "find", "Find series or instances by any column.", _LOOK),
    LazyCommand("show", _FINDING, "show", "Show all of one study.", _LOOK),
    LazyCommand("held", _LOOKING, "held", "List and resolve what needs a person.", _LOOK),
    LazyCommand(
        "quarantine", _LOOKING, "quarantine", "List, retry or drop set-aside files.", _LOOK
    ),
    LazyCommand("hosts", _HOSTS, "hosts", "List the hosts that share the index.", _LOOK),
    LazyCommand("events", _EVENTS, "events", "Show the audit: what became of what.", _LOOK),
    LazyCommand("reindex", _ADOPTING, "run_reindex", "Adopt a tree where it lies.", _LOOK),
    LazyCommand(
        "check", _CHECKING, "check_installation", "Compare disk and index, and mend.", _LOOK
    ),
    LazyCommand("index", _INDEXING, "index", "Move the index to another database.", _LOOK),
    LazyCommand("doctor", _DOCTORING, "doctor", "Look at what it stands on, and advise.", _LOOK),
    LazyCommand("config", _CONFIGURING, "config", "Explain the settings.", _LOOK),
    LazyCommand("export", _EXPORTING, "export", "Write tables, samples, lists for others.", _LOOK),
    LazyCommand("inspect", _OFFLINE, "inspect", "Explain roles, completeness and SUV.", _OFF),
    LazyCommand("pair", _OFFLINE, "pair", "Pair any DICOM folder.", _OFF),
    LazyCommand(
        "deid-report", _DEIDENTIFYING, "deid_report", "Tell what would be de-identified.", _OFF
    ),
    LazyCommand("install", _INSTALLING, "install", "Print or write systemd's units.", _OFF),
    LazyCommand("phantom", _OFFLINE, "phantom", "Write a synthetic PET/CT study.", _OFF),
)


class _Commands(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    name="petct-ingest",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes as long to load as all that this help needs
    pretty_exceptions_enable=False,  # they print local variables, and those may name a patient
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"petct-ingest {version('petct-ingest')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and end."
        ),
    ] = False,
) -> None:
    """File every DICOM instance once, and pair each study's CT and PET."""


def main() -> None:
    """Run the command line; errors of ours are one line on stderr and exit code 2."""
    # pydantic would read the metadata of every package for plugins of its own
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(prog_name="petct-ingest")
    except (ConfigError, WorkersError, DaemonError) as error:
        print(f"petct-ingest: {shown(str(error))}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except Exception:  # the process boundary: a log line that quotes no patient, not a traceback
        if not logging.getLogger().handlers:
            raise  # a command that reads files and keeps no log
        from config.logs import get_logger  # loaded already where logs were set up

        get_logger(__name__).exception("unexpected-error")
        sys.exit(EXIT_UNEXPECTED)
