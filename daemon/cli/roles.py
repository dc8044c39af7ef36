"""The commands that run something until they are told to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.options import Config, Host, Port, Root, settings_of

if TYPE_CHECKING:
    from config.settings import Settings

_Service = Callable[["Settings", threading.Event], None]


def run(
    root: Root = None,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    roles: Annotated[
        str, typer.Option("--roles", help="Only these, such as pairing or receive,filing,sweep.")
    ] = "",
) -> None:
    """Run everything on this machine: receiver, watcher, workers, sweeper, page, queue server.

    Stop it with Ctrl+C or SIGTERM: what is being received and filed is finished first. What was
    acknowledged is safe in any case.
    """
    settings = settings_of(root, config, host=host, port=port)
    from daemon.processes import keep_private, log_failing_threads
    from daemon.supervisor import run_all

    keep_private()
    log_failing_threads()

    only = [name for name in roles.split(",") if name]
    run_all(settings, _options(root, config), only)


def receive(root: Root = None, config: Config = None, host: Host = None, port: Port = None) -> None:
    """Run the DICOM receiver alone; takes a socket from systemd where one is handed over."""
    settings = settings_of(root, config, host=host, port=port)
    from daemon.receiver.server import run_receiver

    bound = settings.layout.run / "receiver.port"
    bound.unlink(missing_ok=True)
    serve(run_receiver, settings, "receive", bound)


def watch(root: Root = None, config: Config = None) -> None:
    """Run the folder watcher alone."""
    settings = settings_of(root, config)
    from daemon.watcher.watching import run_watcher

    serve(run_watcher, settings, "watch")


def work(
    queue: Annotated[
        str,
        typer.Argument(
            metavar="{filing|pairing}", help="The queue; `filing-2` names a second one."
        ),
    ],
    root: Root = None,
    config: Config = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="So many, supervised.")
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when nothing was to do for 10 seconds.")
    ] = False,
    beside: Annotated[int | None, typer.Option("--beside", min=1, hidden=True)] = None,
) -> None:
    """Run one worker of one queue, or several; they wait for the queue server and never start one.

    A signal lets the job in hand finish; a second one drops it, and it is queued again.
    """
    name, _, number = queue.partition("-")
    if name not in ("filing", "pairing") or not (number.isdigit() or queue == name):
        raise typer.BadParameter("there are the queues filing and pairing", param_hint="queue")
    settings = settings_of(root, config, pairing_workers=beside)
    from daemon.processes import keep_private, log_failing_threads

    keep_private()
    log_failing_threads()
    if workers is not None:
        from daemon.supervisor import run_workers

        run_workers(settings, name, workers, _options(root, config), drain=drain)
        return
    from daemon.working import run_worker
    from workers.measuring import note_start

    note_start(settings.layout, queue)
    run_worker(settings, name, drain=drain)


def sweep(root: Root = None, config: Config = None) -> None:
    """Run the sweeper alone: it finds again what a lost queue has forgotten."""
    settings = settings_of(root, config)
    from daemon.sweeper import run_sweeper

    # a fresh index gives the spool its identity, and then the others can work
    serve(run_sweeper, settings, "sweep", settings.layout.spool_private / "id")


def valkey(root: Root = None, config: Config = None) -> None:
    """Run the private queue server alone, on a unix socket below the root."""
    settings = settings_of(root, config)
    from daemon.processes import keep_private, log_failing_threads
    from daemon.valkey import run_valkey

    keep_private()
    log_failing_threads()
    run_valkey(settings)


def serve(
    service: _Service,
    settings: Settings,
    name: str,
    ready_when: Path | None = None,
    status: Callable[[], str] | None = None,
) -> None:
    """Run a role until a signal, telling whoever supervises when it is ready and that it is well.

    `ready_when` is a file whose presence says that the role can be used, `status` what is said
    when it is there.
    """
    from config.logs import get_logger
    from daemon.processes import (
        Heartbeat,
        Notifier,
        keep_private,
        log_failing_threads,
        stop_on_signals,
    )
    from workers.measuring import note_start

    log = get_logger(__name__)
    keep_private()
    log_failing_threads()
    stop = stop_on_signals()
    settings.layout.make_private()
    note_start(settings.layout, name)

    def check() -> str | None:
        try:
            os.stat(settings.layout.ready)
            if ready_when is not None:
                os.stat(ready_when)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return None

    log.info("role-started", role=name)
    with Heartbeat(Notifier.from_environment(), check, status or (lambda: f"{name} is up")):
        service(settings, stop)
    log.info("role-stopped", role=name)


def _options(root: Path | None, config: Path | None) -> list[str]:
    """The shared options again, for a child process."""
    options = []
    if root is not None:
        options += ["--root", str(root.absolute())]
    if config is not None:
        options += ["--config", str(config.absolute())]
    return options
