"""Several hosts file into one index: no clock is read by another, and nothing is forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import databases
import pytest
import sqlalchemy as sa
from conftest import QueueServer
from filing_world import World, encoded, make_world, small_instances
from hypothesis import given
from hypothesis import strategies as st
from rq import Queue
from rq.serializers import JSONSerializer
from running import petct, running, wait_until
from typer.testing import CliRunner
from web_serving import served

from daemon.cli.app import app
from daemon.looking import look
from daemon.refilling import QueueFiller
from daemon.sweeper import Sweeper, run_sweeper
from workers import clock, queues
from workers.checking.checker import check
from workers.checking.scene import Scene
from workers.completeness.judging import judge_studies
from workers.completeness.neighbours import AWAY_SECONDS, Neighbours
from workers.errors import HostUnknown, SpoolNameTaken, StoreUnavailable
from workers.filing.releasing import NotInQuarantine, retry_all, retry_entry
from workers.identity import PinnedStores
from workers.index.engine import asking
from workers.index.hosts import HostReport, forget_host
from workers.index.seen import list_hosts
from workers.index.tables import host, meta, pair, series
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

NOWHERE = {"url": "unix:///nonexistent.sock"}
QUIET, STEP = 60.0, 2.0


# what another host may hold ---------------------------------------------------------------------


def report(beat: int, oldest: float | None = None, **more: Any) -> HostReport:
    known = {"name": "b", "boot": "boot of b", "stopped": False, "entries": int(oldest is not None)}
    return HostReport(**{**known, "beat": beat, "oldest_seconds": oldest, **more})


def test_what_came_in_after_a_hosts_last_word_is_not_known() -> None:
    ours = Neighbours("a")
    ours.look([report(1)], 100)
    assert ours.waiting_since(100) == float("-inf"), "nobody knows how old its word is"
    ours.look([report(2)], 102)
    assert ours.waiting_since(102) == 100
    ours.look([report(2)], 104)
    assert ours.waiting_since(104) == 100, "it said nothing new"
    ours.look([report(3, oldest=30)], 106)
    assert ours.waiting_since(106) == 104 - 30
    ours.look([], 108)
    assert ours.waiting_since(108) == float("inf"), "it was forgotten"


def test_a_host_that_is_away_counts_with_what_it_had() -> None:
    ours = Neighbours("a")
    for now, told in ((0.0, report(1)), (2.0, report(2))):
        ours.look([told, report(9, oldest=5, name="c"), report(1, name="a")], now)
    assert ours.boots(2 + AWAY_SECONDS - 1) == {"boot of b"}
    ours.look([report(2), report(10, oldest=7, name="c")], 500)
    late = 2 + AWAY_SECONDS
    assert ours.waiting_since(late) == 2 - 7, "c lives, and something waits there"
    later = 500 + AWAY_SECONDS
    assert ours.waiting_since(later) == 2 - 7, "c is away, and something waits there"
    assert ours.boots(later) == set()
    ours.look([report(2), report(11, name="c", stopped=True)], later)
    assert ours.waiting_since(later) == float("inf"), "neither has anything"


@given(
    st.lists(
        st.tuples(st.floats(0.1, 30), st.booleans(), st.booleans(), st.booleans()), max_size=40
    ),
    st.floats(-1e6, 1e6),
)
def test_nothing_that_waits_on_a_living_host_is_ever_taken_for_younger(
    steps: list[tuple[float, bool, bool, bool]], offset: float
) -> None:
    """Time passes; something comes in there; it tells; we look: in any order, on any clock."""
    now, beat, told, waiting = 0.0, 0, report(0), []
    ours = Neighbours("a")
    for passed, comes, tells, looks in steps:
        now += passed
        if comes:
            waiting.append(now)
        if tells:
            beat += 1
            its_now = now + offset  # of another boot
            oldest = its_now - (waiting[0] + offset) if waiting else None
            told = report(beat, oldest)
        if looks:
            ours.look([told], now)
            if waiting:
                assert ours.waiting_since(now) <= waiting[0] + 1e-6


# two hosts --------------------------------------------------------------------------------------


@dataclass
class Host:
    """One host: its world, its sweeper, its boot and how far its clocks are from ours."""

    world: World
    boot: str
    offset: float
    """Of its monotonic clock."""
    ahead: float
    """Of its wall clock: seconds."""
    sweeper: Sweeper | None = None


class Hosts:
    """Hosts that share index and archive; one of them acts at a time, by its own clocks."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **overrides: Any) -> None:
        self.folder, self.passed = folder, 0.0
        self.now: Host | None = None
        self._began = clock.monotonic(), clock.wall()  # they stand still but for `pass_by`
        patch.setattr(clock, "boot_id", lambda: self.now.boot if self.now else "nobody's")
        patch.setattr(clock, "monotonic", self._monotonic)
        patch.setattr(clock, "wall", self._wall)
        self.overrides = {"redis": NOWHERE, **overrides}
        self.all: dict[str, Host] = {}

    def _monotonic(self) -> float:
        return self._began[0] + self.passed + (self.now.offset if self.now else 0.0)

    def _wall(self) -> float:
        return self._began[1] + self.passed + (self.now.ahead if self.now else 0.0)

    def settings_of(self, name: str) -> dict[str, Any]:
        index = databases.index_of(self.folder / "shared") or {
            "index": {"url": f"sqlite:///{self.folder}/index.sqlite"}
        }
        return {"spool": {"name": name}, "paths": {"archive": self.folder / "archive"},
                **index, **self.overrides}  # fmt: skip

    def add(self, name: str, offset: float = 0.0, ahead: float = 0.0) -> Host:
        one = Host(make_world(self.folder / f"root-{name}", **self.settings_of(name)),
                   f"boot of {name}", offset, ahead)  # fmt: skip
        self.all[name] = one
        return one

    def act(self, one: Host) -> World:
        self.now = one
        return one.world

    def look(self, *those: Host) -> None:
        """Let the sweepers of some hosts look once."""
        for one in those:
            world = self.act(one)
            if one.sweeper is None:
                one.sweeper = Sweeper(world.index, world.settings)
            one.sweeper.tell_the_others(clock.monotonic())
            one.sweeper.judge_quiet_series(clock.monotonic())

    def pass_by(self, seconds: float, *those: Host, step: float = STEP) -> None:
        end = self.passed + seconds
        while self.passed < end:
            self.passed += step
            self.look(*those)

    def close(self) -> None:
        for one in self.all.values():
            one.world.close()


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    found = Hosts(tmp_path, monkeypatch)
    yield found
    found.close()


