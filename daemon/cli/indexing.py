"""The command `index copy`: move the index to another database."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from config.layout import Layout
from config.settings import load_settings
from daemon.cli.options import Json
from daemon.cli.progress import progress
from daemon.errors import AlreadyRunning
from workers import durable
from workers.errors import CopyRefused
from workers.index.copying import CopiedTable, Side, copy_index

index = typer.Typer(no_args_is_help=True, help="Move the index to another database.")


@index.callback()
def _group() -> None:
    """Move the index to another database."""


@index.command()
def copy(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="A root folder, or the URL of a database.")
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same; with no index in it.")],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="The password of the server."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy the index whole into an empty database, and compare both row by row.

    Stop the system first. Killed, it leaves nothing behind, and is run again.
    """
    with ExitStack() as stack:
        old, new = (stack.enter_context(_side(one, password_file)) for one in (source, target))
        copied = copy_index(old, new, stack.enter_context(progress(quiet=as_json)))
    if as_json:
        print(json.dumps({"tables": [asdict(one) for one in copied]}))
        return
    for one in copied:
        print(_line(one))
    print("Every row is the same on both sides. Set [index] url to use the copy.")


@contextmanager
def _side(words: str, password_file: Path | None) -> Iterator[Side]:
    """Understand FROM or TO; nothing runs on a root meanwhile."""
    if "://" not in words:
        layout = load_settings(root=Path(words), environ={}).layout
        if not layout.root.is_dir():
            raise CopyRefused(f"there is no folder {layout.root}")
        with _stopped(layout):
            yield Side(make_url(f"sqlite:///{layout.index}"), file_mode=layout.file_mode)
        return
    try:
        url = make_url(words)
    except ArgumentError:
        raise CopyRefused("FROM and TO are folders, sqlite:///… or postgresql://…") from None
    is_server = url.get_backend_name() != "sqlite"
    yield Side(url, password_file if is_server and not url.password else None)


@contextmanager
def _stopped(layout: Layout) -> Iterator[None]:
    """Keep a system from starting on a root. Raises AlreadyRunning where one runs."""
    layout.make_private()
    for place in layout.metrics.glob("*.lock"):  # each role holds one
        with open(place, "ab") as lock:
            if not durable.try_lock(lock.fileno()):
                raise AlreadyRunning(f"a role of {layout.root} is running: stop the system first")
    with open(layout.run / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"a daemon runs on {layout.root}: stop it first") from None
        yield


def _line(one: CopiedTable) -> str:
    return f"{one.name:<10} {one.rows:>12,} rows  sha256 {one.sha256}"
