"""The queues of jobs, on Redis or Valkey, and what may be in them.

Each spool is filed by its own host, from a queue of its own; pairs are made anywhere.

What stands here is a hint and may be lost whole at any time: spool and index are the truth, and
the sweeper makes jobs anew (design.md 2). Therefore nothing retries for long, and a full queue
refuses. A job names entries by their identifier and pairs by their key: no path and no patient is
in Redis.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import redis
from rq import Queue, Retry
from rq.serializers import JSONSerializer

from workers import queue_glance
from workers.queue_glance import FILING as FILING
from workers.queue_glance import PAIRING as PAIRING
from workers.queue_glance import filing_queue as filing_queue
from workers.queue_server import QueueUnusable as QueueUnusable
from workers.queue_server import connect as connect
from workers.queue_server import make_socket_folder as make_socket_folder
from workers.queue_server import remove_socket_folder as remove_socket_folder
from workers.queue_server import socket_path as socket_path
from workers.queue_server import why as why
from workers.spool.batches import EntryName

FILE_ENTRIES = "workers.jobs.file_entries"
PAIR_STUDY = "workers.jobs.pair_study"
JOB_NAMES = frozenset({FILE_ENTRIES, PAIR_STUDY})
"""The only functions that a worker runs."""

JOB_VERSION = 1
"""Version of the jobs' arguments; jobs of another one are dropped, the sweeper makes new ones."""

QUEUED_JOBS_LIMIT = 50
"""A queue with so many waiting jobs takes no more."""

MOST_TRIES = 3
FAILURE_SECONDS = 600
JOB_SECONDS = {FILE_ENTRIES: 600, PAIR_STUDY: 1800}
"""How long a job may take; what stands in Redis about it is not believed."""

_JOB_BYTES = 1 << 20
_FLUSH_JOBS = 1000
_JOB_ID = re.compile(rb"[0-9A-Za-z-]{1,64}")
_BATCH = re.compile(r"[^/.\0][^/\0]{0,254}")
_ENTRY = re.compile(r"[0-9a-f]{32}")

JOB_FIELDS = (
    "data", "created_at", "enqueued_at", "started_at", "origin", "status", "worker_name",
    "last_heartbeat", "timeout", "result_ttl", "failure_ttl", "number_of_retries", "retries_left",
)  # fmt: skip
"""All that is ever read of a job; no callback, no webhook and no dependency is among it."""


def enqueue_filing(connection: redis.Redis, entries: Sequence[EntryName], spool: str = "") -> bool:
    """Queue one job that files these entries; False when there are none or the queue is full.

    `spool` is the name of the spool that they wait in.

    Raises
    ------
    redis.RedisError
        The server is away, or out of memory.
    """
    if not entries:
        return False
    batches: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        batches[entry.batch].append(entry.identifier)
    arguments = {"version": JOB_VERSION, "batches": dict(batches)}
    words = f"file {len(entries)} entries"
    return _enqueue(connection, filing_queue(spool), FILE_ENTRIES, arguments, words)


def enqueue_pairing(connection: redis.Redis, study_key: int, generation: int) -> bool:
    """Queue one job that makes a generation of a pair; False when the queue is full.

    Raises
    ------
    redis.RedisError
        The server is away, or out of memory.
    """
    arguments = {"version": JOB_VERSION, "pair": study_key, "generation": generation}
    words = f"pair {study_key}, generation {generation}"
    return _enqueue(connection, PAIRING, PAIR_STUDY, arguments, words)


def _enqueue(
    connection: redis.Redis,
    name: str,
    function: str,
    arguments: Mapping[str, Any],
    words: str,
) -> bool:
    queue = Queue(name, connection=connection, serializer=JSONSerializer)
    if queue.count >= QUEUED_JOBS_LIMIT:
        return False
    queue.enqueue_call(
        function,
        kwargs=dict(arguments),
        description=words,
        timeout=JOB_SECONDS[function],
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        retry=Retry(max=MOST_TRIES),
    )
    return True


def depths(connection: redis.Redis, spool: str = "") -> dict[str, int]:
    """Count the jobs that wait or run in the queues of a spool's host; then in other hosts'."""
    return queue_glance.depths(connection.execute_command, spool)


def idle(connection: redis.Redis, queue: str) -> bool:
    """Tell whether nothing waits in a queue and nothing of it runs."""
    command = connection.execute_command
    return not queue_glance.queued(command, queue) and not queue_glance.started(command, queue)


