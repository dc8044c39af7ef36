"""Pairing workers come and go: stopped, drained, killed elsewhere, or without their server."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rq import Retry
from running import Running, alive, children_of, petct, running, wait_until
from working_world import job_worker, lines, put

from config.settings import Settings, load_settings
from daemon.valkey import answers
from workers.queue_glance import life_of
from workers.queues import PAIRING, connect, idle, socket_path

QUICK = {"beat_seconds": 1, "silent_seconds": 3, "drain_seconds": 1.0}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(root=tmp_path / "root", environ={})


@pytest.fixture
def server(settings: Settings, tmp_path: Path) -> Iterator[Running]:
    with running(petct("valkey", "--root", settings.root), tmp_path / "valkey") as process:
        wait_until(lambda: answers(socket_path(settings.layout)), what="the server's answer")
        yield process


@pytest.fixture
def connection(settings: Settings, server: Running) -> Iterator[redis.Redis]:
    with connect(settings) as connection:
        yield connection


def key_of(connection: redis.Redis, kind: str) -> str:
    """The one key of a kind."""
    (key,) = (one.decode() for one in connection.scan_iter(f"rq:{kind}:*"))
    return str(key)


def test_a_worker_stopped_twice_drops_its_job_which_is_queued_again_at_once(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with job_worker(settings, tmp_path, PAIRING) as worker:
        job = put(connection, PAIRING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        (horse,) = children_of(worker.pid)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: connection.hget(key_of(connection, "worker"), "shutdown_requested_date"))
        assert alive(horse), "stopped once, it finishes the job in hand"
        assert worker.end() == 0
        assert not alive(horse)
        assert "job-dropped" in worker.stderr
        assert "job-process-died" not in worker.stderr, "it counts as nobody's death"
    assert connection.lrange("rq:queue:pairing", 0, -1) == [job.id.encode()]
    job.refresh()
    assert job.retries_left == 3, "it was no try of the job's"


def test_a_process_that_finds_no_server_is_nobodys_death_and_no_try_of_the_job(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path, socket = tmp_path / "job", socket_path(settings.layout)
    with job_worker(settings, tmp_path, PAIRING) as worker:
        wait_until(lambda: connection.keys("rq:worker:*"), what="a registered worker")
        os.rename(socket, hidden := socket.with_name("hidden"))  # what is connected stays so
        put(connection, PAIRING, "note", path, retry=Retry(max=3))
        worker.await_output("queue-server-away-during-job")
        os.rename(hidden, socket)
        wait_until(lambda: lines(path), what="the next try")
        wait_until(lambda: idle(connection, PAIRING))
        assert worker.end() == 0
    assert "job-process-died" not in worker.stderr
    assert len(lines(path)) == 1


def test_a_stopped_worker_whose_job_takes_too_long_drops_it(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with job_worker(settings, tmp_path, PAIRING, **QUICK) as worker:
        put(connection, PAIRING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        assert worker.end() == 0
        assert "job-dropped" in worker.stderr
    assert connection.llen("rq:queue:pairing") == 1


def test_a_worker_that_drains_the_queue_ends_when_nothing_is_left(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    with job_worker(settings, tmp_path, PAIRING, wait=False, drain=True) as worker:
        worker.await_output("worker-started")
        for number in range(3):
            put(connection, PAIRING, "note", tmp_path / str(number))
        assert worker.process.wait(20) == 0
        assert "worker-drained" in worker.stderr
    assert all(lines(tmp_path / str(number)) for number in range(3))


def test_the_job_of_a_worker_killed_on_another_host_goes_to_the_next_when_it_is_silent(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with job_worker(settings, tmp_path, PAIRING, "far", host="far", **QUICK) as far:
        put(connection, PAIRING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        wait_until(lambda: 0 < connection.ttl(key_of(connection, "worker")) <= 70)
        far.end(signal.SIGKILL)
    assert not idle(connection, PAIRING), "its process is nobody's to see from here"
    wait_until(lambda: idle(connection, PAIRING), what="its silence")
    with job_worker(settings, tmp_path, PAIRING, "near", **QUICK) as near:
        wait_until(lambda: len(lines(path)) == 2, what="the second try")
        Path(f"{path}.go").touch()
        wait_until(lambda: idle(connection, PAIRING))
        assert near.end() == 0


def test_a_clock_that_is_behind_takes_no_job_from_a_worker_that_lives(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with (
        job_worker(settings, tmp_path, PAIRING, "far", host="far") as far,
        job_worker(settings, tmp_path, PAIRING, "near", wait=False) as near,
    ):
        put(connection, PAIRING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        (execution,) = connection.zrange("rq:wip:pairing", 0, -1)
        connection.zadd("rq:wip:pairing", {execution: 1.0})  # as of 1970
        assert not idle(connection, PAIRING)
        near.await_output("worker-started")
        put(connection, PAIRING, "note", tmp_path / "other")  # it looks after others, then works
        wait_until(lambda: lines(tmp_path / "other"))
        assert execution in connection.zrange("rq:wip:pairing", 0, -1)
        Path(f"{path}.go").touch()
        assert (far.end(), near.end()) == (0, 0)
    assert len(lines(path)) == 1


def test_a_later_process_of_the_same_number_is_not_taken_for_the_worker(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with job_worker(settings, tmp_path, PAIRING) as worker:
        put(connection, PAIRING, "hang", path)
        wait_until(lambda: lines(path))
        key = key_of(connection, "worker")
        assert connection.hget(key, "life") == life_of(worker.pid).encode()
        assert not idle(connection, PAIRING)
        connection.hset(key, "pid", os.getpid())  # whose life is another
        assert idle(connection, PAIRING)
        Path(f"{path}.go").touch()
        worker.process.kill()


def test_a_job_outlives_its_server_and_only_then_the_worker_ends(
    settings: Settings, server: Running, connection: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "job"
    with job_worker(settings, tmp_path, PAIRING, **QUICK) as worker:
        put(connection, PAIRING, "hang", path)
        wait_until(lambda: lines(path))
        (horse,) = children_of(worker.pid)
        server.end(signal.SIGKILL)
        worker.await_output("queue-server-away-during-job")
        assert alive(horse)
        Path(f"{path}.go").touch()
        assert worker.process.wait(20) != 0
        assert worker.stderr.count("queue-server-away-during-job") == 1
        assert "QueueServerAway" in worker.stderr.splitlines()[-1]


def test_several_workers_are_started_together_restarted_and_end_when_all_is_done(
    settings: Settings, connection: redis.Redis, tmp_path: Path
) -> None:
    command = petct("work", "pairing", "--workers", 2, "--drain", "--root", settings.root)
    with running(command, tmp_path / "pool") as pool:
        wait_until(lambda: pool.stderr.count("worker-started") == 2, 60)
        first, *_ = children_of(pool.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pool.stderr.count("worker-started") == 3, 60, "a third")
        assert all("--beside 2" in line for line in children_of(pool.pid).values())
        assert pool.process.wait(60) == 0
        assert pool.stderr.count("worker-drained") == 2
        assert pool.stderr.count("role-ended") == 1
