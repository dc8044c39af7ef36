"""The system under test: `petct-ingest run` as it is started for real, and its processes."""

import contextlib
import os
import re
import signal
import sqlite3
import time
from pathlib import Path

import redis
from chaos_plan import ROLES
from installation import READY, Installation
from running import Running, alive, descendants_of, petct, wait_until

from workers.queues import socket_path


class System:
    """One installation with its own disk, started and started again."""

    def __init__(self, one: Installation, config: Path, logs: Path, environment: dict[str, str]):
        self.one, self._config, self._logs = one, config, logs
        self._environment = environment
        self._runs: list[Running] = []
        self.unexpected_ends: list[str] = []

    @property
    def process(self) -> Running:
        return self._runs[-1]

    def start(self) -> None:
        place = self._logs / f"run-{len(self._runs) + 1}"
        self._runs.append(
            Running(petct("run", "--config", self._config), place, **self._environment)
        )

    def await_ready(self, seconds: float = 60) -> None:
        def ready() -> bool:
            self.keep_alive()
            return READY in self.process.stdout

        wait_until(ready, seconds, "a system that is ready")

    def keep_alive(self) -> None:
        """Start again what has ended, as systemd does; nothing but a kill of ours may end it."""
        code = self.process.process.poll()
        if code is None:
            return
        if code != -signal.SIGKILL:
            words = self.process.stderr[-500:]
            self.unexpected_ends.append(f"`run` ended with {code}: {words}")
            time.sleep(0.5)
        self.start()

    def roles(self) -> dict[str, int]:
        """Return the process of each role (`ROLES`) that runs under the newest `run`."""
        found = {}
        for pid in direct_children(self.process.pid):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found |= {role: pid for role, words in ROLES.items() if re.search(words, line)}
        return found

    def find(self, role: str) -> int | None:
        return self.roles().get(role)

    def horse(self) -> int | None:
        """Return a child of the pairing worker: it makes a pair this moment."""
        worker = self.find("pairing worker")
        return next(iter(direct_children(worker)), None) if worker else None

    def kill_everything(self) -> None:
        """Kill `run` and all that it started at one moment."""
        family = [self.process.pid, *descendants_of(self.process.pid)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another one's end
            for pid in family:
                signal_to(pid, number)
        self.process.process.wait(10)
        for pid in family:
            wait_until(lambda pid=pid: not alive(pid), 10, f"the end of {pid}")

    def stop(self) -> int:
        """End it with SIGTERM and return the exit code."""
        return self.process.end(seconds=90)

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._runs and self.process.process.poll() is None:
            self.kill_everything()

    def flush(self) -> bool:
        """Empty the queue server; False when it does not answer."""
        client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=2)
        try:
            return bool(client.flushall())
        except redis.RedisError:
            return False
        finally:
            client.close()

    @property
    def socket(self) -> Path:
        return socket_path(self.one.layout)

    def ask(self, question: str) -> list[tuple]:
        """Ask the index; nothing while it cannot answer."""
        try:
            return self.one.ask(question)
        except sqlite3.OperationalError:
            return []

    @property
    def output(self) -> str:
        return "".join(run.stderr for run in self._runs)


def direct_children(pid: int) -> list[int]:
    """Return the children of a main thread; ours come from no other."""
    with contextlib.suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def signal_to(pid: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
