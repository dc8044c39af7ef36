"""Jobs that somebody else wrote into the queue: refused, logged, and the worker works on."""

import json
import os
import pickle
import socket
import time
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from filing_world import World, a_world, small_instances
from hypothesis import given
from hypothesis import strategies as st
from running import Running, petct, running, wait_until

from daemon.valkey import answers
from workers.queues import (
    FILE_ENTRIES,
    FILING,
    PAIR_STUDY,
    PAIRING,
    connect,
    enqueue_filing,
    flush_foreign,
    is_ours,
    socket_path,
)

ENTRY = "0" * 32
GOOD = {"version": 1, "batches": {"a1": [ENTRY]}}


class Spring:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def call(
    function: object, arguments: object, positional: object = (), instance: object = None
) -> bytes:
    return zlib.compress(json.dumps([function, instance, positional, arguments]).encode())


@cache
def refused_calls(trap: str) -> dict[str, bytes]:
    """What no worker may run, by name; each would make the folder `trap` if it could."""
    return {
        "another function": call("os.system", {"command": f"mkdir {trap}"}),
        "another function, in place": call("os.mkdir", {}, [trap]),
        "a method of an instance": call("mkdir", GOOD, instance=trap),
        "one of ours, with positional arguments": call(FILE_ENTRIES, GOOD, [trap]),
        "one of ours, with an argument more": call(FILE_ENTRIES, {**GOOD, "root": trap}),
        "one of ours, of another version": call(FILE_ENTRIES, {**GOOD, "version": 2}),
        "another of our functions": call("workers.jobs.configure", {"settings": trap}),
        "a path in a batch": call(FILE_ENTRIES, {"version": 1, "batches": {"../../etc": [ENTRY]}}),
        "a hidden batch": call(FILE_ENTRIES, {"version": 1, "batches": {"..": [ENTRY]}}),
        "a path for an entry": call(FILE_ENTRIES, {"version": 1, "batches": {"a1": ["../../x"]}}),
        "wrong types": call(FILE_ENTRIES, {"version": 1, "batches": ["a1"]}),
        "a number for entries": call(FILE_ENTRIES, {"version": 1, "batches": {"a1": 7}}),
        "a pair that is no number": call(
            PAIR_STUDY, {"version": 1, "pair": "1 or 1=1", "generation": 1}
        ),
        "a true pair": call(PAIR_STUDY, {"version": 1, "pair": True, "generation": 1}),
        "deep": zlib.compress(b"[" * 100_000),
        "a bomb": zlib.compress(b'"' + b"x" * (8 << 20)),
        "a pickle": zlib.compress(pickle.dumps((FILE_ENTRIES, None, (), Spring(trap)))),
        "a bare pickle": pickle.dumps(Spring(trap)),
        "gigantic": os.urandom(4 << 20),
        "no JSON": b"\0\1\2",
        "nothing": b"",
        "text": zlib.compress(b'"file_entries"'),
    }


@pytest.mark.parametrize("name", refused_calls("/nowhere"))
def test_what_is_no_call_of_ours_is_known_from_its_bytes(name: str) -> None:
    assert not is_ours(refused_calls("/nowhere")[name])


def test_our_own_calls_are_known() -> None:
    assert is_ours(call(FILE_ENTRIES, GOOD, []))
    assert is_ours(call(PAIR_STUDY, {"version": 1, "pair": 1, "generation": 2}, []))


@given(st.one_of(st.none(), st.binary(max_size=300), st.binary(max_size=300).map(zlib.compress)))
def test_no_bytes_make_the_check_fail(data: bytes | None) -> None:
    assert not is_ours(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from([FILE_ENTRIES, PAIR_STUDY, "os.system"]), json_values, json_values)
def test_no_arguments_make_the_check_fail(function: str, arguments: object, more: object) -> None:
    is_ours(call(function, arguments, []))
    is_ours(call(function, {"version": 1, "batches": arguments}, []))
    assert not is_ours(call(function, arguments, ["x"], more))


# a real worker ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


@pytest.fixture
def connection(world: World, tmp_path: Path) -> Iterator[redis.Redis]:
    with running(petct("valkey", "--root", world.settings.root), tmp_path / "valkey"):
        wait_until(lambda: answers(socket_path(world.layout)), what="the server's answer")
        with connect(world.settings) as client:
            yield client


def put(connection: redis.Redis, queue: str, job: bytes, fields: dict[str, Any]) -> None:
    connection.hset(b"rq:job:" + job, mapping=fields)
    connection.rpush(f"rq:queue:{queue}", job)


def works(world: World, connection: redis.Redis, content: bytes) -> None:
    """Have the worker file one more entry."""
    before = world.counts().filed
    enqueue_filing(connection, world.put({"one": content}))
    wait_until(lambda: world.counts().filed == before + 1, 30, "the next instance")


def working(world: World, queue: str, folder: Path) -> Any:
    return running(petct("work", queue, "--root", world.settings.root), folder)


def dropped(worker: Running) -> int:
    return worker.stderr.count("foreign-job-dropped")