@pytest.fixture
def two(hosts: Hosts) -> tuple[Host, Host]:
    """Their monotonic clocks lie months apart, as those of two boots do, the others minutes."""
    return hosts.add("a"), hosts.add("b", offset=9e6, ahead=420)


@pytest.fixture
def slices(tmp_path: Path) -> list[bytes]:
    return small_instances(tmp_path / "made", 4)


def file_into(hosts: Hosts, one: Host, *contents: bytes) -> None:
    world = hosts.act(one)
    world.put({str(number): content for number, content in enumerate(contents)})
    file_what_waits(hosts, one)


def file_what_waits(hosts: Hosts, one: Host) -> None:
    world = hosts.act(one)
    found = world.file()
    judge_studies(world.index, world.settings, found.touched_studies, found.touched_series)


def state_of(one: Host) -> tuple[bool, str]:
    (row,) = one.world.rows(series)
    return row.quiet, row.state


@pytest.mark.both_databases
def test_a_series_gets_quiet_though_two_hosts_look_at_it(
    hosts: Hosts, two: tuple[Host, Host], slices: list[bytes]
) -> None:
    file_into(hosts, two[0], *slices[:2])
    file_into(hosts, two[1], *slices[2:])
    hosts.pass_by(QUIET - 2 * STEP, *two)
    assert state_of(two[0]) == (False, "receiving")
    hosts.pass_by(6 * STEP, *two)
    assert state_of(two[0]) == (True, "complete")


def test_a_series_waits_for_what_waits_on_another_host(
    hosts: Hosts, two: tuple[Host, Host], slices: list[bytes]
) -> None:
    file_into(hosts, two[0], *slices[:3])
    hosts.act(two[1]).put({"acknowledged": slices[3]})
    hosts.pass_by(5 * QUIET, *two, step=10)
    assert state_of(two[0]) == (False, "receiving")
    file_what_waits(hosts, two[1])
    hosts.pass_by(QUIET - 2 * STEP, *two)
    assert state_of(two[0]) == (False, "receiving"), "its quiet time begins with the last slice"
    hosts.pass_by(6 * STEP, *two)
    assert state_of(two[0]) == (True, "complete")


