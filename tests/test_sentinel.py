"""Sentinels before the queue server: found through them, lost in a failover, found again."""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from certificates import Authority
from conftest import missing
from filing_world import a_world, small_instances
from installation import free_port
from running import Running, petct, running, wait_until

from config.errors import BadValue
from config.origins import shown
from config.sentinels import Sentinels, read_sentinel_url
from config.settings import Settings, load_settings
from workers.queues import FILING, QueueUnusable, connect, depths, enqueue_filing, why

PASSWORD, SENTINELS_PASSWORD = "s3cret&wörd", "an0ther"
SERVICE = "petct"


@dataclass
class Guarded:
    """A queue server and its replica, before which a sentinel stands."""

    folder: Path
    certificates: Authority | None = None
    servers: dict[int, Running] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @contextlib.contextmanager
    def standing(self) -> Iterator["Guarded"]:
        program = shutil.which("redis-server") or missing("no redis-server") or ""
        master, replica = free_port(), free_port()
        with contextlib.ExitStack() as stack:
            for port in (master, replica):
                lines = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', 'save ""',
                         "repl-diskless-sync-delay 0"]  # fmt: skip
                lines += [f"replicaof 127.0.0.1 {master}"] if port == replica else []
                self.servers[port] = stack.enter_context(self._start(program, port, lines))
            wait_until(lambda: self.link(replica) == "up", what="the replica's first copy")
            lines = [
                f"sentinel monitor {SERVICE} 127.0.0.1 {master} 1",
                f"sentinel auth-pass {SERVICE} {PASSWORD}",
                f"sentinel down-after-milliseconds {SERVICE} 500",
                f"sentinel failover-timeout {SERVICE} 2000",
                f'requirepass "{SENTINELS_PASSWORD}"',
            ]
            with self._start(program, self.port, lines, "--sentinel") as sentinel:
                wait_until(lambda: "+slave" in sentinel.stdout, what="the sentinel's survey")
                yield self

    def _start(self, program: str, port: int, lines: list[str], *options: str) -> Any:
        place = self.folder / str(port)
        place.mkdir(parents=True)
        listening = [f"port {port}"]
        if self.certificates:
            certificate, key = self.certificates.sign(f"server-{port}")
            listening = ["port 0", f"tls-port {port}", "tls-auth-clients no", "tls-replication yes",
                         f"tls-cert-file {certificate}", f"tls-key-file {key}",
                         f"tls-ca-cert-file {self.certificates.certificate}"]  # fmt: skip
        config = place / "redis.conf"
        config.write_text("\n".join([*listening, "bind 127.0.0.1", f"dir {place}", *lines]) + "\n")
        return running([program, str(config), *options], place)

    def link(self, port: int) -> str:
        """How the replica stands to its master."""
        kind = "rediss" if self.certificates else "redis"
        ca = {"ssl_ca_certs": self.certificates.certificate} if self.certificates else {}
        address = f"{kind}://127.0.0.1:{port}"
        with (
            contextlib.suppress(redis.ConnectionError),
            redis.Redis.from_url(address, password=PASSWORD, **ca) as one,
        ):
            return str(one.info("replication").get("master_link_status"))
        return ""

    def settings(self, root: Path) -> dict[str, Any]:
        """What an installation says of it: the first sentinel is away."""
        root.parent.mkdir(exist_ok=True)
        words = {"password_file": PASSWORD, "sentinel_password_file": SENTINELS_PASSWORD}
        given: dict[str, Any] = {}
        for name, word in words.items():
            given[name] = self.folder / name
            given[name].write_text(word + "\n")
        scheme = "redis"
        if self.certificates:
            scheme, given["ca_file"] = "rediss", self.certificates.certificate
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{self.port}"
        return {"url": f"{scheme}+sentinel://{hosts}/{SERVICE}/3", **given}

    def master(self, settings: Settings) -> int:
        with connect(settings) as client:
            client.ping()
            pool: Any = client.connection_pool
            return int(pool.master_address[1])

    def kill(self, port: int) -> None:
        self.servers[port].end(signal.SIGKILL)


