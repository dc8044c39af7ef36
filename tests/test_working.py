"""The workers: what they run and what they refuse, and what becomes of a job when one dies."""

import functools
import json
import os
import signal
import socket
from pathlib import Path

import pytest
from rq import Queue, Retry
from rq.serializers import JSONSerializer
from running import alive, children_of, descendants_of, petct, running, wait_until
from working_world import job_worker, lines, put

from config.settings import load_settings
from daemon.job_queue import requeue_orphans
from daemon.valkey import answers
from daemon.working import make_worker
from workers.queues import FILING, PAIRING, connect, idle, socket_path


@pytest.fixture
def settings(tmp_path):
    return load_settings(root=tmp_path / "root", environ={})


@pytest.fixture
def server(settings, tmp_path):
    with running(petct("valkey", "--root", settings.root), tmp_path / "valkey") as process:
        wait_until(lambda: answers(socket_path(settings.layout)), what="the server's answer")
        yield process


@pytest.fixture
def connection(settings, server):
    with connect(settings) as connection:
        yield connection


@pytest.fixture
def start(settings, tmp_path):
    """Return a function that makes a running worker of the test's own job functions."""
    return functools.partial(job_worker, settings, tmp_path)


def test_a_filing_job_runs_in_the_worker_and_a_pairing_job_in_a_fork(connection, start, tmp_path):
    with start(FILING, "f") as filing, start(PAIRING, "p") as pairing:
        put(connection, FILING, "note", tmp_path / "filed")
        put(connection, PAIRING, "note", tmp_path / "paired")
        wait_until(lambda: lines(tmp_path / "filed") and lines(tmp_path / "paired"))
        assert lines(tmp_path / "filed") == [str(filing.pid)]
        assert lines(tmp_path / "paired") != [str(pairing.pid)]
        wait_until(lambda: idle(connection, FILING) and idle(connection, PAIRING))
        assert filing.end() == pairing.end() == 0


@pytest.mark.parametrize("queue", [FILING, PAIRING])
def test_an_idle_worker_waits_longer_for_a_job_than_a_command_may_take(settings, server, queue):
    worker = make_worker(settings, queue)
    used = worker.connection.connection_pool.get_connection()
    assert used.socket_timeout > worker.dequeue_timeout
    worker.connection.connection_pool.release(used)
    worker.connection.close()


def test_sigterm_lets_the_job_in_hand_finish(connection, start, tmp_path):
    for queue in (FILING, PAIRING):
        path = tmp_path / queue
        with start(queue, f"w{queue}") as worker:
            put(connection, queue, "hang", path)
            wait_until(lambda path=path: lines(path))
            worker.process.send_signal(signal.SIGTERM)
            Path(f"{path}.go").touch()
            assert worker.process.wait(20) == 0
        assert idle(connection, queue)


@pytest.mark.parametrize(
    ("function", "version"), [("os.mkdir", 1), ("jobs_for_tests.main", 1), ("note", 0)]
)
def test_what_is_not_on_the_list_or_of_another_version_is_dropped(
    connection, start, tmp_path, function, version
):
    with start(FILING) as worker:
        put(connection, FILING, function, tmp_path / "bad", version=version)
        put(connection, FILING, "note", tmp_path / "good")
        wait_until(lambda: lines(tmp_path / "good"))
        wait_until(lambda: idle(connection, FILING))
        assert not (tmp_path / "bad").exists()
        assert "foreign-job-dropped" in worker.stderr
        assert not connection.keys("rq:job:*")
        assert not connection.lrange("rq:queue:filing:intermediate", 0, -1)


def test_callbacks_and_webhooks_of_a_job_are_not_heard(connection, start, tmp_path):
    with start(FILING) as worker, socket.create_server(("127.0.0.1", 0)) as hook:
        hook.setblocking(False)
        address = f"http://127.0.0.1:{hook.getsockname()[1]}/"
        worker.process.send_signal(signal.SIGSTOP)
        job = put(connection, FILING, "note", tmp_path / "noted")
        # as somebody with access to the server would
        connection.hset(job.key, "success_callback_name", "os.mkdir")
        webhook = {"url": address, "job_status": "finished", "timeout": 1}
        connection.hset(job.key, "webhooks", json.dumps([webhook]))
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: lines(tmp_path / "noted"))
        wait_until(lambda: idle(connection, FILING))
        assert worker.end() == 0
        assert "job-failed" not in worker.stderr
        with pytest.raises(BlockingIOError):
            hook.accept()


def test_a_failing_job_is_tried_again_and_its_text_never_logged(connection, start, tmp_path):
    with start(FILING) as worker:
        put(connection, FILING, "fail", tmp_path / "tries", retry=Retry(max=3))
        wait_until(lambda: len(lines(tmp_path / "tries")) == 4)
        wait_until(lambda: idle(connection, FILING))
        assert worker.end() == 0
        assert "job-failed" in worker.stderr
        assert "Doe" not in worker.stderr + worker.stdout


