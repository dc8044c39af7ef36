"""One installation of a test: run it for real, send and drop into it, look at it from outside."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import databases
from conftest import missing
from running import Running, petct, running, wait_until

from config.settings import load_settings

READY = "petct-ingest is ready"
AE_TITLE = "PETCT_INGEST"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dcmtk(name: str) -> str:
    """The client of DCMTK; pynetdicom installs slower ones of the same names beside our Python."""
    found = f"/usr/bin/{name}"
    if not os.access(found, os.X_OK):
        missing(f"no DCMTK: {found}")
    return found


class Installation:
    """A root folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.inbox = self.root / "inbox"
        self.port = free_port()
        given = databases.index_of(self.root)
        self.settings = load_settings(root=self.root, overrides=given, environ={})
        self.layout = self.settings.layout
        self.runs: list[Running] = []
        self.sent = 0

    @contextlib.contextmanager
    def run(self, *options: str, **environment: str) -> Iterator[Running]:
        """Run everything; ready when entered, gone when left."""
        command = petct("run", "--root", self.root, "--port", self.port, *options)
        place = self.folder / f"run-{len(self.runs) + 1}"
        with running(command, place, **environment) as process:
            self.runs.append(process)
            process.await_output(READY, 60)
            yield process

    @contextlib.contextmanager
    def sending(self, files: Sequence[Path], *options: str) -> Iterator[Running]:
        """Send files with dcmsend meanwhile; what it says is in its stdout and stderr."""
        command = [dcmtk("dcmsend"), *options, "-aec", AE_TITLE, "127.0.0.1", str(self.port)]
        self.sent += 1
        place = self.folder / f"send-{self.sent}"
        # without TCP_NODELAY DCMTK waits 40 ms for each instance
        with running([*command, *map(str, files)], place, TCP_NODELAY="1") as sender:
            yield sender

    def status(self) -> dict:
        """What `status --json` prints."""
        command = petct("status", "--json", "--root", self.root)
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        return json.loads(done.stdout)

    def ask(self, question: str, *values: object) -> list[tuple]:
        """Ask the index from outside; nothing before it exists."""
        return databases.ask(self.settings, question, *values)

    def arrived(self) -> int:
        """How many entries ever left the spool."""
        return self.ask("select count(*) from arrival")[0][0]

    def tree(self) -> dict[str, str]:
        """SHA-256 of every file of studies and pairs, by path below the archive."""
        return {
            str(path.relative_to(self.layout.archive)): sha256(path)
            for folder in self.layout.archive.iterdir()
            if folder.name != ".petct"
            for path in folder.rglob("*")
            if path.is_file()
        }

    def filed(self) -> Counter[str]:
        """How often each SOPInstanceUID lies in the tree, by file name."""
        return Counter(path.stem for path in self.layout.archive.rglob("*/studies/**/*.dcm"))

    def left_in_spool(self) -> list[str]:
        """Every file that waits in the spool or was left there."""
        return [
            os.path.join(folder, name)
            for top in (self.layout.incoming, self.layout.ready)
            for folder, _, names in os.walk(top)  # not rglob: folders go while we look
            for name in names
        ]

    def assert_filed_once(self, uids: Iterable[str]) -> None:
        """Each of these instances, and no other, is once in tree and index, and the spool empty."""
        expected = Counter(uids)
        assert self.filed() == expected
        assert Counter(uid for (uid,) in self.ask("select instance_uid from instance")) == expected
        arrived = self.ask("select instance_uid from arrival where outcome = 'filed'")
        assert Counter(uid for (uid,) in arrived) == expected
        # entries are unlinked after the commit, a batch goes at the latest with the next sweep
        wait_until(lambda: not self.left_in_spool(), 40, f"an empty spool: {self.left_in_spool()}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copied(source: Path, target: Path) -> Path:
    """Copy a folder that may be read-only into one whose files can be moved and deleted."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o700)
    return target
