"""The queues hold hints: bounded, without paths, and never trusted."""

import json
import os
import pickle
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from config.settings import load_settings
from workers import queue_glance, queues
from workers.errors import QueueSilent, StoreUnavailable
from workers.queues import FILING, PAIRING
from workers.spool.batches import EntryName

NAMES = [EntryName("a1", "00000001"), EntryName("a1", "00000002"), EntryName("f2", "DOE^JOHN/x")]


@pytest.fixture
def connection(valkey):
    with valkey.connect() as client:
        yield client


def jobs(connection, name):
    return Queue(name, connection=connection, serializer=JSONSerializer).get_jobs()


def every_byte(connection):
    """All that the server holds, as one string of bytes."""
    found = []
    for key in connection.scan_iter():
        found.append(key)
        if connection.type(key) == b"hash":
            for field, value in connection.hgetall(key).items():
                found.append(field)
                found.append(zlib.decompress(value) if field == b"data" else value)
    return b"\n".join(found)


def test_a_filing_job_names_batches_and_entry_identifiers(connection):
    assert queues.enqueue_filing(connection, NAMES)
    (job,) = jobs(connection, FILING)
    assert job.func_name == "workers.jobs.file_entries"
    assert job.kwargs == {
        "version": 1,
        "batches": {
            "a1": [NAMES[0].identifier, NAMES[1].identifier],
            "f2": [NAMES[2].identifier],
        },
    }
    assert (job.timeout, job.result_ttl, job.retries_left) == (600, 0, 3)
    assert not job.retry_intervals or set(job.retry_intervals) == {0}


def test_no_path_of_a_dropped_folder_reaches_the_server(connection):
    queues.enqueue_filing(connection, NAMES)
    held = every_byte(connection)
    assert NAMES[2].identifier.encode() in held
    assert b"DOE" not in held


def test_a_pairing_job_names_pair_and_generation(connection):
    assert queues.enqueue_pairing(connection, 7, 3)
    (job,) = jobs(connection, PAIRING)
    assert job.func_name == "workers.jobs.pair_study"
    assert job.kwargs == {"version": 1, "pair": 7, "generation": 3}


def test_nothing_makes_no_job(connection):
    assert not queues.enqueue_filing(connection, [])
    assert queues.depths(connection) == {FILING: 0, PAIRING: 0}


def test_a_full_queue_refuses_and_the_other_one_does_not(connection):
    taken = [queues.enqueue_filing(connection, NAMES[:1]) for _ in range(51)]
    assert taken == [True] * 50 + [False]
    assert queues.enqueue_pairing(connection, 1, 1)
    assert queues.depths(connection) == {FILING: 50, PAIRING: 1}


def test_a_queue_with_a_job_is_not_idle(connection):
    assert queues.idle(connection, FILING)
    queues.enqueue_filing(connection, NAMES)
    assert not queues.idle(connection, FILING)
    assert queues.idle(connection, PAIRING)


def running_job(connection, pid, host=None):
    """Write down what RQ writes when a worker begins a job."""
    execution = f"job{pid}:run"
    connection.zadd("rq:wip:filing", {execution: time.time() + 600})
    connection.hset(f"rq:execution:{execution}", "worker_name", f"w{pid}")
    facts = {"hostname": host or socket.gethostname(), "pid": pid}
    connection.hset(f"rq:worker:w{pid}", mapping=facts)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(20)
    return process.pid


def test_a_job_in_the_hands_of_a_living_worker_keeps_the_queue_busy(connection):
    running_job(connection, os.getpid())
    assert not queues.idle(connection, FILING)
    assert queues.depths(connection)[FILING] == 1


def test_a_job_of_a_killed_worker_does_not_keep_the_queue_busy(connection):
    running_job(connection, dead_pid())
    assert queues.idle(connection, FILING)


def test_a_glance_over_the_private_socket_sees_what_the_client_library_sees(
    connection, valkey, settings
):
    running_job(connection, os.getpid())
    running_job(connection, dead_pid())
    queues.enqueue_filing(connection, NAMES)
    connection.sadd("rq:workers:filing", f"rq:worker:w{os.getpid()}", "rq:worker:gone")
    private = settings.layout.run / "valkey.sock"
    private.symlink_to(valkey.folder / "v.sock")
    for one in (settings, valkey.settings(settings)):
        with queue_glance.glance_at_queues(one) as command:
            assert queue_glance.depths(command) == queues.depths(connection)
            assert queue_glance.depths(command) == {FILING: 2, PAIRING: 0}
            assert queue_glance.workers_of(command, FILING) == 1
        with (
            pytest.raises(QueueSilent, match="refuses"),
            queue_glance.glance_at_queues(one) as command,
        ):
            command("LLEN", "rq:workers:filing")
    valkey.kill()
    for one in (settings, valkey.settings(settings)):
        with (
            pytest.raises(QueueSilent, match="does not answer"),
            queue_glance.glance_at_queues(one) as command,
        ):
            queue_glance.depths(command)


