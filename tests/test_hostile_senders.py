"""Whoever sends what they like to the receiver harms nobody else."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing.run import mutated
from fuzzing.wire import (
    Wire,
    command,
    conversations,
    data_set,
    drip,
    pdu,
    request,
    store,
    value,
    wired,
)
from running import wait_until

MUTATED = 250


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with wired(tmp_path / "root") as one:
        yield one
        one.check()
        wait_until(one.rests, 15, "nothing is left of any association")


def test_an_honest_sender_is_served(wire: Wire) -> None:
    wire.check()


@pytest.mark.parametrize("seed", range(3))
def test_changed_conversations_end_and_leave_nothing(wire: Wire, seed: int) -> None:
    chance = random.Random(seed)
    pool = list(conversations().values())
    tracemalloc.start()
    for _ in range(20):
        wire.send(mutated(chance.choice(pool), pool, chance))
    before = tracemalloc.get_traced_memory()[0]
    for number in range(MUTATED):
        # behind an honest request, too: else most would be refused at the door
        data = mutated(chance.choice(pool), pool, chance)
        if number % 2:
            data = request() + mutated(store(), pool, chance)
        wire.send(data)
    wait_until(wire.rests, 15, "all is over")
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 8 << 20
    assert peak - before < 60 << 20


@pytest.mark.parametrize("name", conversations())
def test_a_conversation_cut_anywhere_is_over_at_once(wire: Wire, name: str) -> None:
    data = conversations()[name]
    for place in range(0, len(data), max(1, len(data) // 12)):
        wire.send(data[:place])


OVERSIZED = {
    "a PDU of 4 GB": request() + struct.pack(">BxL", 4, 0xFFFFFFFF) + bytes(1 << 20),
    "a request of 4 GB": struct.pack(">BxL", 1, 0xFFFFFFFF) + bytes(1 << 20),
    "an abort of 4 GB": request() + struct.pack(">BxL", 7, 0xFFFFFFFF) + bytes(1 << 20),
    "a PDV of 4 GB": request() + pdu(4, struct.pack(">LBB", 0xFFFFFFFF, 1, 3) + bytes(1000)),
    "a PDV of no length": request() + pdu(4, struct.pack(">LBB", 0, 1, 3) + bytes(1000)),
    "a command set without end": request() + value(bytes(16000), 1) * 200,
    "a data set without end": request() + value(command(), 3) + value(bytes(16000), 0) * 300,
    "a data set over the limit": request() + store(data=data_set(12000)) * 3,
    "a million empty PDVs": request()
    + pdu(4, struct.pack(">LBB", 2, 1, 0) * 20_000) * 10,
    "a UID of 60 KB": request() + value(command(uid=b"1" * 15000), 1) * 4,
    "an element of 4 GB in a command": request()
    + value(struct.pack("<HHL", 0, 0x0100, 0xFFFFFFFF) + bytes(100), 3),
    "128 contexts": request(contexts=127) + store(),
    "an application context of 60 KB": request(application=b"1" * 60_000),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERSIZED)
def test_the_oversized_is_refused_in_little_memory(wire: Wire, name: str) -> None:
    tracemalloc.start()
    try:
        wire.send(OVERSIZED[name], hang_up=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("at", [0, 3, 40, len(request()) + 3, len(request()) + 60])
def test_a_sender_that_drips_is_cut_off(wire: Wire, at: int) -> None:
    """Some bytes at once, the rest one by one: however far it came, patience has an end."""
    whole = request() + store() * 50
    assert drip(wire, whole, at) < 8


def test_the_good_finish_among_the_bad(wire: Wire) -> None:
    whole = request() + store() * 50
    bad = [
        threading.Thread(target=drip, args=(wire, whole, len(request())))
        for _ in range(20)
    ]  # fmt: skip
    for one in bad:
        one.start()
    for _ in range(20):
        wire.check()
    for one in bad:
        one.join()
