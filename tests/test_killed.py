"""Killed in the middle: whatever was acknowledged or dropped is filed once, and nothing is left.

2,000 instances are sent on one association and 2,000 dropped as a folder, 500 of them the same.
"""

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from installation import Installation
from running import Running, alive, children_of, descendants_of, wait_until

from workers.phantom.study import write_many

SENT, DROPPED, SAME = 2000, 2000, 500
FILES_A_FOLDER = 100
ROLES = "valkey,sweep,receive,watch,filing"

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Delivery:
    sent: dict[str, Path]
    """Files to send, by SOPInstanceUID."""
    drop: Path
    """The folder to drop."""
    dropped: set[str]

    @property
    def all(self) -> set[str]:
        return self.dropped | self.sent.keys()


@pytest.fixture(scope="module")
def delivery(tmp_path_factory):
    top = tmp_path_factory.mktemp("delivery")
    sent = write_many(top / "sent", SENT, folders=SENT // FILES_A_FOLDER, patient_number=1)
    others = write_many(
        top / "drop" / "others",
        DROPPED - SAME,
        folders=(DROPPED - SAME) // FILES_A_FOLDER,
        patient_number=2,
    )
    same = dict(list(sent.items())[-SAME:])
    (top / "drop" / "same").mkdir()
    for uid, path in same.items():
        shutil.copyfile(path, top / "drop" / "same" / uid)
    return Delivery(sent, top / "drop", others.keys() | same.keys())


@pytest.fixture
def one(tmp_path):
    return Installation(tmp_path)


def the(process: Running, words: str) -> int | None:
    """The id of one role's process among the children of `run`."""
    found = [pid for pid, line in children_of(process.pid).items() if re.search(words, line)]
    return found[0] if found else None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), 10, f"the end of {pid}")


def kill_all(process: Running) -> None:
    """Kill `run` and everything that it started at one moment."""
    family = [process.pid, *descendants_of(process.pid)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another one's end
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    process.process.wait(10)
    for pid in family:
        wait_until(lambda pid=pid: not alive(pid), 10, f"the end of {pid}")


def acknowledged(sender: Running) -> int:
    """How many instances the sender was told Success for; it sends in the order it was given."""
    return (sender.stdout + sender.stderr).count("Received C-STORE Response (Success)")


def nothing_waits(one: Installation) -> bool:
    return not one.left_in_spool() and not any(files for _, _, files in os.walk(one.inbox))


def await_all(one: Installation) -> None:
    end = time.monotonic() + 200
    while not nothing_waits(one):
        assert time.monotonic() < end, (one.left_in_spool()[:5], one.arrived())
        time.sleep(0.2)


def assert_counts(one: Installation, uids: set[str], duplicates: int) -> None:
    one.assert_filed_once(uids)
    assert one.status()["instances"] == {
        "filed": len(uids),
        "duplicates": duplicates,
        "quarantined": 0,
        "skipped": 0,
        "waiting": 0,
    }


@pytest.mark.parametrize(
    ("role", "moments"),
    [("daemon work filing", (600, 1500, 2400, 3300)), ("valkey-server|daemon valkey", (800, 2500))],
    ids=["filing-worker", "queue-server"],
)
def test_a_role_that_is_killed_again_and_again_costs_nothing(one, delivery, role, moments, capsys):
    with one.run("--roles", ROLES) as process:
        began = time.monotonic()
        with one.sending(list(delivery.sent.values()), "-v") as sender:
            shutil.copytree(delivery.drop, one.inbox / "drop")
            for moment in moments:
                wait_until(lambda moment=moment: one.arrived() >= moment, 120, f"entry {moment}")
                kill(wait_until(lambda: the(process, role), 60, f"a process of {role}"))
            assert sender.process.wait(120) == 0, sender.stderr[-2000:]
            assert acknowledged(sender) == SENT
        await_all(one)
        took = time.monotonic() - began
        assert process.stderr.count('reason="signal SIGKILL"') == len(moments)
        assert_counts(one, delivery.all, SAME)
        assert process.end() == 0
    with capsys.disabled():
        print(
            f"\n{role} killed {len(moments)} times: {(SENT + DROPPED) / took:.0f} files/s", end=""
        )


@pytest.mark.both_databases
def test_everything_killed_in_the_middle_loses_nothing_that_was_acknowledged(one, delivery, capsys):
    files = list(delivery.sent.values())
    with one.run("--roles", ROLES) as process, one.sending(files, "-v") as sender:
        shutil.copytree(delivery.drop, one.inbox / "drop")
        wait_until(lambda: one.arrived() >= 300, 120, "the middle")
        kill_all(process)
        assert sender.process.wait(60) != 0
        first = acknowledged(sender)
        assert 0 < first < SENT, "killed in the middle of an association"
    promised = delivery.dropped | set(list(delivery.sent)[:first])

    with one.run("--roles", ROLES) as process:
        middle = one.arrived() + 500
        wait_until(lambda: one.arrived() >= middle, 120, "the middle of the second run")
        kill_all(process)

    an_hour_passes(one)
    with one.run("--roles", ROLES) as process:
        await_all(one)
        filed = {uid for (uid,) in one.ask("select instance_uid from instance")}
        assert promised <= filed
        # the one instance that was durable, but whose Success did not arrive
        assert filed - promised <= set(list(delivery.sent)[first : first + 1])
        assert_counts(one, filed, one.arrived() - len(filed))
        assert DROPPED + first <= one.arrived() <= DROPPED + first + 1

        with one.sending(files[first:], "-v") as sender:
            assert sender.process.wait(120) == 0, sender.stderr[-2000:]
            assert acknowledged(sender) == SENT - first
        await_all(one)
        assert_counts(one, delivery.all, one.arrived() - len(delivery.all))
        assert SENT + DROPPED <= one.arrived() <= SENT + DROPPED + 1
        assert process.end() == 0
    with capsys.disabled():
        print(f"\neverything killed twice, first after {first} of {SENT} acknowledged", end="")


def an_hour_passes(one: Installation) -> None:
    """Make old what was half-written when it was killed: the sweeper removes only what is old."""
    then = time.time() - 2 * 3600
    for path in one.layout.incoming.iterdir():
        os.utime(path, (then, then))