def test_the_series_of_a_host_that_went_away_are_judged_by_another(
    hosts: Hosts, two: tuple[Host, Host], slices: list[bytes]
) -> None:
    file_into(hosts, two[1], *slices)
    hosts.pass_by(2 * STEP, *two)
    hosts.pass_by(AWAY_SECONDS - 10 * STEP, two[0], step=10)
    assert state_of(two[0]) == (False, "receiving")
    hosts.pass_by(2 * QUIET, two[0])
    assert state_of(two[0]) == (True, "complete")


def phantom() -> tuple[list[bytes], list[bytes]]:
    """The PET and the CT of one study."""
    made = make_study(PhantomSpec(size="tiny"))
    pet, ct = made.named("PET AC"), made.named("CT IMAGES")
    return ([encoded(pet.dataset(number)) for number in range(pet.count)],
            [encoded(ct.dataset(number)) for number in range(ct.count)])  # fmt: skip


@pytest.mark.both_databases
def test_what_waits_on_a_host_that_is_away_holds_the_study_until_it_is_back_or_forgotten(
    hosts: Hosts, two: tuple[Host, Host]
) -> None:
    here, away = two
    (*pet, last), ct = phantom()
    file_into(hosts, here, *pet, *ct)
    hosts.act(away).put({"acknowledged": last})
    hosts.pass_by(4 * STEP, *two)
    hosts.pass_by(3 * AWAY_SECONDS, here, step=60)
    (row,) = here.world.rows(pair)
    assert (row.state, row.generation) == ("pending", 0), "nothing is guessed"
    assert here.sweeper is not None
    hosts.passed += 2 * 3600
    here.sweeper._judge_capped(clock.monotonic())
    (row,) = here.world.rows(pair)
    assert row.state == "held"
    with here.world.index.write() as connection:  # by the database's clock, for people
        connection.execute(host.update().values(last_seen="2026-01-01 00:00:00+00"))
    here.sweeper._judge_capped(clock.monotonic())
    judge_studies(here.world.index, here.world.settings, [row.study_id])
    (row,) = here.world.rows(pair)
    assert "host 'b' may have more of it" in row.reasons
    assert "1 entry waits there" in row.reasons
    with here.world.index.write() as connection:
        forget_host(connection, "b")
    hosts.pass_by(4 * STEP, here)
    assert {row.state for row in here.world.rows(series)} == {"complete", "inconsistent"}
    (row,) = here.world.rows(pair)
    assert "may have more" not in row.reasons
    assert "slices are missing at an end" in row.reasons
    hosts.pass_by(STEP, away)  # it is back: known again, and what it has is filed
    file_what_waits(hosts, away)
    assert [one.name for one in seen(here)] == ["a", "b"]
    (row,) = here.world.rows(pair)
    assert (row.state, row.generation) == ("pending", 1), "it can be made now"