def test_a_worker_drops_each_forged_job_logs_it_and_works_on(
    world: World, connection: redis.Redis, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    contents = small_instances(tmp_path / "made", 2)
    with working(world, FILING, tmp_path / "worker") as worker:
        worker.await_output("worker-started")
        works(world, connection, contents[0])
        forged = refused_calls(str(trap))
        for number, data in enumerate(forged.values()):
            put(connection, FILING, b"forged-%d" % number, {"data": data, "origin": "filing"})
        # keys that are no jobs, and names that are no text
        connection.set("rq:job:text", "x" * 100)
        connection.rpush("rq:job:list", "x")
        connection.rpush(
            "rq:queue:filing", b"text", b"list", b"\xff\xfe", b"../../etc", b"n" * 5000
        )
        works(world, connection, contents[1])
        wait_until(lambda: dropped(worker) >= len(forged) + 4, 10, "the log of each")
        assert worker.process.poll() is None
        assert not trap.exists()
        wait_until(lambda: not connection.keys("rq:job:*"), 10, "the end of the last job")
        assert connection.llen("rq:queue:filing:intermediate") == 0
        assert str(trap) not in worker.stderr
        assert worker.end() == 0


def test_forged_jobs_that_wait_for_a_worker_do_not_keep_it_from_starting(
    world: World, connection: redis.Redis, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    for number, data in enumerate(refused_calls(str(trap)).values()):
        put(connection, FILING, b"forged-%d" % number, {"data": data})
    connection.rpush("rq:queue:filing:intermediate", b"\xff\xfe")  # RQ decodes these
    connection.zadd("rq:wip:filing", {b"\xff\xfe": time.time() + 600})
    with working(world, FILING, tmp_path / "worker") as worker:
        worker.await_output("worker-started")
        works(world, connection, *small_instances(tmp_path / "made", 1))
        assert not trap.exists()
        assert worker.end() == 0


def test_what_a_job_says_about_callbacks_limits_and_dependencies_is_not_believed(
    world: World, connection: redis.Redis, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    contents = small_instances(tmp_path / "made", 2)
    data = call(FILE_ENTRIES, GOOD, [])
    with (
        working(world, FILING, tmp_path / "worker") as worker,
        socket.create_server(("127.0.0.1", 0)) as hook,
    ):
        hook.setblocking(False)
        worker.await_output("worker-started")
        address = f"http://127.0.0.1:{hook.getsockname()[1]}/"
        webhooks = json.dumps([{"url": address, "job_status": "finished", "timeout": 1}])
        for number, more in enumerate(
            (
                {"success_callback_name": "os.mkdir", "failure_callback_name": "os.mkdir"},
                {"webhooks": webhooks, "repeats_left": 10**9, "repeat_intervals": "[0]"},
                {"timeout": 10**30, "result_ttl": 10**30, "retries_left": 10**9},
                {"dependency_ids": json.dumps(["other"]), "meta": b"\x80\x04K\x01."},
                {"exc_info": zlib.compress(b"x" * (8 << 20)), "result": b"\x80"},
                {"status": "no such state", "created_at": "yesterday"},
                {"started_at": b"\xff", "retries_left": "many"},
                {"origin": "pairing", "worker_name": b"\xff"},
                {"description": str(trap) * 100_000},
            )
        ):
            put(connection, FILING, b"odd-%d" % number, {"data": data, "origin": "filing", **more})
        works(world, connection, contents[0])
        works(world, connection, contents[1])
        assert worker.process.poll() is None
        assert not trap.exists()
        assert str(trap) not in worker.stderr
        with pytest.raises(BlockingIOError):
            hook.accept()
        wait_until(lambda: not connection.keys("rq:results:*"), 5)
        assert worker.end() == 0


def test_a_forged_pairing_job_runs_nothing_in_the_forked_process(
    world: World, connection: redis.Redis, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    with working(world, PAIRING, tmp_path / "worker") as worker:
        worker.await_output("worker-started", 60)
        put(connection, PAIRING, b"forged", {"data": call("os.mkdir", {}, [str(trap)])})
        unknown = call(PAIR_STUDY, {"version": 1, "pair": 10**6, "generation": 1}, [])
        put(connection, PAIRING, b"unknown", {"data": unknown, "origin": "pairing"})
        wait_until(lambda: dropped(worker) == 1, 20)
        wait_until(lambda: not connection.keys("rq:job:*"), 30, "the end of both")
        assert not trap.exists()
        assert worker.end() == 0


def test_ten_thousand_forged_jobs_are_flushed_in_pieces(connection: redis.Redis) -> None:
    for _ in range(10):
        connection.rpush("rq:queue:filing", *[b"forged-%d" % number for number in range(1000)])
    most = []
    answer = connection.lrange

    def lrange(key: str, start: int, end: int) -> Any:
        found = answer(key, start, end)
        most.append(len(found))
        return found

    connection.lrange = lrange  # type: ignore[method-assign,assignment]
    assert flush_foreign(connection) == 10_000
    assert max(most) == 1000
    assert connection.llen("rq:queue:filing") == 0
