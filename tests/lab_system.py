"""The system of a lab: two hosts that receive, one with the servers, some that pair."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import redis
from chaos_system import direct_children, signal_to
from conftest import missing, queue_binary
from databases import Server, server_programs
from installation import READY
from lab_net import Network, call
from running import Running, alive, descendants_of, petct, wait_until

RECEIVING, SERVERS, PAIRING = "ab", "c", "de"
DICOM_PORT = 11112

_CLOCKS = {"d": "+10m", "e": "-10m"}
"""How wrong the wall clocks of hosts are that receive nothing, where libfaketime is installed."""

_SETTINGS = """\
root = "{folder}/root"
[paths]
archive = "{archive}"
[receiver]
host = "{address}"
port = {port}
[spool]
name = "{spool}"
minimum_free_mb = 1
minimum_free_inodes = 10
[redis]
url = "redis://{servers}:6379/0"
password_file = "{folder}/redis.password"
[index]
url = "postgresql://petct@{servers}:5432/petct"
password_file = "{folder}/index.password"
[completeness]
quiet_seconds = {quiet_seconds}
[filing]
workers = {filing}
[pairing]
workers = {pairing}
[web]
enabled = false
[logging]
format = "json"
"""


class Database(Server):
    """PostgreSQL on a host of its own, with a password for those who come by the network."""

    def __init__(self, folder: Path, network: Network, password: str) -> None:
        programs = server_programs()
        if programs is None:
            missing("no PostgreSQL server")
        self._enter = network.enter(SERVERS)
        super().__init__(folder, programs, listen_addresses=network.addresses[SERVERS])
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.77.0.0/24 scram-sha-256\n")
        self.start()
        self.tell(f"CREATE ROLE petct LOGIN PASSWORD '{password}'",
                  "CREATE DATABASE petct OWNER petct")  # fmt: skip

    def _call(self, program: str, *arguments: object) -> None:
        user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        command = [*self._enter, *user, str(self._programs / program), *map(str, arguments)]
        with (self.folder / "called").open("wb") as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  cwd=self.folder, timeout=60)  # fmt: skip
        assert done.returncode == 0, (program, (self.folder / "called").read_text(), self.log())

    def restart(self) -> None:
        """As a crash does it."""
        self.stop()
        self.start()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(f"host={self.folder} dbname=petct user=postgres", autocommit=True)


class Queues:
    """Valkey or Redis on the same host; it keeps nothing."""

    def __init__(self, folder: Path, network: Network, password: str) -> None:
        self._command = [
            *network.enter(SERVERS), queue_binary(), "--bind", network.addresses[SERVERS],
            "--port", "6379", "--requirepass", password, "--save", "", "--dir", str(folder),
            "--unixsocket", str(folder / "q.sock"), "--loglevel", "warning",
        ]  # fmt: skip
        self._client = redis.Redis(unix_socket_path=str(folder / "q.sock"), password=password)
        self._folder, self._starts = folder, 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        self.process = Running(self._command, self._folder / f"q-{self._starts}")
        wait_until(self._answers, 10, "a queue server")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self._client.ping())
        return False

    def restart(self) -> None:
        self.process.end(signal.SIGKILL)
        self.start()

    def end(self) -> None:
        self._client.close()
        self.process.end(signal.SIGKILL)


class LabHost:
    """One host with what runs there."""

    def __init__(self, name: str, network: Network, folder: Path, words: dict[str, object]) -> None:
        self.name, self._network, self._folder = name, network, folder
        self.root = folder / "root"
        self.config = folder / "petct.toml"
        self.config.write_text(_SETTINGS.format(folder=folder, **words))
        self._roles = ("--roles", "pairing") if name in PAIRING else ()
        self._runs: list[Running] = []
        self.unexpected_ends: list[str] = []

    @property
    def process(self) -> Running:
        return self._runs[-1]

    def start(self) -> None:
        number = len(self._runs) + 1
        command = [*self._network.boot(self.name, self._folder, number), *_wrong_clock(self.name),
                   *petct("run", "--config", self.config, *self._roles)]  # fmt: skip
        self._runs.append(Running(command, self._folder / f"run-{number}"))

    def await_ready(self) -> None:
        def ready() -> bool:
            self.keep_alive()
            return READY in self.process.stdout

        wait_until(ready, 90, f"host {self.name}")

    def keep_alive(self) -> None:
        """Start again what has ended by itself, as systemd does."""
        if not self._runs or self.process.process.poll() is None:
            return
        words = self.process.stderr[-500:]
        self.unexpected_ends.append(
            f"host {self.name} ended with {self.process.process.returncode}: {words}"
        )
        time.sleep(2)  # RestartSec
        self.start()

    def find(self, words: str) -> int | None:
        """Return a role's process by the words of its command line."""
        for pid in direct_children(self.process.pid):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if f"-m daemon {words}" in line:
                    return pid
        return None

    def horse(self) -> int | None:
        """Return the process that makes a pair this moment."""
        worker = self.find("work pairing")
        return next(iter(direct_children(worker)), None) if worker else None

    def kill(self) -> None:
        """Let the host lose its power: all of it ends at one moment."""
        family = [self.process.pid, *descendants_of(self.process.pid)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in family:
                signal_to(pid, number)
        self.process.process.wait(10)
        for pid in family:
            wait_until(lambda pid=pid: not alive(pid), 10, f"the end of {pid}")

    def stop(self) -> None:
        """Stop it in peace."""
        code = self.process.end(seconds=90)
        if code != 0:
            self.unexpected_ends.append(f"host {self.name} ended with {code}")

    def end(self) -> None:
        if self._runs and self.process.process.poll() is None:
            self.kill()

    def answer(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours on this host."""
        command = [*self._network.enter(self.name), *petct(*words, "--config", self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    @property
    def output(self) -> str:
        return "".join(run.stderr for run in self._runs)


def _wrong_clock(name: str) -> list[str]:
    """What stands before a command whose wall clock is to be wrong; times of files are right."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if found is None or name not in _CLOCKS:
        return []
    return ["env", f"LD_PRELOAD={found}", f"FAKETIME={_CLOCKS[name]}", "NO_FAKE_STAT=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1"]  # fmt: skip


class Lab:
    """All hosts, their servers and the archive that they share."""

    def __init__(self, folder: Path, quiet_seconds: float, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.network = Network(RECEIVING + SERVERS + PAIRING)
        stack.callback(self.network.end)
        self.network.start()
        # where the server's user may go, and with a name that is short enough for a socket's
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab", dir="/dev/shm")))
        place.chmod(0o755)
        passwords = {name: secrets.token_hex(12) for name in ("redis", "index")}
        (place / "pg").mkdir()
        self.database = Database(place / "pg", self.network, passwords["index"])
        stack.callback(self.database.stop)
        (place / "q").mkdir()
        self.queues = Queues(place / "q", self.network, passwords["redis"])
        stack.callback(self.queues.end)
        self.archive = folder / "archive"
        self.archive.mkdir(0o750)
        self.is_cached = shutil.which("bindfs") is not None and os.access("/dev/fuse", os.W_OK)
        self.hosts: dict[str, LabHost] = {}
        for name in RECEIVING + PAIRING:
            own = folder / f"host-{name}"
            own.mkdir()
            for what, password in passwords.items():
                (own / f"{what}.password").write_text(password + "\n")
                (own / f"{what}.password").chmod(0o600)
            words = {
                "archive": stack.enter_context(self._mounted(own / "archive")),
                "address": self.network.addresses[name],
                "servers": self.network.addresses[SERVERS],
                "port": DICOM_PORT,
                "spool": name if name in RECEIVING else "",
                "quiet_seconds": quiet_seconds,
                "filing": int(name in RECEIVING),
                "pairing": int(name in PAIRING),
            }
            self.hosts[name] = LabHost(name, self.network, own, words)
            stack.callback(self.hosts[name].end)

    @contextlib.contextmanager
    def _mounted(self, point: Path) -> Iterator[Path]:
        """Mount the archive for one host as NFS would be: names and attributes are remembered for
        seconds, absent names are not (lookupcache=positive); locks do not reach other hosts, and
        two names cannot be exchanged. Without bindfs: the folder itself.
        """
        if not self.is_cached:
            yield self.archive
            return
        point.mkdir()
        remembering = "attr_timeout=3,entry_timeout=3,negative_timeout=0"
        call("bindfs", "-o", remembering, self.archive, point)
        try:
            yield point
        finally:
            call("umount", "--lazy", point)

    def start(self) -> None:
        for name in RECEIVING:  # the first makes the index
            self.hosts[name].start()
        for name in RECEIVING:
            self.hosts[name].await_ready()

    def wait_until(self, condition: Callable[[], object], seconds: float, what: str = "") -> None:
        """Await a condition; a host that ends meanwhile is started again."""

        def holds() -> object:
            for host in self.hosts.values():
                host.keep_alive()
            return condition()

        wait_until(holds, seconds, what)

    def is_building(self) -> bool:
        """Tell whether a pair is being made this moment."""
        return any((self.archive / ".petct" / "tmp").glob("pair-*"))

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Ask the index from beside the server; nothing while it is away."""
        try:
            with self.database.connect() as connection:
                return connection.execute(question).fetchall()  # type: ignore[arg-type]
        except psycopg.OperationalError:
            return []
