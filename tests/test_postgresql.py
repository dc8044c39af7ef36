"""PostgreSQL as the index: one writer at a time, a server that goes and comes, secrets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import missing
from databases import POSTGRESQL, Server, server_programs, serving
from filing_world import (
    World,
    a_world,
    die,
    in_child,
    settings_for,
    small_instances,
)
from running import wait_until
from test_index import a_study
from web_serving import served

from config.errors import BadValue
from config.settings import load_settings
from workers.errors import IndexAway, IndexUnusable
from workers.filing.rows import insert_event
from workers.index import postgresql as ours
from workers.index.engine import asking, open_index, prepare_index
from workers.index.hosts import beat, claim_spool
from workers.index.seen import list_hosts
from workers.index.tables import event, meta, study
from workers.jobs import configure, file_entries
from workers.queues import JOB_VERSION

pytestmark = pytest.mark.parametrize("index_database", [POSTGRESQL], indirect=True)


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server that is these tests' own: it is stopped, and asks for a password."""
    programs = server_programs()
    if programs is None:
        missing("no PostgreSQL server")
    with serving(programs) as server:
        server.make_template()
        yield server


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def test_what_two_write_at_once_appears_in_the_order_of_its_ids(world: World) -> None:
    """Who follows the events by their ids misses none."""
    seen: list[int] = []
    stop = threading.Event()
    index = world.index

    def write() -> None:
        for _ in range(20):
            with index.write() as connection:
                insert_event(connection, "wait", "2026-01-01T00:00:00.000Z")

    def follow() -> None:
        while not stop.is_set():
            with index.read() as connection:
                last = seen[-1] if seen else 0
                seen.extend(
                    connection.execute(
                        sa.select(event.c.id).where(event.c.id > last).order_by(event.c.id)
                    ).scalars()
                )

    writers = [threading.Thread(target=write) for _ in range(3)]
    follower = threading.Thread(target=follow)
    for thread in (*writers, follower):
        thread.start()
    for thread in writers:
        thread.join()
    wait_until(lambda: len(seen) == 60, 10, f"all events: {seen}")
    stop.set()
    follower.join()
    assert seen == sorted(seen)


def test_a_writer_that_is_killed_lets_the_others_write(world: World) -> None:
    world.let_go()

    def killed() -> None:
        with open_index(world.settings).write() as connection:
            connection.execute(study.insert().values(a_study("1.1")))
            die()

    assert in_child(killed) == -9
    with world.index.write() as connection:
        assert connection.execute(sa.select(study)).all() == []


def test_a_writer_that_falls_silent_loses_the_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "_LIMITED", ours._LIMITED.replace("30s", "1s"))
    world.let_go()
    silent = open_index(world.settings)

    def say_nothing() -> None:
        with silent.write() as connection:
            connection.execute(study.insert().values(a_study("1.1")))
            with world.index.write() as other:  # waits until the server has ended the silent one
                other.execute(study.insert().values(a_study("2.2")))
            connection.execute(study.insert().values(a_study("1.2")))

    with pytest.raises(IndexAway):
        say_nothing()
    assert [row.study for row in world.rows(study)] == ["2.2"]
    silent.close()


def test_what_is_written_is_durable_though_the_server_would_not_wait(world: World) -> None:
    asked = sa.text("show synchronous_commit")
    with world.index.read() as connection:
        assert connection.execute(asked).scalar() == "off", "as the tests' servers are set"
    with world.index.write() as connection:
        assert connection.execute(asked).scalar() == "on"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_who_waited_for_the_lock_sees_what_was_written_whatever_the_database_prefers(
    world: World, isolation: str
) -> None:
    """A snapshot from before the lock would let two give the same name or count one from."""
    prefer(world, f"default_transaction_isolation = '{isolation}'")
    seen: list[int] = []

    def wait_and_read() -> None:
        with world.index.write() as connection:
            seen.append(len(connection.execute(sa.select(study)).all()))

    with world.index.write() as connection:
        thread = threading.Thread(target=wait_and_read)
        thread.start()
        waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'")
        with world.index.read() as looking:
            wait_until(lambda: looking.execute(waiting).scalar(), 10, "one that waits")
        connection.execute(study.insert().values(a_study("1.1")))
    thread.join()
    assert seen == [1]


def test_times_are_understood_whatever_the_database_writes_them_like(world: World) -> None:
    prefer(world, "datestyle = 'German'")
    with world.index.write() as connection:
        connection.execute(meta.delete().where(meta.c.key == "spool_id"))
        claim_spool(connection, "a", "0" * 32)
        assert beat(connection, "a", 0, None)
    with world.index.read() as connection:
        (one,) = list_hosts(asking(connection))
    assert one.is_there


def prefer(world: World, setting: str) -> None:
    """Let the database have a setting of its own, for connections to come."""
    engine = world.index.engine
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar()
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting}")
    world.let_go()


