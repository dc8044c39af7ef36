"""How much the queues hold, asked quickly: of the embedded server without redis-py and RQ.

Whoever types `status` waits for every import. The private socket is spoken to in the server's own
protocol (RESP2, redis.io/docs/latest/develop/reference/protocol-spec); a server of one's own, with
its TLS and password, is left to redis-py. RQ keeps a queue as the list `rq:queue:NAME`, and what is
being worked on in the sorted set `rq:wip:NAME`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from config.settings import Settings
from workers import clock
from workers.errors import QueueSilent
from workers.queue_socket import socket_path

FILING = "filing"
PAIRING = "pairing"

_ANSWER_SECONDS = 2.0


class Command(Protocol):
    """Send one command of the server's, and return what it answers."""

    def __call__(self, *words: Any) -> Any: ...


def filing_queue(spool: str) -> str:
    """Return the queue of a host's own spool, by its `spool.name`; only that host files it."""
    return f"{FILING}:{spool}" if spool else FILING


@contextmanager
def glance_at_queues(settings: Settings) -> Iterator[Command]:
    """Connect for one look. Raises QueueSilent, in the words of queue_server.py, now or later."""
    path = socket_path(settings.layout)
    if settings.redis.url or path.parent != settings.layout.run:  # whose folder in /tmp is it?
        with _through_redis(settings) as command:
            yield command
        return
    try:
        with closing(socket.socket(socket.AF_UNIX)) as server:
            server.settimeout(_ANSWER_SECONDS)
            server.connect(os.fspath(path))
            with server.makefile("rb") as answers:
                yield lambda *words: _ask(server, answers, words)
    except TimeoutError as error:
        raise QueueSilent("the queue server does not answer in time") from error
    except OSError as error:
        raise QueueSilent("the queue server does not answer") from error


def depths(command: Command, spool: str = "") -> dict[str, int]:
    """Count the jobs that wait or run in the queues of a spool's host; then in other hosts'."""
    names = [filing_queue(spool), PAIRING]
    known = {key.decode(errors="replace") for key in command("SMEMBERS", "rq:queues")}
    found = sorted(key.removeprefix("rq:queue:") for key in known)
    names += [name for name in found if name.startswith(f"{FILING}:") and name not in names]
    return {name: queued(command, name) + started(command, name) for name in names}


def workers_of(command: Command, queue: str) -> int:
    """Count the workers of a queue that gave a sign of life within its time."""
    names = command("SMEMBERS", f"rq:workers:{queue}")
    return int(command("EXISTS", *names)) if names else 0


def queued(command: Command, queue: str) -> int:
    """Count the jobs that wait in a queue."""
    return int(command("LLEN", f"rq:queue:{queue}"))


def started(command: Command, queue: str) -> int:
    """Count the running jobs, without those whose worker is known to be dead.

    RQ keeps the execution of a killed worker for up to its job's time limit, and times it by the
    clock of whoever began it; a sweeper that waited for that would leave entries lying for minutes.
    """
    return len(at_work(command, queue))


def at_work(command: Command, queue: str) -> list[str]:
    """Return the jobs of a queue that a live worker has in hand."""
    executions = [
        one.decode(errors="replace") for one in command("ZRANGE", f"rq:wip:{queue}", 0, -1)
    ]
    return [one.rpartition(":")[0] for one in executions if not worker_is_dead(command, one)]


def worker_is_dead(command: Command, execution: str) -> bool:
    """Tell whether whoever runs a job is gone: a process of this machine, or silent elsewhere.

    A worker renews the keys of its execution and its own; the server lets them expire by its own
    clock, so that no other one counts.
    """
    worker = command("HGET", f"rq:execution:{execution}", "worker_name")
    if not worker:
        return True
    key = f"rq:worker:{worker.decode(errors='replace')}"
    host, pid, life = command("HMGET", key, "hostname", "pid", "life")
    if not host or not pid:
        return True
    if host != socket.gethostname().encode() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError, ValueError):
        return False
    return bool(life) and life_of(int(pid)) not in ("", life.decode(errors="replace"))


def life_of(pid: int) -> str:
    """Tell a process of this machine from a later one of the same number; "" where none is seen.

    By the boot and the time of its start (proc(5), field 22 of stat).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{clock.boot_id()} {int(fields[19])}"
    except OSError:
        return ""


def _ask(server: socket.socket, answers: BinaryIO, words: tuple[Any, ...]) -> Any:
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%b\r\n" % (len(one), one) for one in encoded)]
    server.sendall(b"".join(parts))
    return _answer(answers)


def _answer(answers: BinaryIO) -> Any:
    line = answers.readline()
    kind, rest = line[:1], line[1:-2]
    if not line.endswith(b"\r\n"):
        raise QueueSilent("the queue server does not answer")
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else answers.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return [_answer(answers) for _ in range(int(rest))]
    if kind == b"+":
        return rest
    raise QueueSilent(f"the queue server refuses ({rest.split(b' ')[0].decode(errors='replace')})")


@contextmanager
def _through_redis(settings: Settings) -> Iterator[Command]:
    import redis

    from workers.queue_server import connect, why

    try:
        with connect(settings) as connection:
            yield connection.execute_command
    except redis.RedisError as error:
        raise QueueSilent(why(error)) from error