def test_a_worker_of_another_machine_counts_until_its_time_is_over(connection):
    running_job(connection, dead_pid(), host="elsewhere")
    assert not queues.idle(connection, FILING)
    (execution,) = connection.zrange("rq:wip:filing", 0, -1)
    connection.zadd("rq:wip:filing", {execution: 1})  # by another machine's clock
    assert not queues.idle(connection, FILING)
    connection.expire(f"rq:execution:{execution.decode()}", 0)  # by the server's
    assert queues.idle(connection, FILING)


def test_a_pair_that_is_queued_or_being_made_has_a_job(connection):
    assert queues.pairs_with_a_job(connection) == set()
    assert queues.enqueue_pairing(connection, 7, 2)
    assert queues.pairs_with_a_job(connection) == {(7, 2)}
    job = connection.lpop("rq:queue:pairing").decode()
    assert queues.pairs_with_a_job(connection) == set()
    connection.zadd("rq:wip:pairing", {f"{job}:run": 1})
    connection.hset(f"rq:execution:{job}:run", "worker_name", "far")
    connection.hset("rq:worker:far", mapping={"hostname": "elsewhere", "pid": 1})
    assert queues.pairs_with_a_job(connection) == {(7, 2)}
    connection.delete("rq:worker:far")
    assert queues.pairs_with_a_job(connection) == set(), "its maker is silent"
    connection.rpush("rq:queue:pairing", b"\xff", "no-such-job")
    assert queues.pairs_with_a_job(connection) == set()


def foreign(connection, job, data):
    connection.hset(f"rq:job:{job}", "data", data)
    connection.rpush("rq:queue:filing", job)


def test_jobs_of_another_version_or_program_are_dropped_and_ours_stay(connection):
    queues.enqueue_filing(connection, NAMES)
    (mine,) = jobs(connection, FILING)
    newer = [queues.FILE_ENTRIES, None, [], {"version": 2, "batches": {}}]
    other = ["os.system", None, ["true"], {"version": 1}]
    foreign(connection, "newer", zlib.compress(json.dumps(newer).encode()))
    foreign(connection, "other", zlib.compress(json.dumps(other).encode()))
    foreign(connection, "nonsense", b"\0\1")
    connection.rpush("rq:queue:filing", "without-a-body")
    assert queues.flush_foreign(connection) == 4
    assert [job.id for job in jobs(connection, FILING)] == [mine.id]
    assert not connection.exists("rq:job:newer", "rq:job:other", "rq:job:nonsense")


class Spring:
    def __reduce__(self):
        return (os._exit, (7,))


def test_a_pickled_job_is_dropped_without_being_unpickled(connection):
    foreign(connection, "trap", zlib.compress(pickle.dumps(Spring())))
    assert queues.flush_foreign(connection) == 1


def test_a_job_that_unfolds_without_end_is_not_unfolded(connection):
    foreign(connection, "bomb", zlib.compress(b"[" * (50 << 20)))
    began = time.monotonic()
    assert queues.flush_foreign(connection) == 1
    assert time.monotonic() - began < 2


def test_a_server_that_is_away_is_said_at_once(settings):
    client = queues.connect(settings)
    began = time.monotonic()
    with pytest.raises(redis.ConnectionError):
        queues.enqueue_filing(client, NAMES)
    assert time.monotonic() - began < 0.5


def test_a_server_that_hangs_is_given_up_within_seconds(valkey, settings):
    client = queues.connect(valkey.settings(settings))
    client.ping()
    with valkey.connect() as other:
        other.execute_command("CLIENT", "PAUSE", 10_000, "ALL")
        began = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            queues.enqueue_filing(client, NAMES)
        assert time.monotonic() - began < 5
    client.close()


def test_the_socket_lies_below_run_where_the_path_is_short_enough(settings):
    layout = settings.layout
    short = type(layout)(**{**fields(layout), "run": layout.root.__class__("/srv/run")})
    assert str(queues.socket_path(short)) == "/srv/run/valkey.sock"


def fields(layout):
    return {name: getattr(layout, name) for name in type(layout).__dataclass_fields__}


@pytest.fixture
def long_layout(settings, tmp_path):
    run = tmp_path / ("r" * 100)
    run.mkdir()
    layout = type(settings.layout)(**{**fields(settings.layout), "run": run})
    yield layout
    folder = queues.socket_path(layout).parent
    if folder.is_dir():
        folder.rmdir()


def test_a_long_path_is_replaced_by_a_private_folder(long_layout):
    path = queues.make_socket_folder(long_layout)
    assert len(os.fsencode(path)) <= 100
    assert path == queues.socket_path(long_layout)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_not_used_for_the_socket(long_layout):
    folder = queues.socket_path(long_layout).parent
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreUnavailable, match="0700"):
        queues.make_socket_folder(long_layout)


def test_the_stand_in_folder_of_a_long_path_is_removed_with_its_server(tmp_path: Path) -> None:
    layout = load_settings(root=tmp_path / ("long" * 30), environ={}).layout
    layout.make_private()
    path = queues.make_socket_folder(layout)
    path.touch()
    assert path.parent.exists()
    queues.remove_socket_folder(layout)
    assert not path.parent.exists()
    queues.remove_socket_folder(layout)
    assert layout.run.exists()
