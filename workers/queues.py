"""The two queues of jobs, on Redis or Valkey, and what may be in them.

What stands here is a hint and may be lost whole at any time: spool and index are the truth, and
the sweeper makes jobs anew (design.md 2). Therefore nothing retries for long, and a full queue
refuses. A job names entries by their identifier and pairs by their key: no path and no patient is
in Redis.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as ConnectionRetry
from rq import Queue, Retry
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from config.layout import Layout
from config.settings import Settings
from workers.errors import StoreUnavailable
from workers.spool.batches import EntryName

FILING = "filing"
PAIRING = "pairing"
QUEUES = (FILING, PAIRING)

FILE_ENTRIES = "workers.jobs.file_entries"
PAIR_STUDY = "workers.jobs.pair_study"
JOB_NAMES = frozenset({FILE_ENTRIES, PAIR_STUDY})
"""The only functions that a worker runs."""

JOB_VERSION = 1
"""Version of the jobs' arguments; jobs of another one are dropped, the sweeper makes new ones."""

QUEUED_JOBS_LIMIT = 50
"""A queue with so many waiting jobs takes no more."""

_FILING_SECONDS = 600
_PAIRING_SECONDS = 1800
_FAILURE_SECONDS = 600
_COMMAND_SECONDS = 2.0
_CONNECT_SECONDS = 1.0
_SOCKET_PATH_BYTES = 100
_JOB_BYTES = 1 << 20


def socket_path(layout: Layout) -> Path:
    """Return where the embedded server listens: `run/valkey.sock`, or a short path in its place.

    A socket's path holds 107 bytes (unix(7)).
    """
    path = layout.run / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    digits = hashlib.blake2b(os.fsencode(layout.run), digest_size=8).hexdigest()
    # not TMPDIR or XDG_RUNTIME_DIR: every process of an installation must find the same place
    return Path(f"/tmp/petct-ingest-{digits}/valkey.sock")  # noqa: S108 - made 0700, checked


def make_socket_folder(layout: Layout) -> Path:
    """Make the folder of the embedded server's socket (0700) if need be; return the socket's path.

    Raises
    ------
    StoreUnavailable
        The folder exists and belongs to somebody else, or others may write to it.
    """
    path = socket_path(layout)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _check_socket_folder(layout, path.parent)
    return path


def remove_socket_folder(layout: Layout) -> None:
    """Remove the folder in /tmp that stood in for a path too long, once its server has ended."""
    path = socket_path(layout)
    if path.parent != layout.run:
        with suppress(OSError):  # never made, or another server is quicker
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def _check_socket_folder(layout: Layout, folder: Path) -> None:
    """Refuse a folder in /tmp that another user laid out for us."""
    if folder == layout.run:
        return
    facts = os.lstat(folder)
    owner = os.stat(layout.run).st_uid
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != owner or facts.st_mode & 0o077:
        raise StoreUnavailable(
            f"{folder} must belong to the user who owns {layout.run}, with mode 0700: remove it"
        )


def connect(settings: Settings) -> redis.Redis:
    """Return a client of the queue server; it connects when first used and gives up within seconds.

    Raises
    ------
    StoreUnavailable
        The folder of the embedded server's socket is not ours.
    """
    options: dict[str, Any] = {
        "socket_timeout": _COMMAND_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "retry": ConnectionRetry(NoBackoff(), 0),
    }
    if settings.redis.url:
        return redis.Redis.from_url(settings.redis.url, **options)
    path = socket_path(settings.layout)
    if path.parent.exists():
        _check_socket_folder(settings.layout, path.parent)
    return redis.Redis(unix_socket_path=str(path), **options)


def enqueue_filing(connection: redis.Redis, entries: Sequence[EntryName]) -> bool:
    """Queue one job that files these entries; False when there are none or the queue is full.

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
    return _enqueue(connection, FILING, FILE_ENTRIES, arguments, words, _FILING_SECONDS)


def enqueue_pairing(connection: redis.Redis, study_key: int, generation: int) -> bool:
    """Queue one job that makes a generation of a pair; False when the queue is full.

    Raises
    ------
    redis.RedisError
        The server is away, or out of memory.
    """
    arguments = {"version": JOB_VERSION, "pair": study_key, "generation": generation}
    words = f"pair {study_key}, generation {generation}"
    return _enqueue(connection, PAIRING, PAIR_STUDY, arguments, words, _PAIRING_SECONDS)


def _enqueue(
    connection: redis.Redis,
    name: str,
    function: str,
    arguments: Mapping[str, Any],
    words: str,
    seconds: int,
) -> bool:
    queue = Queue(name, connection=connection, serializer=JSONSerializer)
    if queue.count >= QUEUED_JOBS_LIMIT:
        return False
    queue.enqueue_call(
        function,
        kwargs=dict(arguments),
        description=words,
        timeout=seconds,
        result_ttl=0,
        failure_ttl=_FAILURE_SECONDS,
        retry=Retry(max=3),
    )
    return True


def depths(connection: redis.Redis) -> dict[str, int]:
    """Count the jobs of each queue that wait or run."""
    return {name: _queued(connection, name) + _started(connection, name) for name in QUEUES}


def idle(connection: redis.Redis, queue: str) -> bool:
    """Tell whether nothing waits in a queue and nothing of it runs."""
    return not _queued(connection, queue) and not _started(connection, queue)


def flush_foreign(connection: redis.Redis) -> int:
    """Drop waiting jobs of another version or another program; return how many."""
    dropped = 0
    for name in QUEUES:
        queue = Queue(name, connection=connection, serializer=JSONSerializer)
        for job in queue.get_job_ids():
            data = cast(bytes | None, connection.hget(f"rq:job:{job}", "data"))
            if not is_ours(data):
                connection.lrem(queue.key, 0, job)
                connection.delete(f"rq:job:{job}")
                dropped += 1
    return dropped


def is_ours(data: bytes | None) -> bool:
    """Tell whether the raw data of a job is a call that this version makes; never unpickles."""
    try:
        plain = zlib.decompressobj().decompress(data or b"", _JOB_BYTES)
        function, _, positional, arguments = json.loads(plain)
        return function in JOB_NAMES and not positional and arguments.get("version") == JOB_VERSION
    except (zlib.error, ValueError, TypeError, AttributeError, RecursionError):
        return False


def _queued(connection: redis.Redis, name: str) -> int:
    return Queue(name, connection=connection, serializer=JSONSerializer).count


def _started(connection: redis.Redis, name: str) -> int:
    """Count the running jobs, without those whose worker is known to be dead.

    RQ keeps the execution of a killed worker for up to its job's time limit; a sweeper that waited
    for that would leave entries lying for ten minutes.
    """
    registry = StartedJobRegistry(name, connection=connection, serializer=JSONSerializer)
    # not through the registry's own methods: they requeue and fail jobs, which is a worker's task
    alive = "(" + str(_server_seconds(connection))
    executions = cast("list[bytes]", connection.zrangebyscore(registry.key, alive, "+inf"))
    return sum(not worker_is_dead(connection, execution.decode()) for execution in executions)


def _server_seconds(connection: redis.Redis) -> int:
    return connection.time()[0]


def worker_is_dead(connection: redis.Redis, execution: str) -> bool:
    """Tell whether the process that runs a job is surely gone (it ran on this machine)."""
    worker = cast(bytes | None, connection.hget(f"rq:execution:{execution}", "worker_name"))
    if not worker:
        return False
    facts = cast(
        "list[bytes | None]",
        connection.hmget(f"rq:worker:{worker.decode()}", ["hostname", "pid"]),
    )
    host, pid = facts
    if not host or not pid or host.decode() != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
