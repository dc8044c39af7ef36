"""Look into the queues, where there is a server: they hold hints, and nothing is lost with them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any, cast

import redis
from rq import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from workers import queues
from workers.checking.codes import Code
from workers.checking.scene import Scene
from workers.errors import StoreUnavailable
from workers.spool.batches import batch_names

_DATA_BYTES = 1 << 20


def compare_queues(scene: Scene) -> None:
    """Look at the jobs that wait or run; a server that does not answer is a note."""
    try:
        connection = queues.connect(scene.settings)
    except StoreUnavailable as error:
        scene.tell(Code.QUEUES_UNREACHABLE, "queues", str(error))
        return
    try:
        _look(scene, connection)
    except redis.RedisError as error:
        scene.tell(Code.QUEUES_UNREACHABLE, "queues", type(error).__name__)
    finally:
        connection.close()


def _look(scene: Scene, connection: redis.Redis) -> None:
    batches: set[str] | None = None
    foreign = []
    spool = scene.settings.spool.name
    names = (queues.filing_queue(spool), queues.PAIRING)
    for name in names:
        for job, data in _jobs(connection, name):
            scene.report.compare("jobs")
            if not queues.is_ours(data):
                foreign.append((name, job))
                continue
            wanted = batches_of(data)
            if wanted:
                if batches is None:
                    batches = set(batch_names(scene.layout))
                if not wanted & batches:
                    scene.tell(Code.QUEUE_STALE, f"queue {name}, job {job[:40]}")
        for execution in _executions(connection, name):
            if queues.worker_is_dead(connection, execution):
                scene.tell(Code.QUEUE_DEAD, f"queue {name}", execution[:80])
    if foreign and scene.repair:
        queues.flush_foreign(connection, spool)
    left = {job for name in names for job, _ in _jobs(connection, name)} if foreign else ()
    for name, job in foreign:
        scene.settle(Code.QUEUE_FOREIGN, f"queue {name}, job {job[:40]}", "",
                     lambda job=job: "it is there yet" if job in left else None)  # type: ignore[misc]  # fmt: skip


def batches_of(data: bytes | None) -> set[str]:
    """Return which batches a filing job of ours speaks of; empty for other jobs."""
    try:
        plain = zlib.decompressobj().decompress(data or b"", _DATA_BYTES)
        arguments: Any = json.loads(plain)[3]
        return {str(batch) for batch in arguments["batches"]}
    except (zlib.error, ValueError, TypeError, LookupError, RecursionError):
        return set()


def _jobs(connection: redis.Redis, name: str) -> Iterator[tuple[str, bytes | None]]:
    queue = Queue(name, connection=connection, serializer=JSONSerializer)
    for job in queue.get_job_ids():
        data = cast("bytes | None", connection.hget(f"rq:job:{job}", "data"))
        if data is not None or job in queue.get_job_ids():  # else a worker has just done it
            yield job, data


def _executions(connection: redis.Redis, name: str) -> list[str]:
    registry = StartedJobRegistry(name, connection=connection, serializer=JSONSerializer)
    found = cast("list[bytes]", connection.zrange(registry.key, 0, -1))
    return [execution.decode("utf-8", "replace") for execution in found]
