"""Work on one queue: wait for its server, run the loop, tell whoever supervises."""

from __future__ import annotations

import logging
import time

import redis

from config.logs import get_logger
from config.settings import Settings
from daemon.awaiting import await_index
from daemon.errors import QueueServerAway
from daemon.job_workers import FilingWorker, PairingWorker
from daemon.processes import Heartbeat, Notifier
from workers.queues import (
    FILING,
    PAIRING,
    connect,
    filing_queue,
    flush_foreign,
    why,
)

IDLE_SECONDS = 10
"""A worker that drains the queue ends when nothing came for so long."""
_WAIT_SECONDS = 0.1
_WAIT_LOG_SECONDS = 5.0
_REFUSED_WAIT_SECONDS = 2.0
_JUST_AWAY = why(redis.ConnectionError())

log = get_logger(__name__)


def wait_for_server(settings: Settings) -> redis.Redis:
    """Wait until the queue server answers, and return a client; a role never starts a server."""
    began = time.monotonic()
    told = ""
    while True:
        connection = None
        try:
            connection = connect(settings)
            connection.ping()
            return connection
        except redis.RedisError as error:
            if connection is not None:
                connection.close()
            reason = why(error)
        plain = reason == _JUST_AWAY  # it may be starting this moment
        if reason != told and not (plain and time.monotonic() - began < _WAIT_LOG_SECONDS):
            log.warning("queue-server-awaited", reason=reason)
            Notifier.from_environment().status(f"waits for the queue server: {reason}")
            told = reason
        time.sleep(_WAIT_SECONDS if plain else _REFUSED_WAIT_SECONDS)


def make_worker(settings: Settings, queue: str) -> FilingWorker | PairingWorker:
    """Wait for the server, clear out what is not ours, and return a worker.

    A filing worker files this host's spool.
    """
    connection = wait_for_server(settings)
    try:
        flush_foreign(connection, settings.spool.name)
    except redis.RedisError as error:
        raise QueueServerAway(why(error)) from error
    finally:
        connection.close()
    kind = FilingWorker if queue == FILING else PairingWorker
    name = filing_queue(settings.spool.name) if queue == FILING else queue
    # RQ lengthens the time limits of connections to come; one that was used keeps the short ones,
    # and then ends the wait for a job
    worker = kind(name, connect(settings))
    worker.settings = settings
    return worker


def run_worker(settings: Settings, queue_name: str, *, drain: bool = False) -> None:
    """Work on one queue until SIGTERM or SIGINT; the job in hand is finished.

    With `drain` it ends too when nothing was to do for `IDLE_SECONDS`.

    Raises
    ------
    QueueServerAway
        The server went away; whoever supervises starts the worker again.
    IndexUnusable
        The index does not let this worker in, and waiting would not help.
    """
    await_index(settings)
    from workers import jobs  # heavy, as is the next: here, before the fork, no job pays for it

    if queue_name == PAIRING:
        import workers.pairing.making  # noqa: F401
    jobs.configure(settings)
    work(make_worker(settings, queue_name), drain=drain)


def work(worker: FilingWorker | PairingWorker, *, drain: bool = False) -> None:
    """Run the worker's loop, telling whoever supervises that it is ready and alive."""
    quiet = not logging.getLogger("daemon").isEnabledFor(logging.DEBUG)
    name = worker.queues[0].name
    log.info("worker-started", queue=name)
    with Heartbeat(Notifier.from_environment(), worker.check, lambda: f"works on {name}"):
        try:
            worker.work(
                logging_level="CRITICAL" if quiet else "DEBUG",
                max_idle_time=IDLE_SECONDS if drain else None,
            )
        except redis.RedisError as error:
            raise QueueServerAway(why(error)) from error
    if drain and worker.found_nothing:
        log.info("worker-drained", queue=name)
    elif not worker.was_told_to_stop:
        raise QueueServerAway(worker.trouble)
    log.info("worker-stopped", queue=name)