def test_a_killed_filing_workers_job_goes_to_the_next_worker(connection, start, tmp_path):
    path = tmp_path / "job"
    with start(FILING, "one") as one:
        put(connection, FILING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        one.end(signal.SIGKILL)
    assert idle(connection, FILING)  # so that the sweeper would ask again
    with start(FILING, "two") as two:
        wait_until(lambda: len(lines(path)) == 2, what="the second try")
        assert lines(path)[1] == str(two.pid)
        Path(f"{path}.go").touch()
        wait_until(lambda: not connection.keys("rq:job:*"))
        assert two.end() == 0


def test_a_worker_killed_after_the_server_was_emptied_is_known_to_be_dead(
    connection, start, tmp_path
):
    with start(FILING, "one") as one:
        put(connection, FILING, "note", tmp_path / "first")
        wait_until(lambda: lines(tmp_path / "first"))
        connection.flushall()
        put(connection, FILING, "hang", tmp_path / "second")
        wait_until(lambda: lines(tmp_path / "second"))
        assert not idle(connection, FILING)
        one.end(signal.SIGKILL)
    assert idle(connection, FILING), "the sweeper may ask again"


def test_a_job_whose_workers_all_died_is_dropped_for_the_sweeper(connection, start, tmp_path):
    path = tmp_path / "job"
    with start(FILING, "one") as one:
        put(connection, FILING, "hang", path)
        wait_until(lambda: lines(path))
        one.end(signal.SIGKILL)
    queue = Queue(FILING, connection=connection, serializer=JSONSerializer)
    assert requeue_orphans(queue) == 1
    assert requeue_orphans(queue) == 0
    assert not connection.keys("rq:job:*")
    assert queue.count == 0


def test_a_job_in_the_hands_of_a_live_worker_is_left_there(connection, start, tmp_path):
    path = tmp_path / "job"
    with start(FILING, "one") as one:
        put(connection, FILING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        assert requeue_orphans(Queue(FILING, connection=connection, serializer=JSONSerializer)) == 0
        assert not idle(connection, FILING)
        Path(f"{path}.go").touch()
        assert one.end() == 0
    assert len(lines(path)) == 1


def test_a_pairing_job_dies_with_its_worker(connection, start, tmp_path):
    path = tmp_path / "job"
    with start(PAIRING) as worker:
        put(connection, PAIRING, "hang", path)
        wait_until(lambda: lines(path))
        (horse,) = children_of(worker.pid)
        assert [str(horse)] == lines(path)
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: not alive(horse), 5, "the end of the job's process")


def test_a_killed_job_process_is_tried_again_by_the_same_worker(connection, start, tmp_path):
    path = tmp_path / "job"
    with start(PAIRING) as worker:
        put(connection, PAIRING, "hang", path, retry=Retry(max=3))
        wait_until(lambda: lines(path))
        os.kill(int(lines(path)[0]), signal.SIGKILL)
        wait_until(lambda: len(lines(path)) == 2, what="the second try")
        Path(f"{path}.go").touch()
        wait_until(lambda: idle(connection, PAIRING))
        assert "job-process-died" in worker.stderr
        assert worker.end() == 0


@pytest.mark.parametrize("queue", [FILING, PAIRING])
def test_every_connection_of_a_worker_outlasts_the_wait_for_a_job(settings, server, queue):
    worker = make_worker(settings, queue)
    with worker.connection:
        worker.connection.ping()
        pool = worker.connection.connection_pool
        connection = pool.get_connection()
        assert connection.socket_timeout > worker.dequeue_timeout
        pool.release(connection)


@pytest.mark.parametrize("queue", [FILING, PAIRING])
def test_an_idle_worker_ends_when_the_server_goes_away(server, connection, start, queue):
    with start(queue) as worker:
        wait_until(lambda: connection.keys("rq:worker:*"), what="a registered worker")
        server.end(signal.SIGKILL)
        assert worker.process.wait(20) == 1
        assert "QueueServerAway" in worker.stderr.splitlines()[-1]


def test_a_worker_waits_for_the_server_and_never_starts_one(settings, start, tmp_path):
    with start(FILING, wait=False) as worker:
        worker.await_output("queue-server-awaited")
        path = tmp_path / "job"
        with running(petct("valkey", "--root", settings.root), tmp_path / "valkey"):
            worker.await_output("worker-started")
            with connect(settings) as connection:
                put(connection, FILING, "note", path)
            wait_until(lambda: lines(path))
            assert len(descendants_of(worker.pid)) == 0
            assert worker.end() == 0
