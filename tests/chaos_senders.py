"""Senders and droppers: they deliver everything, and send again what was not acknowledged."""

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from chaos_delivery import Piece
from chaos_plan import Plan
from installation import AE_TITLE, dcmtk

SENDER_SECONDS = 120
"""An association that takes longer hangs."""

_SCU = Path(__file__).with_name("chaos_scu.py")
_MESSAGE = re.compile(
    r"Message Type +: C-STORE (RQ|RSP)\n(?:D: .*\n)*?"
    r"D: Affected SOP Instance UID +: (\S+)\n(?:D: DIMSE Status +: 0x([0-9a-f]{4})|D: .*\n)*"
)


class Draws(Protocol):
    """A plan, as far as senders ask it."""

    @property
    def senders(self) -> int: ...

    def draw(self, purpose: str) -> Random: ...


class Ledger:
    """What became of everything that was delivered; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acknowledged: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.refused = 0
        self.associations: Counter[str] = Counter()
        self.troubles: list[str] = []

    def sent(self, kind: str, success: list[str], unanswered: list[str], refused: int) -> None:
        with self._lock:
            self.associations[kind] += 1
            self.acknowledged.update(success)
            self.unanswered.update(unanswered)
            self.refused += refused

    def dropping(self, uids: list[str]) -> None:
        with self._lock:
            self.dropped.update(uids)

    def trouble(self, words: str) -> None:
        with self._lock:
            self.troubles.append(words)

    @property
    def taken(self) -> int:
        with self._lock:
            return self.acknowledged.total() + self.dropped.total()


@dataclass(frozen=True, slots=True)
class Target:
    """Where it is sent to, and how."""

    port: int
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """One after the other."""
    kinds: tuple[str, ...] = ("dcmsend", "dcmsend", "dcmsend", "storescu", "storescu", "storescu",
                              "pynetdicom", "pynetdicom")  # fmt: skip
    enter: tuple[str, ...] = ()
    """What stands before the command of a sender of DCMTK."""
    options: tuple[str, ...] = ()
    """What stands behind its name."""


class Senders:
    """Threads that each keep one association busy until everything is acknowledged."""

    def __init__(self, plan: Draws, target: Target, ledger: Ledger, folder: Path) -> None:
        self._plan, self._target, self._ledger, self._folder = plan, target, ledger, folder
        self._work: queue.SimpleQueue[list[Piece]] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"sender-{number}")
            for number in range(plan.senders)
        ]

    def start(self, parts: list[list[Piece]], later: int = 0) -> None:
        """Send parts; so many `later` ones are added with `more`."""
        self._open = len(parts) + later
        self.more(parts)
        for thread in self._threads:
            thread.start()

    def more(self, parts: list[list[Piece]]) -> None:
        for part in parts:
            self._work.put(part)

    @property
    def done(self) -> bool:
        with self._lock:
            return self._open == 0

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, number: int) -> None:
        rng = self._plan.draw(f"sender {number}")
        turn = 0
        while not self._stop.is_set():
            try:
                part = self._work.get(timeout=0.2)
            except queue.Empty:
                if self.done:
                    return
                continue
            turn += 1
            place = self._folder / f"{number}-{turn}"
            kind, addresses = rng.choice(self._target.kinds), self._target.addresses
            address = addresses[(number + turn) % len(addresses)]
            left = self._send(kind, address, part, place)
            if left:
                self._work.put(left)  # as a PACS does
                self._stop.wait(0.1 if len(left) < len(part) else 0.4)
            else:
                with self._lock:
                    self._open -= 1

    def _send(self, kind: str, address: str, part: list[Piece], place: Path) -> list[Piece]:
        """Send on one association; return what was not acknowledged."""
        place.mkdir(parents=True)
        send = self._pynetdicom if kind == "pynetdicom" else self._dcmtk
        asked, statuses = send(kind, address, part, place)
        success = [uid for uid, status in statuses if status == "0000"]
        answered = {uid for uid, _ in statuses}
        unanswered = [uid for uid in asked if uid not in answered]
        self._ledger.sent(kind, success, unanswered, len(statuses) - len(success))
        for _, status in statuses:
            if status not in ("0000", "a700"):
                self._ledger.trouble(f"{kind} was answered {status}")
        shutil.rmtree(place)
        done = set(success)
        return [piece for piece in part if piece.uid not in done]

    def _dcmtk(
        self, kind: str, address: str, part: list[Piece], place: Path
    ) -> tuple[list[str], list[tuple[str, str]]]:
        target = self._target
        command = [*target.enter, dcmtk(kind), "-d", *target.options]
        command += ["-aec", AE_TITLE, address, str(target.port)]
        text = self._call([*command, *(str(piece.path) for piece in part)], place)
        asked, statuses = [], []
        for which, uid, status in _MESSAGE.findall(text):
            if which == "RQ":
                asked.append(uid)
            else:
                statuses.append((uid, status))
        return asked, statuses

    def _pynetdicom(
        self, kind: str, address: str, part: list[Piece], place: Path
    ) -> tuple[list[str], list[tuple[str, str]]]:
        (place / "list").write_text("\n".join(str(piece.path) for piece in part))
        command = [sys.executable, str(_SCU), str(self._target.port), str(place / "list")]
        self._call([*command, str(place / "answers")], place)
        lines: list[list[str]] = []
        with suppress(FileNotFoundError):
            lines = [line.split() for line in (place / "answers").read_text().splitlines()]
        return [uid for uid, _ in lines], [(uid, status) for uid, status in lines if status != "-"]

    def _call(self, command: list[str], place: Path) -> str:
        output = place / "output"
        with output.open("wb") as file:
            try:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    timeout=SENDER_SECONDS,
                    check=False,
                    env=os.environ | {"TCP_NODELAY": "1"},
                )
            except subprocess.TimeoutExpired:
                self._ledger.trouble(f"{Path(command[0]).name} hung for {SENDER_SECONDS} s")
        return output.read_text(errors="replace")


class Dropper:
    """A thread that drops folders into the watched ones, each in another way."""

    def __init__(self, plan: Plan, folders: list[Path], ledger: Ledger) -> None:
        self._rng = plan.draw("dropper")
        self._folders, self._ledger = folders, ledger
        self._work: queue.SimpleQueue[list[Piece]] = queue.SimpleQueue()
        self._room = threading.Lock()
        self._stop = threading.Event()
        self._number = 0
        self._open = 0
        self._pace = 0.0
        self._thread = threading.Thread(target=self._run, name="dropper")
        self._ways: list[Callable[[list[Piece], Path], None]] = [_cp, _mv, _like_rsync, _slowly]

    def start(self, parts: list[list[Piece]], pace: float) -> None:
        """Drop one folder after the other, with up to `pace` seconds between two."""
        self._pace = pace
        for part in parts:
            self.drop(part)
        self._thread.start()

    def drop(self, part: list[Piece]) -> None:
        self._open += 1
        self._work.put(part)

    @property
    def done(self) -> bool:
        return self._open == 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Keep the dropper from dropping, while its disk is full."""
        with self._room:
            yield

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                part = self._work.get(timeout=0.2)
            except queue.Empty:
                continue
            self._number += 1
            target = self._rng.choice(self._folders) / f"drop-{self._number}"
            with self._room:
                self._ledger.dropping([piece.uid for piece in part])
                self._rng.choice(self._ways)(part, target)
            self._open -= 1
            self._stop.wait(self._rng.uniform(0, self._pace))


