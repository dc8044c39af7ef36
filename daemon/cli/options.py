"""The options that commands share, and the settings that they lead to."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from config.settings import Settings

Root = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="The folder below which everything lies."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A TOML file with settings."),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="H", help="Address to listen on (settings: 127.0.0.1)."),
]
Port = Annotated[
    int | None,
    typer.Option("--port", metavar="N", help="Port to listen on, 0 = any (settings: 11112)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def settings_of(
    root: Path | None,
    config: Path | None,
    *,
    host: str | None = None,
    port: int | None = None,
    pairing_workers: int | None = None,
    logs: bool = True,
) -> Settings:
    """Load the settings that the shared options name, and set the logs up as they ask.

    Raises
    ------
    ConfigError
        As `config.settings.load_settings`, and where the root is a file.
    """
    from config.errors import FolderUnusable
    from config.settings import load_settings

    given: dict[str, dict[str, Any]] = {
        "receiver": {"host": host, "port": port},
        "pairing": {"workers": pairing_workers},
    }
    overrides = {
        table: {key: value for key, value in keys.items() if value is not None}
        for table, keys in given.items()
    }
    settings = load_settings(config, root=root, overrides=overrides)
    if settings.root.exists() and not settings.root.is_dir():
        raise FolderUnusable(settings.root, "it is a file")
    if logs:
        from config.logs import configure_logging

        configure_logging(settings.logging)
    return settings


def acting_user() -> str:
    """Name who calls, for the audit: the login behind `sudo`, else the process' own."""
    try:
        return pwd.getpwuid(int(os.environ.get("SUDO_UID", os.getuid()))).pw_name
    except (KeyError, ValueError):
        return str(os.getuid())
