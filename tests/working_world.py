"""Workers in processes of their own that run jobs of the tests'."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer
from running import Running, running

from config.settings import Settings
from workers.queues import JOB_VERSION

JOBS = """
import os, pathlib, time
from config.logs import configure_logging
from config.settings import load_settings
from daemon import job_queue, working

ALLOWED = frozenset({"jobs_for_tests.note", "jobs_for_tests.hang", "jobs_for_tests.fail"})

def note(version, path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")

def hang(version, path):
    note(version, path)
    while not os.path.exists(path + ".go"):
        time.sleep(0.02)

def fail(version, path):
    note(version, path)
    raise ValueError("Doe^Jane is a patient's name")

class Filing(working.FilingWorker):
    allowed = ALLOWED

class Pairing(working.PairingWorker):
    allowed = ALLOWED

def main(root, queue, drain, given):
    for name, value in given.items():
        setattr(Pairing, name, value)
    settings = load_settings(root=pathlib.Path(root))
    configure_logging(settings.logging)
    working.FilingWorker, working.PairingWorker = Filing, Pairing
    # only the list above counts here
    job_queue.WatchedQueue.is_ours = staticmethod(lambda *_: True)
    if host := given.get("host"):
        import socket
        socket.gethostname = lambda: host
    working.IDLE_SECONDS = 1
    working.work(working.make_worker(settings, queue), drain=drain)
"""


@contextlib.contextmanager
def job_worker(
    settings: Settings,
    folder: Path,
    queue: str,
    name: str = "worker",
    *,
    wait: bool = True,
    drain: bool = False,
    **given: Any,
) -> Iterator[Running]:
    """Run a worker; `given` are attributes of a pairing worker, `host` the name of its machine."""
    (folder / "jobs_for_tests.py").write_text(JOBS)
    script = (
        f"import jobs_for_tests as j; j.main({str(settings.root)!r}, {queue!r}, {drain}, {given})"
    )
    command = [sys.executable, "-c", script]
    with running(command, folder / name, PYTHONPATH=str(folder)) as worker:
        if wait:
            # before that it drops what is queued under names that it does not know
            worker.await_output("worker-started")
        yield worker


def put(
    connection: redis.Redis,
    queue: str,
    function: str,
    path: Path,
    version: int = JOB_VERSION,
    retry: Retry | None = None,
    **options: Any,
) -> Job:
    return Queue(queue, connection=connection, serializer=JSONSerializer).enqueue_call(
        f"jobs_for_tests.{function}" if "." not in function else function,
        kwargs={"version": version, "path": str(path)},
        result_ttl=0,
        failure_ttl=60,
        timeout=60,
        retry=retry,
        **options,
    )


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
