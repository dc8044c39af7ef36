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
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import redis
from rq import Queue
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import BaseWorker, SimpleWorker, Worker
from rq.worker_registration import clean_worker_registry

from config.logs import get_logger
from config.settings import Settings
from daemon.awaiting import await_index
from daemon.errors import QueueServerAway
from daemon.processes import Heartbeat, Notifier, die_with_parent
from workers.queue_glance import life_of
from workers.queues import (
    FAILURE_SECONDS,
    FILING,
    JOB_FIELDS,
    JOB_NAMES,
    JOB_SECONDS,
    JOB_VERSION,
    MOST_TRIES,
    PAIR_STUDY,
    PAIRING,
    connect,
    filing_queue,
    flush_foreign,
    is_job_name,
    job_is_ours,
    why,
    worker_is_dead,
)

WORKER_TTL_SECONDS = 30
"""A silent worker is forgotten after this and a minute; a wait for a job lasts 15 s less."""

MAINTENANCE_SECONDS = 10
BEAT_SECONDS = 10
"""How often a pairing worker says that its job goes on."""
SILENT_SECONDS = 40
"""After so long without a word its job is given to another."""
DRAIN_SECONDS = 100.0
"""So long the pair in hand may take when a worker is stopped; then it is dropped, and queued again.
Less than TimeoutStopSec of the unit."""
IDLE_SECONDS = 10
"""A worker that drains the queue ends when nothing came for so long."""
_WAIT_SECONDS = 0.1
_WAIT_LOG_SECONDS = 5.0
_REFUSED_WAIT_SECONDS = 2.0
_JUST_AWAY = why(redis.ConnectionError())
_OTHER_SECONDS = 60

log = get_logger(__name__)


class PlainJob(Job):
    """A job that is one call of a function, and nothing else that Redis says of it.

    Callbacks, webhooks and dependencies are not even read; limits are our own.
    """

    def refresh(self) -> None:
        values = cast("list[bytes | None]", self.connection.hmget(self.key, list(JOB_FIELDS)))
        found = {name: value for name, value in zip(JOB_FIELDS, values, strict=True) if value}
        if "data" not in found:
            raise NoSuchJobError(f"no such job: {self.key}")
        try:
            self.restore(found)
        except (ValueError, TypeError, ArithmeticError) as error:  # a time or state that is none
            raise NoSuchJobError(f"a damaged job: {self.key}") from error

    def restore(self, raw_data: Any) -> Any:
        restored = super().restore(
            {name: raw_data[name] for name in JOB_FIELDS if name in raw_data}
        )
        self.timeout = JOB_SECONDS.get(self._function(), _OTHER_SECONDS)
        self.result_ttl, self.failure_ttl = 0, FAILURE_SECONDS
        if self.retries_left is not None:
            self.retries_left = min(self.retries_left, MOST_TRIES)
        return restored

    def _function(self) -> str:
        try:
            return str(self.func_name)
        except (DeserializationError, TypeError, ValueError):
            return ""


