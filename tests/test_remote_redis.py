"""A queue server of one's own: with a password, with TLS, and what is said when it refuses."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import missing
from filing_world import World, a_world, small_instances
from installation import free_port
from running import Running, descendants_of, petct, running, wait_until

from config.errors import BadValue
from config.settings import Settings, load_settings
from daemon.dispatcher import Dispatcher
from daemon.looking import look
from workers.queues import (
    QueueUnusable,
    connect,
    enqueue_filing,
    make_socket_folder,
    socket_path,
    why,
)

PASSWORD = "s3cret&wörd"


def openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl") or missing("no openssl") or ""
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for localhost, and a CA that nobody uses."""
    folder = tmp_path_factory.mktemp("certificates")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl(folder, "req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip
    openssl(folder, "req", "-x509", *curve, "-keyout", "server.key", "-out", "server.pem",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE")  # fmt: skip
    return folder


@contextlib.contextmanager
def server(folder: Path, port: int, *options: str) -> Iterator[Running]:
    program = shutil.which("redis-server") or missing("no redis-server") or ""
    config = folder / "redis.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("\n".join(['save ""', "appendonly no", "bind 127.0.0.1", *options]) + "\n")
    with running([program, str(config)], folder / "server") as process:
        process.await_output("Ready to accept connections")
        yield process


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[int]:
    """A server with a password; its port."""
    port = free_port()
    with server(tmp_path / "redis", port, f"port {port}", f'requirepass "{PASSWORD}"'):
        yield port


@pytest.fixture
def encrypted(tmp_path: Path, certificates: Path) -> Iterator[int]:
    """A server that speaks TLS alone, with a password; its port."""
    port = free_port()
    files = (f"tls-{kind}-file {certificates}/server.{end}"
             for kind, end in (("cert", "pem"), ("key", "key")))  # fmt: skip
    options = ("port 0", f"tls-port {port}", "tls-auth-clients no", *files)
    with server(tmp_path / "redis", port, *options, f'requirepass "{PASSWORD}"'):
        yield port


def at(root: Path, **given: Any) -> Settings:
    return load_settings(root=root, overrides={"redis": given}, environ={})


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    path = folder / "redis.password"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return path


def test_the_embedded_servers_socket_lies_in_a_folder_that_is_ours_alone(
    settings: Settings,
) -> None:
    path = make_socket_folder(settings.layout)
    assert path == socket_path(settings.layout)
    facts = path.parent.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o700, os.geteuid())


def test_a_password_is_read_from_its_file_or_from_the_address(tmp_path: Path, locked: int) -> None:
    file = password_file(tmp_path)
    for given in (
        {"url": f"redis://127.0.0.1:{locked}/1", "password_file": file},
        {"url": f"redis://default@127.0.0.1:{locked}", "password_file": file.name},  # from the root
        {"url": f"redis://:s3cret%26w%C3%B6rd@127.0.0.1:{locked}"},
    ):
        with connect(at(tmp_path, **given)) as client:
            assert client.ping()


def test_tls_is_spoken_and_the_certificate_is_checked(
    tmp_path: Path, encrypted: int, certificates: Path
) -> None:
    file = password_file(tmp_path)
    url = f"rediss://localhost:{encrypted}"
    with connect(at(tmp_path, url=url, password_file=file, ca_file=certificates / "ca.pem")) as one:
        assert one.ping()
    refused = {
        "certificate is not trusted": {"url": url, "ca_file": certificates / "other.pem"},
        "not trusted": {"url": url},  # no authority of the system signed it
        "IP address mismatch": {
            "url": f"rediss://127.0.0.1:{encrypted}", "ca_file": certificates / "ca.pem"
        },
        "does not answer": {"url": f"redis://localhost:{encrypted}"},
    }  # fmt: skip
    for words, given in refused.items():
        with connect(at(tmp_path, password_file=file, **given)) as client:
            with pytest.raises(redis.ConnectionError) as caught:
                client.ping()
            assert words in why(caught.value)


def test_a_plain_server_that_is_asked_for_tls_is_given_up_within_seconds(
    tmp_path: Path, locked: int
) -> None:
    with connect(at(tmp_path, url=f"rediss://localhost:{locked}")) as client:
        with pytest.raises(redis.RedisError) as caught:
            client.ping()
        assert "does not answer" in why(caught.value)


@pytest.mark.parametrize("given", ["wrong", None])
def test_a_wrong_or_missing_password_is_said_in_words(
    tmp_path: Path, locked: int, given: str | None
) -> None:
    file = password_file(tmp_path, given) if given else None
    options = {"password_file": file} if file else {}
    with connect(at(tmp_path, url=f"redis://127.0.0.1:{locked}", **options)) as client:
        with pytest.raises(redis.RedisError) as caught:
            client.ping()
        assert why(caught.value) == ("the queue server refuses our password (redis.password_file)")


def test_what_the_files_lack_is_said_with_their_names(tmp_path: Path) -> None:
    url = "rediss://localhost:1"
    empty = tmp_path / "empty"
    empty.touch()
    for given, words in (
        ({"password_file": tmp_path / "none"}, "/none: No such file or directory"),
        ({"password_file": empty}, "is empty"),
        ({"ca_file": tmp_path / "none.pem"}, "/none.pem: No such file or directory"),
    ):
        with pytest.raises(QueueUnusable) as caught:
            connect(at(tmp_path, url=url, **given))
        assert words in why(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": f"redis://:{PASSWORD}/x@localhost:6379"}, "written %XX"),
        ({"url": f"user:{PASSWORD}@localhost"}, "begins with redis://"),
        ({"url": f"redis://:{PASSWORD}@localhost", "password_file": "x"}, "not in both"),
        ({"url": "redis://localhost", "ca_file": "x"}, "rediss://"),
        ({"password_file": "x"}, "give url"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_no_password_is_shown(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    with pytest.raises(BadValue, match=words) as caught:
        at(tmp_path, **given)
    assert "s3cret" not in str(caught.value)


def test_the_settings_show_no_address_that_may_hold_a_password(tmp_path: Path) -> None:
    given = {"redis": {"url": f"redis://:{PASSWORD}@localhost"},
             "index": {"url": f"postgresql://me:{PASSWORD}@localhost/petct"}}  # fmt: skip
    settings = load_settings(root=tmp_path, overrides=given, environ={})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)


# real processes -----------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path, encrypted: int, certificates: Path) -> Iterator[World]:
    """An installation whose queues are on a server with TLS and a password."""
    given = {"url": f"rediss://localhost:{encrypted}/2", "ca_file": certificates / "ca.pem",
             "password_file": password_file(tmp_path)}  # fmt: skip
    with a_world(tmp_path / "root", redis=given, spool={"minimum_free_mb": 1}) as world:
        yield world


def config_of(world: World) -> Path:
    given = world.settings.redis
    path = world.settings.root.parent / "petct.toml"
    path.write_text(
        f'root = "{world.settings.root}"\n[redis]\nurl = "{given.url}"\n'
        f'ca_file = "{given.ca_file}"\npassword_file = "{given.password_file}"\n'
        '[spool]\nminimum_free_mb = 1\n[logging]\nlevel = "DEBUG"\n[receiver]\nport = 0\n'
    )
    return path


def test_everything_works_over_tls_with_a_password_that_nobody_sees(
    world_files: list[bytes], remote: World, tmp_path: Path
) -> None:
    command = petct("run", "--config", config_of(remote), "--roles", "sweep,watch,filing,pairing")
    with running(command, tmp_path / "run") as process:
        process.await_output("petct-ingest is ready", 90)
        for number, content in enumerate(world_files):
            (remote.layout.inbox / f"{number}.dcm").write_bytes(content)
        wait_until(lambda: remote.counts().filed == len(world_files), 60, "all filed")
        seen = list(descendants_of(process.pid).values())
        environments = b"".join(
            Path(f"/proc/{pid}/environ").read_bytes() for pid in descendants_of(process.pid)
        )
        assert len(seen) == 4
        assert not any("s3cret" in line for line in seen)
        assert b"s3cret" not in environments
        assert process.end() == 0
    assert "s3cret" not in process.stdout + process.stderr


@pytest.fixture
def world_files(tmp_path: Path) -> list[bytes]:
    return small_instances(tmp_path / "made", 3)


def test_a_wrong_password_is_waited_out_in_words_and_mended_without_a_restart(
    world_files: list[bytes], remote: World, tmp_path: Path
) -> None:
    file = password_file(tmp_path, "wrong s3cret")
    entries = remote.put({"one": world_files[0]})
    with running(petct("work", "filing", "--config", config_of(remote)), tmp_path / "w") as worker:
        worker.await_output("queue-server-awaited", 60)
        assert "refuses our password (redis.password_file)" in worker.stderr
        dispatcher = Dispatcher(remote.settings)
        dispatcher.offer(entries[0])
        (trouble,) = [one for one in look(remote.settings).troubles if "queue server" in one]
        assert "refuses our password" in trouble
        assert "nothing is lost" in trouble
        password_file(tmp_path)  # mended
        wait_until(lambda: remote.counts().filed == 1, 60, "the entry filed")
        dispatcher.close()
        assert file.exists()
        assert worker.stderr.count("queue-server-awaited") == 1
        assert "s3cret" not in worker.stderr
        assert worker.end() == 0


def test_a_server_whose_memory_is_full_ends_a_worker_with_that_reason(
    tmp_path: Path, locked: int
) -> None:
    given = {"url": f"redis://127.0.0.1:{locked}", "password_file": password_file(tmp_path)}
    with a_world(tmp_path / "root", redis=given) as world:
        config = tmp_path / "petct.toml"
        config.write_text(
            f'root = "{world.settings.root}"\n[redis]\nurl = "{given["url"]}"\n'
            f'password_file = "{given["password_file"]}"\n'
        )
        with connect(world.settings) as client:
            client.set("much", b"x" * (4 << 20))
            client.config_set("maxmemory", 1 << 20)
            with pytest.raises(redis.OutOfMemoryError):
                enqueue_filing(client, world.put({"one": b"x"}))
            with running(petct("work", "filing", "--config", config), tmp_path / "w") as worker:
                assert worker.process.wait(60) != 0
                assert "memory is full" in worker.stderr
            assert client.exists("much"), "what is not ours is left alone"