def pairs_with_a_job(connection: redis.Redis) -> set[tuple[int, int]]:
    """Return each (pair, generation) that is queued or being made by a live worker."""
    waiting = cast("list[bytes]", connection.lrange(f"rq:queue:{PAIRING}", 0, -1))
    running = queue_glance.at_work(connection.execute_command, PAIRING)
    with connection.pipeline(transaction=False) as pipeline:
        for job in (*waiting, *(one.encode() for one in running)):
            pipeline.hget(b"rq:job:" + job, "data")
        found = pipeline.execute(raise_on_error=False)
    return {pair for data in found if isinstance(data, bytes) and (pair := pair_of(data))}


def worker_is_dead(connection: redis.Redis, execution: str) -> bool:
    """Tell whether whoever runs a job is gone: a process of this machine, or silent elsewhere."""
    return queue_glance.worker_is_dead(connection.execute_command, execution)


def is_full(connection: redis.Redis) -> bool:
    """Tell whether the server's memory is used up but for a thirtieth."""
    facts = cast("dict[str, int]", connection.info("memory"))
    return 0 < facts["maxmemory"] <= facts["used_memory"] * 1.03


def flush_foreign(connection: redis.Redis, spool: str = "") -> int:
    """Drop waiting jobs of another version or another program; return how many.

    Of the queues of a spool's host: another host looks after its own. What is left in the queue of
    a host without a name goes whole: none is let in beside hosts with names.
    """
    dropped = sum(_flush(connection, name, job_is_ours) for name in (filing_queue(spool), PAIRING))
    if spool:
        dropped += _flush(connection, FILING, lambda *_: False)
    return dropped


def _flush(
    connection: redis.Redis, queue: str, is_kept: Callable[[redis.Redis, bytes], bool]
) -> int:
    """Drop what is not to be kept from a queue; return how many."""
    return sum(
        _flush_list(connection, key, is_kept)
        for key in (f"rq:queue:{queue}", f"rq:queue:{queue}:intermediate")
    )


def _flush_list(
    connection: redis.Redis, key: str, is_kept: Callable[[redis.Redis, bytes], bool]
) -> int:
    """The same of a list of jobs, a bounded piece at a time."""
    dropped = at = 0
    while jobs := cast("list[bytes]", connection.lrange(key, at, at + _FLUSH_JOBS - 1)):
        foreign = [job for job in jobs if not is_kept(connection, job)]
        for job in foreign:
            connection.lrem(key, 1, job)  # type: ignore[arg-type]  # a forged one may be no text
            connection.delete(b"rq:job:" + job)
        dropped += len(foreign)
        at += len(jobs) - len(foreign)
    return dropped


def job_is_ours(connection: redis.Redis, job: bytes) -> bool:
    """Tell whether a queued job is a call that this version makes; it is read only if it is small.

    Raises redis.RedisError when the server is away.
    """
    if not is_job_name(job):
        return False
    key = b"rq:job:" + job
    try:
        with connection.pipeline(transaction=False) as pipeline:
            for field in JOB_FIELDS:
                pipeline.hstrlen(key, field)
            sizes = pipeline.execute()
        if sum(sizes) > _JOB_BYTES:
            return False
        return is_ours(cast(bytes | None, connection.hget(key, "data")))
    except redis.ResponseError as error:
        if "WRONGTYPE" in str(error):
            return False  # no job at all lies there
        raise


def is_job_name(job: bytes) -> bool:
    """Tell whether a job may be called so; what RQ makes is."""
    return _JOB_ID.fullmatch(job) is not None


def is_ours(data: bytes | None) -> bool:
    """Tell whether the raw data of a job is a call that this version makes; never unpickles."""
    try:
        function, instance, positional, arguments = _call_of(data)
        if instance is not None or positional != [] or arguments.pop("version") != JOB_VERSION:
            return False
        if function == FILE_ENTRIES:
            return arguments.keys() == {"batches"} and _are_batches(arguments["batches"])
        if function == PAIR_STUDY:
            numbers = arguments.keys() == {"pair", "generation"}
            return numbers and all(type(number) is int for number in arguments.values())
    except (zlib.error, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    return False


def pair_of(data: bytes) -> tuple[int, int] | None:
    """Return which (pair, generation) a job is to make; None for every other."""
    if not is_ours(data):
        return None
    function, _, _, arguments = _call_of(data)
    return (arguments["pair"], arguments["generation"]) if function == PAIR_STUDY else None


def _call_of(data: bytes | None) -> list[Any]:
    """Read [function, instance, arguments, arguments by name]; raises where it is none."""
    call: list[Any] = json.loads(zlib.decompressobj().decompress(data or b"", _JOB_BYTES))
    return call


def _are_batches(batches: Any) -> bool:
    """Tell whether these are names of batches, each with identifiers of entries."""
    return isinstance(batches, dict) and all(
        _BATCH.fullmatch(batch)
        and isinstance(entries, list)
        and all(isinstance(entry, str) and _ENTRY.fullmatch(entry) for entry in entries)
        for batch, entries in batches.items()
    )