class WatchedQueue(Queue):
    """A queue out of which only our own jobs come.

    Its server's absence ends the worker, where RQ would wait for up to a minute.
    """

    job_class = PlainJob
    is_ours = staticmethod(job_is_ours)

    @classmethod
    def lmove(cls, connection: redis.Redis, queue_key: str, timeout: int | None) -> Any:
        """Take the next job that is ours (it lies in the intermediate list then); drop others."""
        while (found := super().lmove(connection, queue_key, timeout)) is not None:
            job = cast(bytes, found[1])
            if cls.is_ours(connection, job):
                break
            if connection.delete(b"rq:job:" + job) or not is_job_name(job):
                log.warning("foreign-job-dropped", queue=queue_key.removeprefix("rq:queue:"))
            connection.lrem(f"{queue_key}:intermediate", 0, job)  # type: ignore[arg-type]
        return found

    @classmethod
    def dequeue_any(cls, queues: Iterable[Queue], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().dequeue_any(queues, *args, **kwargs)
        except redis.ConnectionError as error:
            raise QueueServerAway(why(error)) from error


class _AllowListed(BaseWorker):
    """What both kinds share; goes before RQ's class among the bases."""

    queue_class = WatchedQueue
    job_class = PlainJob
    allowed: frozenset[str] = JOB_NAMES
    settings: Settings | None = None

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
        self.life = life_of(os.getpid())
        self.found_nothing = False
        self.trouble = "the queue server went away"

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
        server = self.connection if pipeline is None else pipeline
        try:
            super().heartbeat(timeout, pipeline)
            # an emptied server has forgotten where we run: killed then, we would seem to work on
            facts: dict[Any, Any] = {
                "hostname": self.hostname, "pid": self.pid, "life": self.life
            }  # fmt: skip
            server.hset(self.key, mapping=facts)
        except redis.RedisError as error:
            self.trouble = why(error)
            raise QueueServerAway(self.trouble) from error

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        try:
            found = super().dequeue_job_and_maintain_ttl(*args, **kwargs)
            self.found_nothing = found is None
            return found
        except redis.RedisError as error:  # RQ would end without a word
            self.trouble = why(error)
            raise
        except QueueServerAway as error:
            self.trouble = str(error)
            raise

    def run_maintenance_tasks(self) -> None:
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError) as error:  # somebody wrote into RQ's lists what is no job
            log.warning("maintenance-failed", error=type(error).__name__)
        for queue in self.queues:
            requeue_orphans(queue)

    def clean_registries(self) -> None:
        """As RQ does, but for running jobs: it compares the clocks of hosts (`requeue_orphans`)."""
        for queue in self.queues:
            if queue.acquire_maintenance_lock():
                clean_worker_registry(queue)
                queue.failed_job_registry.cleanup()
                queue.intermediate_queue.cleanup(self, queue)
                queue.release_maintenance_lock()  # type: ignore[no-untyped-call]
        self.last_cleaned_at = now()  # type: ignore[assignment]  # None at first

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
    """Forks a process for each job, which dies with the worker.

    Stopped once, it finishes the job in hand; stopped twice, or after `DRAIN_SECONDS`, it drops it.
    """

    beat_seconds, silent_seconds, drain_seconds = BEAT_SECONDS, SILENT_SECONDS, DRAIN_SECONDS

    def __init__(self, queue: str, connection: redis.Redis) -> None:
        super().__init__(queue, connection)
        self.job_monitoring_interval = self.beat_seconds
        self._stopped_at: float | None = None
        self._dropped = False
        self._unheard = False

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        die_with_parent(cast(int, self.pid))
        super().main_work_horse(job, queue)

    def get_heartbeat_ttl(self, job: Job) -> int:
        """Return after how many seconds without a word a job is another worker's."""
        return self.silent_seconds

    def set_current_job_working_time(
        self, current_job_working_time: float, pipeline: Any = None
    ) -> None:
        """Keep it here: nobody asks the server for it, and it may be away."""
        self.current_job_working_time = current_job_working_time

    def maintain_heartbeats(self, job: Job) -> None:
        """Say that the job goes on; a server that is away meanwhile does not end it."""
        stopped = self._stopped_at
        if stopped is not None and time.monotonic() - stopped > self.drain_seconds:
            self.drop_job()
        try:
            super().maintain_heartbeats(job)
        except (redis.RedisError, QueueServerAway) as error:
            if not self._unheard:
                reason = why(error) if isinstance(error, redis.RedisError) else str(error)
                log.warning("queue-server-away-during-job", reason=reason)
            self._unheard = True
        else:
            self._unheard = False

    def request_stop(self, signum: int, frame: Any) -> None:
        self._stopped_at = time.monotonic()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, frame: Any) -> None:
        """Drop the job in hand; the loop, which waits for its process, ends then."""
        self.drop_job()

    def drop_job(self) -> None:
        """End the process of the job in hand, which is queued again at once."""
        if self.horse_pid:
            self._dropped = True
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, signal.SIGKILL)

    def handle_work_horse_killed(self, job: Job, retpid: Any, ret_val: Any, rusage: Any) -> None:
        if self._dropped:
            log.warning("job-dropped", queue=job.origin)
            job.retries_left = (job.retries_left or 0) + 1  # it was no try of the job's
            return
        code = os.waitstatus_to_exitcode(ret_val) if ret_val is not None else 0
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        log.error("job-process-died", queue=job.origin, reason=reason)
        if self.settings is not None and job.func_name == PAIR_STUDY:
            from workers.jobs import pair_maker_died  # loaded already, where jobs are worked on

            pair_maker_died(self.settings, job.kwargs, reason)


def requeue_orphans(queue: Queue) -> int:
    """Put jobs back whose worker is dead; return how many.

    A job without tries left is dropped: the sweeper asks again for what it stood for.
    """
    connection, registry = queue.connection, queue.started_job_registry
    found = 0
    for execution in cast("list[bytes]", connection.zrange(registry.key, 0, -1)):
        text = execution.decode(errors="replace")
        job_id = text.rpartition(":")[0]
        if not worker_is_dead(connection, text):
            continue
        if not connection.zrem(registry.key, execution):
            continue  # another worker was quicker
        if not is_job_name(job_id.encode()):
            continue  # nothing of RQ's
        try:
            job = PlainJob.fetch(job_id, connection, queue.serializer)
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
    """
    from workers import jobs  # heavy, as is the next: here, before the fork, no job pays for it

    if queue_name == PAIRING:
        import workers.pairing.making  # noqa: F401
    jobs.configure(settings)
    await_index(settings)
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
