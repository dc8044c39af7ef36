"""Jobs out of queues in which anybody may have written: ours alone, without what Redis adds.

Jobs of a worker that died are put back (`requeue_orphans`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import redis
from rq import Queue
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job

from config.logs import get_logger
from daemon.errors import QueueServerAway
from workers.queues import (
    FAILURE_SECONDS,
    JOB_FIELDS,
    JOB_SECONDS,
    MOST_TRIES,
    is_job_name,
    job_is_ours,
    why,
    worker_is_dead,
)

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
