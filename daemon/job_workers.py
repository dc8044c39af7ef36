"""The two kinds of RQ worker: filing works in its own process, pairing forks for every job.

Filing jobs are short and many, and a fork for each costs five times the job; a pairing job is long
and heavy, and its memory goes with its process. Each worker serves one queue, because only then
does RQ take a job in one atomic step. Workers call the few functions of an allow-list and hear
nothing else that Redis says: no callbacks, no webhooks, no remote commands, and jobs of another
version of this program are dropped (the sweeper makes new ones).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any, cast

import redis
from rq import Queue
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import BaseWorker, SimpleWorker, Worker
from rq.worker_registration import clean_worker_registry

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import QueueServerAway
from daemon.job_queue import PlainJob, WatchedQueue, requeue_orphans
from daemon.processes import die_with_parent
from workers.queue_glance import life_of
from workers.queues import (
    JOB_NAMES,
    JOB_VERSION,
    PAIR_STUDY,
    why,
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

AWAY_SECONDS = 1.0
"""So long a worker waits after the process of a job found no queue server."""

log = get_logger(__name__)


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

    def perform_job(self, job: Job, queue: Queue) -> bool:
        """As RQ does, in the process of the job; that it found no server is told by its exit."""
        try:
            return super().perform_job(job, queue)
        except (redis.RedisError, QueueServerAway):
            os._exit(os.EX_TEMPFAIL)

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
        if code == os.EX_TEMPFAIL:  # new connections fail, ours stands: nobody died over the pair
            log.warning("queue-server-away-during-job", queue=job.origin)
            job.retries_left = (job.retries_left or 0) + 1
            time.sleep(AWAY_SECONDS)
            return
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        log.error("job-process-died", queue=job.origin, reason=reason)
        if self.settings is not None and job.func_name == PAIR_STUDY:
            from workers.jobs import pair_maker_died  # loaded already, where jobs are worked on

            pair_maker_died(self.settings, job.kwargs, reason)