@pytest.mark.both_databases
def test_a_study_whose_ct_and_pet_came_to_two_hosts_is_paired_once(
    hosts: Hosts, two: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pairing.build.draw_pair", lambda *_: b"a picture")
    a, b = two
    pet, ct = phantom()
    half = len(ct) // 2
    file_into(hosts, b, *pet)
    file_into(hosts, a, *ct[:half])
    hosts.act(a).put({f"later-{number}": content for number, content in enumerate(ct[half:])})
    hosts.pass_by(5 * QUIET, *two, step=10)
    (row,) = b.world.rows(pair)
    assert (row.state, row.generation) == ("pending", 0), "A has more of it"
    file_what_waits(hosts, a)
    hosts.pass_by(2 * QUIET, *two, step=10)
    (row,) = b.world.rows(pair)
    assert (row.state, row.generation) == ("pending", 1)
    made = [make_pair(hosts.act(one).index, one.world.settings, row.id, 1) for one in (b, a)]
    assert made == ["ready", "done"]
    hosts.pass_by(2 * QUIET, *two, step=10)
    (row,) = a.world.rows(pair)
    assert (row.state, row.generation, row.revision) == ("ready", 1, 1)


def seen(one: Host) -> list[Any]:
    with one.world.index.read() as connection:
        return list_hosts(asking(connection))


def test_a_cap_that_one_host_saw_pass_counts_for_all(hosts: Hosts, two: tuple[Host, Host]) -> None:
    here, other = two
    pet, ct = phantom()
    file_into(hosts, here, *pet[:-2], *ct)
    hosts.look(*two)
    hosts.passed += 2 * 3600
    hosts.act(here)
    assert here.sweeper is not None
    here.sweeper._judge_capped(clock.monotonic())
    assert here.world.rows(pair)[0].state == "held"
    file_into(hosts, other, pet[-2])
    assert here.world.rows(pair)[0].state == "held", "it would be told anew for each slice"


def test_two_hosts_do_not_take_each_others_hard_cap(hosts: Hosts, two: tuple[Host, Host]) -> None:
    here, other = two
    file_into(hosts, here, *phantom()[0][:5])
    hosts.pass_by(2 * STEP, *two)
    (before,) = here.world.rows(pair)
    for one in (other, here):
        hosts.act(one)
        assert one.sweeper is not None
        one.sweeper._judge_capped(clock.monotonic())
    (row,) = here.world.rows(pair)
    assert (row.begun_boot, row.begun_monotonic) == (before.begun_boot, before.begun_monotonic)


def test_a_host_that_stops_in_peace_is_not_waited_for(
    hosts: Hosts, two: tuple[Host, Host], slices: list[bytes]
) -> None:
    file_into(hosts, two[0], *slices)
    hosts.pass_by(2 * STEP, *two)
    hosts.act(two[1])
    assert two[1].sweeper is not None
    two[1].sweeper.stop()
    hosts.pass_by(QUIET, two[0])
    assert state_of(two[0]) == (True, "complete")
    assert [(one.name, one.stopped) for one in seen(two[0])] == [("a", False), ("b", True)]
    assert look(two[0].world.settings).hosts[1].state == "stopped"


# names ------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_name_belongs_to_one_spool(hosts: Hosts, two: tuple[Host, Host]) -> None:
    with pytest.raises(SpoolNameTaken, match="the name of another spool"):
        make_world(hosts.folder / "root-c", **hosts.settings_of("a"))
    with pytest.raises(SpoolNameTaken, match='this spool is known as "a"'):
        make_world(hosts.folder / "root-a", **hosts.settings_of("z"))
    hosts.look(*two)
    with two[0].world.index.write() as connection, pytest.raises(HostUnknown, match="was there"):
        forget_host(connection, "b")
    with two[0].world.index.write() as connection, pytest.raises(HostUnknown, match="no host"):
        forget_host(connection, "z")


def test_without_a_name_a_host_among_others_has_no_spool(hosts: Hosts) -> None:
    hosts.add("a")
    pairing_only = make_world(hosts.folder / "root-d", **hosts.settings_of(""))
    try:
        assert pairing_only.index.identities().archive
        assert pairing_only.index.identities().spool == ""
        assert not [one for one in look(pairing_only.settings).troubles if "spool" in one]
        with pytest.raises(StoreUnavailable):
            PinnedStores(pairing_only.layout).check()
        with pytest.raises(SpoolNameTaken, match="give this one a spool"):
            run_sweeper(pairing_only.settings, None)  # type: ignore[arg-type]
    finally:
        pairing_only.close()


@pytest.mark.both_databases
def test_a_host_that_gets_a_name_takes_over_what_it_did_without_one(hosts: Hosts) -> None:
    alone = make_world(hosts.folder / "root-a", **hosts.settings_of(""))
    alone.put({"letter": b"Dear colleague"})
    alone.file()
    known = alone.index.identities()
    alone.close()
    with pytest.raises(SpoolNameTaken, match="a host without a name uses this index"):
        make_world(hosts.folder / "root-b", **hosts.settings_of("b"))
    named = hosts.add("a").world
    assert named.index.identities() == known
    assert "spool_id" not in {row.key for row in rows_of(named, meta)}
    assert check(Scene(named.settings, named.index, sleep=lambda _: None)).left == 0
    assert len([*retry_all(named.index, named.layout)]) == 1
    hosts.add("b")


def rows_of(world: World, table: sa.Table) -> list[Any]:
    with world.index.read() as connection:
        return list(connection.execute(sa.select(table)))


@pytest.mark.both_databases
def test_what_another_host_set_aside_is_told_and_left_to_it(
    hosts: Hosts, two: tuple[Host, Host]
) -> None:
    here, there = two
    (entry,) = hosts.act(there).put({"letter": b"Dear colleague"})
    file_what_waits(hosts, there)
    world = hosts.act(here)
    with pytest.raises(NotInQuarantine, match="lies in the quarantine of host 'b'"):
        retry_entry(world.index, world.layout, entry.identifier)
    assert [*retry_all(world.index, world.layout)] == []
    for one in two:
        done = check(Scene(one.world.settings, one.world.index, sleep=lambda _: None))
        assert done.left == 0, one.boot
    retry_entry(there.world.index, there.world.layout, entry.identifier)


# queues -----------------------------------------------------------------------------------------


def test_each_host_files_from_a_queue_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valkey: QueueServer
) -> None:
    found = Hosts(tmp_path, monkeypatch, redis={"url": valkey.url})
    a, b = found.add("a"), found.add("b")
    connection = valkey.connect()
    for one, count in ((a, 1), (b, 2)):
        world = found.act(one)
        content = small_instances(tmp_path / one.boot, count, patient=count)
        world.put({str(number): one for number, one in enumerate(content)})
        QueueFiller(world.index, world.settings).fill(1000.0)
    (job,) = Queue("filing:b", connection=connection, serializer=JSONSerializer).jobs
    assert job.description == "file 2 entries"
    queues.enqueue_pairing(connection, 1, 1)
    assert queues.depths(connection, "a") == {"filing:a": 1, "pairing": 1, "filing:b": 1}
    assert look(b.world.settings).queues == {"filing:b": 1, "pairing": 1, "filing:a": 1}
    with running(petct("work", "filing", *options(b)), tmp_path / "work", **environment(b)):
        wait_until(lambda: not b.world.waiting(), 30)
    assert len(a.world.waiting()) == 1, "it is another host's"
    assert queues.depths(connection, "a")["filing:a"] == 1
    connection.close()
    found.close()


