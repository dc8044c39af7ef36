"""The private queue server: who may reach it, what it keeps, which program it is."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import redis
from running import petct, running, wait_until

from config.settings import load_settings
from daemon.errors import NoServer
from daemon.valkey import PROGRAMS, answers, server_config, server_program
from workers.queues import connect, make_socket_folder, socket_path


@pytest.fixture
def settings(tmp_path):
    return load_settings(root=tmp_path / "root", environ={})


@pytest.fixture
def server(settings, tmp_path):
    with running(petct("valkey", "--root", settings.root), tmp_path / "valkey") as process:
        wait_until(lambda: answers(socket_path(settings.layout)), what="the server's answer")
        yield process


def test_the_server_listens_on_a_private_socket_and_on_no_port(settings, server):
    path = socket_path(settings.layout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with connect(settings) as connection:
        assert connection.config_get("port") == {"port": "0"}
    inodes = {
        os.readlink(entry)[8:-1]
        for entry in Path(f"/proc/{server.pid}/fd").iterdir()
        if os.readlink(entry).startswith("socket:")
    }
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        assert not inodes & {row[9] for row in rows}


def test_the_server_keeps_nothing_on_disk_and_refuses_when_full(settings, server):
    with connect(settings) as connection:
        assert connection.config_get("save") == {"save": ""}
        assert connection.config_get("appendonly") == {"appendonly": "no"}
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert connection.config_get("maxmemory") == {"maxmemory": str(256 << 20)}
        connection.set("much", b"x" * (2 << 20))
        connection.config_set("maxmemory", 1 << 20)
        with pytest.raises(redis.OutOfMemoryError):
            connection.set("more", b"x")
        assert connection.exists("much")


def test_the_process_becomes_the_server_and_ends_on_sigterm(settings, server):
    with connect(settings) as connection:
        assert connection.info("server")["process_id"] == server.pid
    assert server.end() == 0


def test_a_second_server_for_the_same_root_is_refused_in_words(settings, server, tmp_path):
    with running(petct("valkey", "--root", settings.root), tmp_path / "second") as second:
        assert second.process.wait(20) == 2
        assert "running already" in second.stderr
    assert answers(socket_path(settings.layout))


def test_a_stale_socket_of_a_killed_server_does_not_matter(settings, server, tmp_path):
    server.end(9)
    assert socket_path(settings.layout).exists()
    assert not answers(socket_path(settings.layout))
    with running(petct("valkey", "--root", settings.root), tmp_path / "next"):
        wait_until(lambda: answers(socket_path(settings.layout)), what="the next server")


@pytest.mark.parametrize("name", ["with space", 'quote"and\\slash', "ümläut", "x" * 120])
def test_any_name_of_a_root_works(tmp_path, name):
    settings = load_settings(root=tmp_path / name, environ={})
    with running(petct("valkey", "--root", settings.root), tmp_path / "valkey"):
        wait_until(lambda: answers(socket_path(settings.layout)), what="the server's answer")
        assert len(os.fsencode(socket_path(settings.layout))) <= 107


def test_without_the_wheel_a_server_on_path_is_used_and_else_told(monkeypatch):
    assert server_program().name == "valkey-server"
    monkeypatch.setattr("daemon.valkey.find_spec", lambda name: None)
    assert server_program({"redis-server": "/usr/bin/redis-server"}.get).name == "redis-server"
    with pytest.raises(NoServer, match=PROGRAMS[0]):
        server_program(lambda name: None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_servers_of_distributions_understand_the_configuration(name, settings, tmp_path):
    program = shutil.which(name) or (server_program() if name == PROGRAMS[0] else None)
    if program is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    settings.layout.make_private()
    path = make_socket_folder(settings.layout)
    config = tmp_path / "server.conf"
    config.write_text(server_config(path, settings.layout.run, 64))
    with running([str(program), str(config)], tmp_path / "server"):
        wait_until(lambda: answers(path), what="the server's answer")