def test_a_database_that_does_not_hold_every_name_is_refused(tmp_path: Path, own: Server) -> None:
    own.tell(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    settings = settings_for(tmp_path / "root", index={"url": own.url("latin")})
    for use in (prepare_index, open_index):
        with pytest.raises(IndexUnusable, match=r"LATIN1.*ENCODING 'UTF8'"):
            use(settings)


def test_what_a_visitor_asks_with_a_nul_is_not_found(world: World) -> None:
    with served(world.settings) as site:
        client = site.client(follow_redirects=True)
        for address, code in (
            ("/studies?source=%00", 200), ("/quarantine?behind=%00", 200),
            ("/quarantine/%00/retry", 404),
        ):  # fmt: skip
            assert client.get(address).status_code == code, address
        assert client.submit("/studies", term="a\0b").status_code == 200


def test_a_reader_may_take_its_time_and_writes_nothing(world: World) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="read-only"), world.index.read() as connection:
        connection.execute(study.insert().values(a_study("1.1")))
    with world.index.read() as connection:
        asked = "SHOW idle_in_transaction_session_timeout"
        assert connection.exec_driver_sql(asked).scalar() == "0"


def test_the_server_knows_each_process_by_its_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for argv, name in (
        (["petct-ingest", "sweep", "--root", "/x"], "petct-ingest sweep"),
        (["petct-ingest", "show", "1.2.3"], "petct-ingest show"),
        (["petct-ingest", "--help"], "petct-ingest"),
        (["petct-ingest", "1.2.840.4711"], "petct-ingest"),
    ):
        monkeypatch.setattr("sys.argv", argv)
        index = open_index(world.settings)
        with index.read() as connection:
            assert connection.exec_driver_sql("SHOW application_name").scalar() == name
        index.close()


def test_without_the_driver_the_extra_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(IndexUnusable, match=r"petct-ingest\[postgres\]"):
        open_index(world.settings)


# the password -------------------------------------------------------------------------------------


def test_the_password_stands_in_a_file_and_in_no_message(
    tmp_path: Path, own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "p@ss/w:ord"
    own.tell(f"CREATE ROLE petct LOGIN PASSWORD '{secret}'", "CREATE DATABASE petct OWNER petct")
    own.refuse_without_password("petct")
    given = {"url": own.url("petct", "petct"), "password_file": "index.password"}
    settings = settings_for(tmp_path / "root", index=given)
    settings.root.mkdir()
    file = settings.root / "index.password"
    for content, words in ((None, "No such file"), (b"", "empty"), (b"\xff", "no text")):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(IndexUnusable, match=words):
            prepare_index(settings)
    file.write_text("wrong\n")
    with pytest.raises(IndexAway, match="password authentication failed") as failed:
        prepare_index(settings)
    assert "wrong" not in str(failed.value)
    file.write_text(f"{secret}\n")
    index = prepare_index(settings)
    assert secret not in repr(index.engine)
    assert index.identities().archive
    index.close()
    assert secret not in caplog.text


def test_a_password_is_given_once_and_to_a_server(tmp_path: Path) -> None:
    for given, words in (
        ({"url": "postgresql://u:p@h/d", "password_file": "x"}, "not in both"),
        ({"password_file": "x"}, "PostgreSQL"),
        ({"url": "sqlite:///x", "password_file": "x"}, "PostgreSQL"),
    ):
        with pytest.raises(BadValue, match=words):
            load_settings(root=tmp_path, overrides={"index": given}, environ={})


# a server that goes and comes ---------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path, own: Server) -> Iterator[World]:
    """An installation with three entries on the server that is to go."""
    url = own.create(f"t{tmp_path.stat().st_ino}")
    with a_world(tmp_path / "root", index={"url": url}, redis={"url": "unix:///no"}) as world:
        files = small_instances(tmp_path / "made", 3)
        world.put({str(number): content for number, content in enumerate(files)})
        yield world


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_worker_goes_on_by_itself_when_the_server_was_restarted(
    own: Server, filled: World, caplog: pytest.LogCaptureFixture, mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server, world = own, filled
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("workers.jobs._AWAY_SECONDS", 0.0)
    place = configure(world.settings)
    batches = {name.batch: [one.identifier for one in world.waiting()] for name in world.waiting()}
    assert len(place.index.identities().archive) == 32
    server.stop(mode)
    for _ in range(3):
        assert file_entries(JOB_VERSION, batches) == {}
    assert len(world.waiting()) == 3
    said = [record for record in caplog.records if "index-away" in record.getMessage()]
    assert len(said) == 1
    server.start()
    world.let_go()
    assert file_entries(JOB_VERSION, batches) == {"filed": 3}
    assert "index-answers-again" in caplog.text
    world.file_all()
    world.check()
    place.close()


def test_a_server_that_dies_in_the_middle_of_a_batch_costs_no_entry(
    own: Server, filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, world = own, filled
    from workers.filing import committing

    insert = committing.insert_arrivals

    def cut_off(*given: object) -> None:
        insert(*given)  # type: ignore[arg-type]
        server.stop()

    monkeypatch.setattr(committing, "insert_arrivals", cut_off)
    with pytest.raises(IndexAway):
        world.file()
    monkeypatch.undo()
    server.start()
    world.let_go()
    assert world.outcomes() == {}
    world.file_all()
    assert world.outcomes() == {"filed": 3}
    world.check()