@pytest.fixture(params=["plain", "tls"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guarded]:
    ca = Authority(tmp_path / "ca") if request.param == "tls" else None
    with Guarded(tmp_path / "redis", ca).standing() as one:
        yield one


def test_an_address_of_sentinels_is_taken_apart() -> None:
    url = "redis+sentinel://me:a%26b@s1,s2.example:1234,[fd00::2]:26380/petct/2"
    hosts = (("s1", 26379), ("s2.example", 1234), ("fd00::2", 26380))
    assert read_sentinel_url(url) == Sentinels(hosts, "petct", 2, "me", "a&b", tls=False)
    plain = read_sentinel_url("rediss+sentinel://s1/petct")
    assert plain == Sentinels((("s1", 26379),), "petct", tls=True)
    assert "a&b" not in repr(read_sentinel_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://s1:26379",  # no service
        "redis+sentinel:///petct",
        "redis+sentinel://s1,,s2/petct",
        "redis+sentinel://s1:70000/petct",
        "redis+sentinel://:s3cret/x@s1:26379/petct",
        "redis+sentinel://s1/petct/zero",
        "redis+sentinel://s1/petct?db=2",
    ],
)
def test_what_is_no_address_of_sentinels_is_refused_without_quoting_it(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(BadValue, match="redis\\+sentinel://host") as caught:
        load_settings(root=tmp_path, overrides={"redis": {"url": url}}, environ={})
    assert "s3cret" not in str(caught.value)


def test_a_password_in_the_address_of_sentinels_is_not_shown(tmp_path: Path) -> None:
    url = "redis+sentinel://:s3cret@s1:26379,s2:26379/petct/0"
    assert "s3cret" not in shown("redis.url", url)
    given = {"redis": {"url": url, "password_file": "x"}}
    with pytest.raises(BadValue, match="not in both") as caught:
        load_settings(root=tmp_path, overrides=given, environ={})
    assert "s3cret" not in str(caught.value)


def test_the_server_in_charge_is_found_through_sentinels_also_after_a_failover(
    guarded: Guarded, tmp_path: Path
) -> None:
    settings = load_settings(
        root=tmp_path / "root", overrides={"redis": guarded.settings(tmp_path)}, environ={}
    )
    first = guarded.master(settings)
    with connect(settings) as client:
        assert client.connection_pool.connection_kwargs["db"] == 3
        client.set("kept", "yes")
        client.wait(1, 5000)
        guarded.kill(first)
        with pytest.raises(redis.ConnectionError):
            client.ping()

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        wait_until(answers, what="the other server")
        assert client.get("kept") == b"yes", "the client that lost its server goes on"
    assert guarded.master(settings) != first


def test_sentinels_that_are_away_or_refuse_us_are_told_without_an_address(
    guarded: Guarded, tmp_path: Path
) -> None:
    given = guarded.settings(tmp_path)
    given["sentinel_password_file"].write_text("wrong")
    settings = load_settings(root=tmp_path / "root", overrides={"redis": given}, environ={})
    with connect(settings) as client, pytest.raises(redis.RedisError) as caught:
        client.ping()
    assert "no sentinel names a queue server" in why(caught.value)
    assert "127.0.0.1" not in why(caught.value)
    given["sentinel_password_file"].write_text("")
    with pytest.raises(QueueUnusable, match=r"redis\.sentinel_password_file is empty"):
        connect(settings)


@pytest.mark.parametrize("guarded", ["plain"], indirect=True)
def test_filing_goes_on_after_a_failover_and_nothing_is_lost_or_doubled(
    guarded: Guarded, tmp_path: Path
) -> None:
    files = {f"{n}.dcm": one for n, one in enumerate(small_instances(tmp_path / "made", 60))}
    given = guarded.settings(tmp_path)
    with a_world(tmp_path / "root", redis=given, spool={"minimum_free_mb": 1}) as world:
        config = tmp_path / "petct.toml"
        lines = [f'{name} = "{value}"' for name, value in given.items()]
        config.write_text("\n".join([f'root = "{world.settings.root}"', "[redis]", *lines]))
        names = list(files)
        with running(petct("sweep", "--config", config), tmp_path / "sweep") as sweeper:
            world.put({name: files[name] for name in names[:20]})
            command = petct("run", "--config", config, "--roles", "filing")
            with running(command, tmp_path / "run") as run:
                wait_until(lambda: world.counts().filed == 20, 60, "the first third filed")
                entries = world.put({name: files[name] for name in names[20:40]})
                first = guarded.master(world.settings)
                with connect(world.settings) as client:
                    for number in range(0, 20, 2):  # jobs, some of which are lost with the server
                        enqueue_filing(client, entries[number : number + 4])
                guarded.kill(first)
                world.put({name: files[name] for name in names[40:]})
                wait_until(lambda: world.counts().filed == len(files), 60, "all filed")
                wait_until(lambda: not world.waiting(), what="an empty spool")
                assert world.outcomes() == {"filed": len(files)}
                assert "role-ended" in run.stderr, "a worker that loses its server ends"
                assert run.end() == 0
            assert sweeper.end() == 0
        assert guarded.master(world.settings) != first
        with connect(world.settings) as client:
            assert depths(client)[FILING] == 0
