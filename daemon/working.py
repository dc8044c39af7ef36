"""The two kinds of RQ worker: filing works in its own process, pairing forks for every job.

Filing jobs are short and many, and a fork for each costs five times the job; a pairing job is long
and heavy, and its memory goes with its process. Each worker serves one queue, because only then
does RQ take a job in one atomic step. Workers call the few functions of an allow-list and hear
nothing else that Redis says: no callbacks, no webhooks, no remote commands, and jobs of another
version of this program are dropped (the sweeper makes new ones).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any, cast

import redis
from rq import Queue
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, SimpleWorker, Worker

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import QueueServerAway
from daemon.processes import Heartbeat, Notifier, die_with_parent
from workers.queues import (
    FILING,
    JOB_NAMES,
    JOB_VERSION,
    PAIRING,
    connect,
    flush_foreign,
    worker_is_dead,
)

WORKER_TTL_SECONDS = 30
"""A silent worker is forgotten after this and a minute; a wait for a job lasts 15 s less."""

MAINTENANCE_SECONDS = 10
_WAIT_SECONDS = 0.1
_WAIT_LOG_SECONDS = 5.0

log = get_logger(__name__)


class PlainJob(Job):
    """A job that is one call of a function: its callbacks and webhooks are not heard."""

    def restore(self, raw_data: Any) -> Any:
        restored = super().restore(raw_data)
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []
        self.repeats_left = None
        return restored


class WatchedQueue(Queue):
    """A queue whose server's absence ends the worker, where RQ would wait for up to a minute."""

    job_class = PlainJob

    @classmethod
    def dequeue_any(cls, queues: Iterable[Queue], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().dequeue_any(queues, *args, **kwargs)
        except redis.ConnectionError as error:
            raise QueueServerAway("the queue server went away") from error


class _AllowListed(BaseWorker):
    """What both kinds share; goes before RQ's class among the bases."""

    queue_class = WatchedQueue
    job_class = PlainJob
    allowed: frozenset[str] = JOB_NAMES

    def __init__(self, queue: str, connection: redis.Redis) -> None:
        super().__init__(
            [queue],
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_SECONDS,
            maintenance_interval=MAINTENANCE_SECONDS,
            log_job_description=False,
        )
        self.alive_until = time.monotonic() + WORKER_TTL_SECONDS

    @property
    def was_told_to_stop(self) -> bool:
        return self._shutdown_requested_date is not None

    def check(self) -> str | None:
        """Say in words when the worker's loop or its job has outlived every limit."""
        late = time.monotonic() - self.alive_until
        return None if late < 0 else f"no sign of life for {late:.0f} s more than allowed"

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job that the allow-list names; drop every other."""
        if self._is_allowed(job):
            super().execute_job(job, queue)
            return
        log.warning("foreign-job-dropped", queue=queue.name)
        self.connection.delete(job.key)
        queue.intermediate_queue.remove(job.id)

    def _is_allowed(self, job: Job) -> bool:
        try:
            return (
                job.func_name in self.allowed
                and job.instance is None
                and not job.args
                and job.kwargs.get("version") == JOB_VERSION
            )
        except (DeserializationError, AttributeError, TypeError):
            return False

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        self.alive_until = time.monotonic() + (timeout or self.worker_ttl + 60)
        try:
            super().heartbeat(timeout, pipeline)
        except redis.ConnectionError as error:
            raise QueueServerAway("the queue server went away") from error

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        for queue in self.queues:
            requeue_orphans(queue)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log type and place of a job's error; RQ's own log would quote its text."""
        log.exception("job-failed", queue=job.origin, tries_left=job.retries_left or 0)

    def subscribe(self) -> None:
        """Take no remote commands: signals end a worker, and nothing else steers it."""

    def teardown(self) -> None:
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except redis.RedisError:
            pass  # the server is away, and with it the registration that is taken back here


class FilingWorker(_AllowListed, SimpleWorker):
    """Works on jobs in its own process."""


class PairingWorker(_AllowListed, Worker):
    """Forks a process for each job, which dies with the worker."""

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        die_with_parent(cast(int, self.pid))
        super().main_work_horse(job, queue)

    def handle_work_horse_killed(self, job: Job, retpid: Any, ret_val: Any, rusage: Any) -> None:
        code = os.waitstatus_to_exitcode(ret_val) if ret_val is not None else None
        log.error("job-process-died", queue=job.origin, exit=code)


def requeue_orphans(queue: Queue) -> int:
    """Put jobs back whose worker died on this machine; return how many.

    RQ itself finds them when the time limit of the job has passed. A job without tries left is
    dropped: the sweeper asks again for what it stood for.
    """
    connection, registry = queue.connection, queue.started_job_registry
    found = 0
    for execution in cast("list[bytes]", connection.zrange(registry.key, 0, -1)):
        if not worker_is_dead(connection, execution.decode()):
            continue
        if not connection.zrem(registry.key, execution):
            continue  # another worker was quicker
        try:
            job = PlainJob.fetch(
                registry.parse_job_id(execution.decode()), connection, queue.serializer
            )
        except NoSuchJobError:
            continue
        if job.retries_left:
            with connection.pipeline() as pipeline:
                job.retry(queue, pipeline)
                pipeline.execute()
        else:
            connection.delete(job.key)
        found += 1
    if found:
        log.warning("jobs-of-dead-workers", queue=queue.name, count=found)
    return found


def wait_for_server(connection: redis.Redis) -> None:
    """Wait until the queue server answers; a role never starts one."""
    began = time.monotonic()
    told = False
    while True:
        try:
            connection.ping()
            return
        except (redis.ConnectionError, redis.TimeoutError):
            if not told and time.monotonic() - began > _WAIT_LOG_SECONDS:
                log.warning("queue-server-awaited")
                told = True
            time.sleep(_WAIT_SECONDS)


def make_worker(settings: Settings, queue: str) -> FilingWorker | PairingWorker:
    """Wait for the server, clear out what is not ours, and return the worker of a queue."""
    connection = connect(settings)
    try:
        wait_for_server(connection)
        flush_foreign(connection)
    finally:
        connection.close()
    kind = FilingWorker if queue == FILING else PairingWorker
    # RQ lengthens the time limits of connections to come; one that was used keeps the short ones,
    # and then ends the wait for a job
    return kind(queue, connect(settings))


def run_worker(settings: Settings, queue_name: str) -> None:
    """Work on one queue until SIGTERM or SIGINT; the job in hand is finished.

    Raises
    ------
    QueueServerAway
        The server went away; whoever supervises starts the worker again.
    """
    from workers import jobs  # heavy, as is the next: here, before the fork, no job pays for it

    if queue_name == PAIRING:
        import workers.pairing.making  # noqa: F401
    jobs.configure(settings)
    work(make_worker(settings, queue_name))


def work(worker: FilingWorker | PairingWorker) -> None:
    """Run the worker's loop, telling whoever supervises that it is ready and alive."""
    quiet = not logging.getLogger("daemon").isEnabledFor(logging.DEBUG)
    name = worker.queues[0].name
    log.info("worker-started", queue=name)
    with Heartbeat(Notifier.from_environment(), worker.check, lambda: f"works on {name}"):
        try:
            worker.work(logging_level="CRITICAL" if quiet else "DEBUG")
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise QueueServerAway("the queue server went away") from error
    if not worker.was_told_to_stop:
        raise QueueServerAway("the queue server went away")
    log.info("worker-stopped", queue=name)