def _cp(part: list[Piece], target: Path) -> None:
    staged = _staged(part, target)
    subprocess.run(["cp", "-r", staged, target], check=True, timeout=60)
    shutil.rmtree(staged)


def _mv(part: list[Piece], target: Path) -> None:
    """Move a whole folder in: on one file system none of its files is opened or closed there."""
    subprocess.run(["mv", _staged(part, target), target], check=True, timeout=60)


def _staged(part: list[Piece], target: Path) -> Path:
    """Lay copies out in a folder beside the originals, under names that cannot meet."""
    staged = part[0].path.parent.with_name(f"staged-{target.name}")
    staged.mkdir()
    for piece in part:
        shutil.copyfile(piece.path, staged / f"{piece.uid}.dcm")
    return staged


def _like_rsync(part: list[Piece], target: Path) -> None:
    """Write each under a hidden name and rename it when it is whole."""
    target.mkdir()
    for piece in part:
        hidden = target / f".{piece.uid}.dcm.aB3xYz"
        shutil.copyfile(piece.path, hidden)
        hidden.rename(target / f"{piece.uid}.dcm")


def _slowly(part: list[Piece], target: Path) -> None:
    """Write the halves of all files one after the other, with a pause between."""
    target.mkdir()
    files = [(target / f"{piece.uid}.dcm").open("wb", buffering=0) for piece in part]
    contents = [piece.path.read_bytes() for piece in part]
    for half in (0, 1):
        for file, content in zip(files, contents, strict=True):
            middle = len(content) // 2
            file.write(content[middle:] if half else content[:middle])
        time.sleep(0.3 * (1 - half))
    for file in files:
        file.close()