def options(one: Host) -> list[str]:
    return ["--root", str(one.world.layout.root)]


def environment(one: Host) -> dict[str, str]:
    settings = one.world.settings
    return {
        "PETCT_INGEST_SPOOL__NAME": settings.spool.name,
        "PETCT_INGEST_INDEX__URL": settings.index.url or "",
        "PETCT_INGEST_REDIS__URL": settings.redis.url or "",
        "PETCT_INGEST_PATHS__ARCHIVE": str(settings.layout.archive),
    }


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["words", "json"])
def test_the_commands_tell_of_hosts(
    hosts: Hosts, two: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    hosts.look(*two)
    hosts.act(two[1]).put({"waits": b"x"})
    hosts.pass_by(STEP, *two)
    with two[0].world.index.write() as connection:
        connection.execute(
            host.update().where(host.c.name == "b").values(last_seen="2026-01-01 00:00:00")
        )
    for name, value in environment(two[0]).items():
        monkeypatch.setenv(name, value)

    def answer(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, *options(two[0])])
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    told = json.loads(answer("status", "--json"))["hosts"]
    assert [(one["name"], one["entries"]) for one in told] == [("a", 0), ("b", 1)]
    assert "1 entry waits there; series wait for it" in answer("status")
    assert "not seen for" in answer("hosts")
    assert "b: not seen for" in answer("top")
    with served(two[0].world.settings) as site:
        assert "<dt>Host b</dt><dd>not seen for" in site.client().get("/").text
    answered = answer("hosts", "forget", "b", *form)
    if form:
        assert json.loads(answered) == {"forgotten": "b"}
    else:
        assert "b is forgotten" in answered
    assert [one["name"] for one in json.loads(answer("hosts", "--json"))] == ["a"]


def test_one_host_without_a_name_is_told_as_ever(tmp_path: Path) -> None:
    world = make_world(tmp_path / "root", redis=NOWHERE)
    assert "hosts" not in look(world.settings).to_json_object()
    assert look(world.settings).queues == {"filing": 0, "pairing": 0}
    assert rows_of(world, host) == []
    world.close()
