"""Machines come up in any order: what waits for a server, what does not, and what is no use."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import QueueServer, missing
from databases import Server, server_programs, serving
from filing_world import a_world, small_instances
from installation import READY, Installation, dcmtk
from running import petct, running, wait_until

PASSWORD = "s3cret"


@dataclass
class Late:
    """An installation whose two servers are known to it, and away."""

    one: Installation
    index: Server
    queues: QueueServer
    environment: dict[str, str]
    index_is_there: bool = False

    def bring_index(self) -> None:
        self.index.start()
        self.index_is_there = True

    def words(self, *command: str) -> list[str]:
        return petct(*command, "--root", self.one.root)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = server_programs()
    if programs is None:
        missing("no PostgreSQL server")
    with serving(programs) as one:
        one.make_template()
        one.tell(f"CREATE ROLE petct LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        one.refuse_without_password("petct")
        yield one


@pytest.fixture
def late(tmp_path: Path, server: Server, valkey: QueueServer) -> Iterator[Late]:
    url = server.create(f"t{tmp_path.stat().st_ino}").replace("postgres@", "petct@")
    one = Installation(tmp_path)
    one.root.mkdir()
    (one.root / "index.password").write_text(PASSWORD)
    given = {"index": {"url": url, "password_file": "index.password"}}
    with a_world(one.root, **given):
        pass  # it has worked before: archive and spool are known
    valkey.kill()
    server.stop()
    environment = {
        "PETCT_INGEST_INDEX__URL": url,
        "PETCT_INGEST_INDEX__PASSWORD_FILE": "index.password",
        "PETCT_INGEST_REDIS__URL": valkey.url,
        "PETCT_INGEST_SPOOL__MINIMUM_FREE_MB": "1",
    }
    late = Late(one, server, valkey, environment)
    yield late
    if not late.index_is_there:
        late.bring_index()


def test_a_run_receives_at_once_and_files_when_its_servers_are_there(
    tmp_path: Path, late: Late
) -> None:
    file = tmp_path / "one.dcm"
    file.write_bytes(small_instances(tmp_path / "made", 1)[0])
    port = str(late.one.port)
    send = [dcmtk("storescu"), "-aec", "ANY", "127.0.0.1", port, str(file)]
    with running(late.words("run", "--port", port), tmp_path / "run", **late.environment) as run:
        run.await_output("! waits: the index cannot be opened")
        wait_until((late.one.layout.run / "receiver.port").exists, 30, "a receiver")
        assert subprocess.run(send, env={"TCP_NODELAY": "1"}, timeout=30).returncode == 0
        assert len(list(late.one.layout.ready.rglob("*"))) > 0
        assert READY not in run.stdout
        wait_until(lambda: run.stderr.count("index-awaited") == 3, 30, "sweeper and workers")
        late.queues.start()
        late.bring_index()
        run.await_output(READY, 60)
        wait_until(lambda: late.one.filed().total() == 1, 30, "the instance in the tree")
        told = re.findall(r"index-awaited (reason=.*)", run.stderr)
        assert told.count(told[0]) == 3, "once by each"
        assert len(told) <= 6, "a server that is just coming up says so: another reason"
        assert "role-ended" not in run.stderr
        assert not [line for line in run.stdout.splitlines() if line.strip() == "!"]
        assert run.end() == 0


@pytest.mark.parametrize("command", [("work", "pairing"), ("sweep",)])
def test_a_signal_ends_the_wait_of_a_role(tmp_path: Path, late: Late, command: list[str]) -> None:
    with running(late.words(*command), tmp_path / "role", **late.environment) as role:
        role.await_output("index-awaited")
        assert role.end(seconds=5) in (0, -signal.SIGTERM)


def test_a_pairing_worker_waits_for_both_servers_and_not_for_a_password(
    tmp_path: Path, late: Late
) -> None:
    command = late.words("work", "pairing")
    with running(command, tmp_path / "work", **late.environment) as worker:
        worker.await_output("index-awaited")
        late.bring_index()
        worker.await_output("queue-server-awaited")
        late.queues.start()
        worker.await_output("worker-started")
    (late.one.root / "index.password").write_text("wrong")
    with running(command, tmp_path / "wrong", **late.environment) as worker:
        assert worker.process.wait(20) == 2
        assert "password authentication failed" in worker.stderr


def test_a_command_that_looks_says_at_once_what_is_away(tmp_path: Path, late: Late) -> None:
    began = time.monotonic()
    with running(late.words("studies"), tmp_path / "studies", **late.environment) as looking:
        assert looking.process.wait(20) == 2
        assert "its server away" in looking.stderr
    assert time.monotonic() - began < 10
