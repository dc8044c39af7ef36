"""Names become jobs; the intake never waits for it, and the server may be away."""

import itertools
import time

import pytest
from rq import Queue
from rq.serializers import JSONSerializer
from running import wait_until

from daemon import dispatcher
from daemon.dispatcher import Dispatcher
from workers.queues import FILING
from workers.spool.batches import EntryName


def with_filing(settings, **values):
    filing = settings.filing.model_copy(update=values)
    return settings.model_copy(update={"filing": filing})


def name(number):
    return EntryName("a1", f"{number:08d}")


def queued(valkey):
    """The entry identifiers of each queued job."""
    with valkey.connect() as client:
        queue = Queue(FILING, connection=client, serializer=JSONSerializer)
        return [job.kwargs["batches"]["a1"] for job in queue.get_jobs()]


def queued_names(valkey):
    return list(itertools.chain.from_iterable(queued(valkey)))


@pytest.fixture
def dispatch(valkey, settings):
    """Start a dispatcher with some filing settings; it is closed after the test."""
    started = []

    def start(**values):
        started.append(Dispatcher(with_filing(valkey.settings(settings), **values)))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_full_batch_goes_before_its_time(dispatch, valkey):
    one = dispatch(batch_entries=3, batch_seconds=60)
    for number in range(3):
        one.offer(name(number))
    wait_until(lambda: queued(valkey), 5)
    assert queued(valkey) == [[name(number).identifier for number in range(3)]]


def test_a_small_batch_goes_when_its_time_is_over(dispatch, valkey):
    one = dispatch(batch_entries=100, batch_seconds=0.05)
    one.offer(name(1))
    one.offer(name(2))
    wait_until(lambda: len(queued_names(valkey)) == 2, 5)


def test_a_sender_that_goes_on_gets_larger_batches_and_still_none_waits_long(dispatch, valkey):
    one = dispatch(batch_entries=100, batch_seconds=0.4)
    numbers = itertools.count()

    def dispatched():
        one.offer(name(next(numbers)))
        return queued(valkey)

    began = time.monotonic()
    wait_until(dispatched, 10)
    waited = time.monotonic() - began
    assert 0.6 < waited < 8, "0.4 s for one that is alone"


def test_many_names_are_split_into_jobs_in_their_order(dispatch, valkey):
    one = dispatch(batch_entries=100, batch_seconds=0.05)
    for number in range(250):
        one.offer(name(number))
    wait_until(lambda: len(queued_names(valkey)) == 250, 5)
    assert queued_names(valkey) == [name(number).identifier for number in range(250)]
    assert max(map(len, queued(valkey))) == 100


def test_what_is_held_is_queued_at_the_end(dispatch, valkey):
    one = dispatch(batch_entries=100, batch_seconds=60)
    one.offer(name(1))
    one.close()
    assert queued(valkey) == [[name(1).identifier]]


def test_names_wait_for_a_server_that_is_away(dispatch, valkey):
    one = dispatch(batch_entries=10, batch_seconds=0.01)
    valkey.kill()
    began = time.monotonic()
    for number in range(25):
        one.offer(name(number))
    assert time.monotonic() - began < 0.1
    valkey.start()
    wait_until(lambda: len(queued_names(valkey)) == 25, 10)
    assert queued_names(valkey) == [name(number).identifier for number in range(25)]


def test_a_full_queue_is_waited_for(dispatch, valkey):
    one = dispatch(batch_entries=1, batch_seconds=0)
    for number in range(53):
        one.offer(name(number))
    wait_until(lambda: len(queued(valkey)) == 50, 10)
    with valkey.connect() as client:
        queue = Queue(FILING, connection=client, serializer=JSONSerializer)
        queue.empty()
    wait_until(lambda: len(queued(valkey)) == 3, 10)


def test_names_beyond_the_bound_are_left_to_the_sweeper(dispatch, valkey, monkeypatch):
    monkeypatch.setattr(dispatcher, "NAMES_LIMIT", 20)
    one = dispatch(batch_entries=10, batch_seconds=0.01)
    valkey.kill()
    for number in range(1000):
        one.offer(name(number))
    assert len(one._names) <= 20
    valkey.start()
    one.offer(name(2000))
    wait_until(lambda: queued(valkey), 10)
    one.close()
    found = queued_names(valkey)
    assert len(found) <= 30  # the bound, and a batch in the hand
    assert found[0] == name(0).identifier


def test_the_end_does_not_wait_for_a_server_that_is_away(dispatch, valkey):
    one = dispatch(batch_entries=10, batch_seconds=0.01)
    valkey.kill()
    one.offer(name(1))
    began = time.monotonic()
    one.close()
    assert time.monotonic() - began < 2
