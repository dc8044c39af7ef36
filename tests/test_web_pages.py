"""The pages, over a real index: what they tell, what they never tell, and how much they read."""

import asyncio
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from filing_world import World, a_world, make_world
from running import wait_until
from web_serving import Visitor, quick_hash, served
from web_world import ACCESSIONS, MARKUP, PATIENTS, fill

from config.origins import Origin, explain
from config.settings import Settings, load_settings
from daemon.web import events
from daemon.web.access import guard
from daemon.web.chart import draw, round_up
from daemon.web.events import Pulse, _stream
from daemon.web.pages import overview
from daemon.web.pair_files import read_pair_file
from daemon.web.reading import Installation
from daemon.web.serving import port_file, run_web
from daemon.web.showing import seconds, size
from workers.filing.rows import insert_event
from workers.index.arriving import Hour, HourCounts, life_of_study, newest_change
from workers.index.searching import WantedStudies, page_of_studies
from workers.index.tables import arrival, pair, series, study

PAGES = ("/", "/studies", "/studies/1", "/studies/2", "/studies/3", "/held", "/quarantine",
         "/sources", "/settings", "/upload")  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, module_database) -> Iterator[World]:
    with closing(fill(tmp_path_factory.mktemp("web") / "root")) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[Visitor]:
    with served(world.settings) as site:
        yield site.client(follow_redirects=True)


def number_of(world: World, place: int) -> int:
    """The number of the study that came in this place: PostgreSQL leaves out some."""
    return [row.id for row in world.rows(study)][place - 1]


def here(world: World, address: str) -> str:
    """An address with the number of a study instead of its place."""
    return re.sub(r"(?<=/studies/)\d+", lambda place: str(number_of(world, int(place[0]))), address)


def text_of(client: Visitor, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, (address, answer.text)
    return answer.text


def words_of(client: Visitor, address: str) -> str:
    """What a person reads of a page."""
    parser = Page()
    parser.feed(text_of(client, address))
    return re.sub(r"\s+", " ", " ".join(parser.words))


class Page(HTMLParser):
    """What can be said of a page without drawing it."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.headings: list[int] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.styled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.addresses += [given[name] or "" for name in ("href", "src", "action") if name in given]
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "label":
            self.labelled.add(given.get("for") or "")
        if tag in ("input", "select", "meter") and given.get("type") != "hidden":
            self.fields.append(given)
        if "style" in given or any(name.startswith("on") for name in given):
            self.styled.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


# --- what every page is


@pytest.mark.parametrize("address", PAGES)
@pytest.mark.both_databases
def test_a_page_can_be_read_by_everybody_and_names_no_patient_in_an_address(client, world, address):
    page = Page()
    page.feed(text_of(client, here(world, address)))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = [
        after - before for before, after in zip(page.headings, page.headings[1:], strict=False)
    ]
    assert max(steps, default=0) <= 1, "a heading level is left out"
    assert {"html", "main", "nav", "header", "footer"} <= set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(field.get("id") in page.labelled for field in page.fields)
    assert not page.styled, "the policy forbids styles and scripts inside"
    named = [*PATIENTS, *ACCESSIONS, "ANOTHER-PATIENT"]
    named += [row.study for row in world.rows(study)] + [row.series for row in world.rows(series)]
    assert not [one for one in page.addresses if any(name in one for name in named)]


def test_markup_in_a_description_stays_text(client, world):
    for address in (here(world, "/studies/3"), "/studies", "/"):
        shown = text_of(client, address)
        assert "&lt;script&gt;alert(" in shown
        assert "<script>alert" not in shown
        assert "<b>bold" not in shown
        assert MARKUP in words_of(client, address)


def test_what_is_not_there_is_answered_in_words(client):
    for address in (
        "/studies/99",
        f"/studies/{10**30}",
        "/studies/x",
        "/nothing",
        "/studies/3/pair/qc.png",
        "/studies/1/pair/ct.npy",
        "/studies/1/pair/..%2fpair.json",
    ):
        answer = client.get(address)
        assert (answer.status_code, "<h1>" in answer.text) == (404, True), address


def test_an_index_that_cannot_be_read_is_said_in_words(tmp_path):
    with a_world(tmp_path / "root") as world, served(world.settings) as site:
        client = site.client()
        assert client.get("/held").status_code == 200
        path = world.layout.index
        path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
        path.write_bytes(b"no database " * 1000)
        for address in ("/held", "/studies"):
            answer = client.get(address)
            assert answer.status_code == 503
            assert "<h1>The index cannot be used" in answer.text
            assert "not a database" not in answer.text


def test_what_nobody_thought_of_is_a_page_without_details_for_strangers_too(
    world, tmp_path, monkeypatch, caplog
):
    def fail(*_: object) -> None:
        raise LookupError("PATIENT-7 in /secret")

    password = tmp_path / "password"
    password.write_text(quick_hash("a few good words"))
    password.chmod(0o600)
    guarded = world.settings.web.model_copy(update={"password_file": password})
    for web, what in ((world.settings.web, overview), (guarded, guard)):
        with served(world.settings.model_copy(update={"web": web})) as site:
            with monkeypatch.context() as patch:
                patch.setattr(what, "draw" if what is overview else "current_password", fail)
                answer = site.client().get("/")
            assert answer.status_code == 500
            assert "<h1>This page could not be made" in answer.text
            assert ('href="/held"' in answer.text) == (what is overview)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "LookupError" not in answer.text
            assert "PATIENT-7" not in answer.text
            assert site.client().get("/healthz").status_code == 200
    assert [one.message for one in caplog.records].count("page-failed") == 2


def test_the_overview_answers_before_the_first_start_and_the_others_say_what_to_do(tmp_path):
    settings = load_settings(root=tmp_path / "none", environ={})
    settings.layout.make_private()
    with served(settings) as site:
        client = site.client()
        assert "nothing ran here yet" in words_of(client, "/")
        answer = client.get("/studies")
        assert answer.status_code == 503
        assert "petct-ingest run" in answer.text
        make_world(settings.root).close()  # as it starts
        assert client.get("/studies").status_code == 200


# --- what they tell


@pytest.mark.both_databases
def test_the_overview_tells_what_needs_a_person_and_what_arrives(client):
    words = words_of(client, "/")
    assert "1 held study" in words
    assert "the study arrived under two PatientIDs" in words
    assert "1 file in quarantine" in words
    assert "PET/CT phantom pair ready SMITH^12345" in words
    assert "ct 12" in words
    assert "44 instances, 3 studies" in words
    # the table of the chart, for who cannot see it
    table = [int(n) for n in re.findall(r"\d\d:00 (\d+) \d+ \d+", words)]
    assert (len(table), sum(table)) == (24, 45)


@pytest.mark.both_databases
def test_a_study_tells_its_series_its_pair_and_its_life(client):
    words = words_of(client, "/studies/1")
    for told in (
        "Pair pair ready",
        "8 × 32 × 32 (C, H, W)",
        "suvbw",
        " kg",
        "CorrectedImage has ATTN",
        "8 of 8 (NumberOfSlices), no gap",
        "ct scout",
        "body overlap",
        "chosen",
        "Revision 1",
    ):
        assert told in words, told
    assert 'href="/held/1/choose"' in text_of(client, "/studies/1")
    life = ["The first instance is received", "is complete", "The pair is decided", "revision 1"]
    begin = words.index("From the first byte to the pair")
    places = [words.index(told, begin) for told in life]
    assert places == sorted(places)


def test_the_picture_and_the_provenance_are_those_of_the_pair(client, world):
    folder = world.layout.archive / world.rows(pair)[0].folder
    picture = client.get("/studies/1/pair/qc.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == (folder / "qc.png").read_bytes()
    provenance = client.get("/studies/1/pair/pair.json")
    assert provenance.content == (folder / "pair.json").read_bytes()
    assert provenance.headers["content-disposition"] == (
        'attachment; filename="pair-1-revision-1.json"'
    )
    assert "no-store" in picture.headers["cache-control"]


def test_no_link_leads_out_of_the_archive(world, tmp_path):
    layout = world.layout
    (layout.archive / "P" / "A").mkdir(parents=True)
    (tmp_path / "pair.json").write_text("{}")
    (layout.archive / "P" / "A" / "Auto-Paired").symlink_to(tmp_path)
    assert read_pair_file(layout, "P/A/Auto-Paired", "pair.json") is None
    (layout.archive / "P" / "B").mkdir()
    (layout.archive / "P" / "B" / "pair.json").symlink_to(tmp_path / "pair.json")
    assert read_pair_file(layout, "P/B", "pair.json") is None
    assert read_pair_file(layout, "../root", "stores.json") is None
    assert read_pair_file(layout, None, "pair.json") is None


@pytest.mark.both_databases
def test_held_studies_and_set_aside_files_lead_to_what_can_be_done(client, world):
    held = text_of(client, "/held")
    for action in ("wait", "choose", "force"):
        assert f'href="/held/{number_of(world, 2)}/{action}"' in held
    entry = next(row.entry for row in world.rows(arrival) if row.outcome == "quarantined")
    aside = text_of(client, "/quarantine")
    for action in ("retry", "drop"):
        assert f'href="/quarantine/{entry}/{action}"' in aside
        asked = client.get(f"/quarantine/{entry}/{action}")
        assert asked.status_code == 200
        assert "notes.dcm" in asked.text
    assert "not-dicom" in aside
    assert "notes.dcm" in aside
    assert entry not in text_of(client, f"/quarantine?behind={entry}")


@pytest.mark.both_databases
def test_sources_are_named_as_people_know_them(client, world):
    words = words_of(client, "/sources")
    assert "PACS>US@10.0.0.7" in words
    assert f"Folder {world.layout.inbox}, move" in words


# --- search


def found(client: Visitor, **asked: str) -> list[int]:
    """Search as the form does, and follow where it leads."""
    answer = client.submit("/studies", **asked)
    assert answer.status_code == 200
    for name in (*PATIENTS, *ACCESSIONS):
        assert name not in str(answer.url)
    return sorted({int(one) for one in re.findall(r'href="/studies/(\d+)"', answer.text)})


SEARCHES = (
    ({}, [1, 2, 3]),
    ({"term": "SMITH^12345"}, [1]),
    ({"term": "HELD*"}, [2]),
    ({"term": "ACC-0003-C"}, [3]),
    ({"term": "*phantom*"}, [1, 2]),
    ({"term": "SMITH"}, []),
    ({"state": "held"}, [2]),
    ({"state": "ready"}, [1]),
    ({"role": "pet_ac"}, [1, 2]),
    ({"source": "PACS"}, [3]),
    ({"since": "2001-01-01"}, [1, 2, 3]),
    ({"until": "2001-01-01"}, []),
    ({"since": "yesterday", "role": "nonsense", "behind": "x"}, [1, 2, 3]),
    ({"term": "*", "state": "held"}, [2]),
)


@pytest.mark.both_databases
def test_studies_are_found_by_what_is_known_of_them(client, world):
    wanted = [[number_of(world, place) for place in places] for _, places in SEARCHES]
    assert [found(client, **asked) for asked, _ in SEARCHES] == wanted


def test_a_term_in_an_address_is_not_asked_for(client):
    assert len(set(re.findall(r'href="/studies/(\d+)"', text_of(client, "/studies?term=x")))) == 3


STEPS = 100
MOST_STEPS = 10_000_000
"""Of SQLite's machine: a question that every study is asked, about 0.3 s on one core."""

FILL = """
with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000),
    one(i, at) as (select i, '2026-01-01T' || printf('%06d', i / 3) from n)
"""
"""Three studies come at the same moment."""

MANY = (
    """insert into study (id, study, "patient_ID", issuer_of_patient_id, study_description,
    two_patients, first_at, last_at)
    select i, '2.25.' || i, 'P' || i, '', '', 0, at, at from one""",
    """insert into series (id, study_id, series, series_description, modality, instances, source,
    subject, session, role_reasons, state, state_reasons, last_boot, last_monotonic, quiet,
    first_at, last_at) select i, i, '2.25.1.' || i, '', 'PT', 1, 'S', '', '', '[]',
    'complete', '[]', '', 0, 0, at, at from one""",
    """insert into pair (id, study_id, state, reasons, decision, generation, done_generation,
    failed_generation, wanted, revision, begun_boot, begun_monotonic)
    select i, i, 'ready', '[]', '{}', 1, 1, 0, '', 1, '', 0 from one""",
    """insert into folder (id, series_id, home, digits, accession_number, adopted)
    select i, i, 'P/A', '1/1/1/' || i, '', 0 from one where i <= 20000""",
    """insert into instance (series_id, folder_id, instance_uid, file_name, sop_class_uid,
    transfer_syntax_uid, size, sha256, dataset_sha256, subseries, facts, filed_at)
    select i, i, '2.25.9.' || i, '', '', '', 1, '', '', '', '{}', at from one where i <= 20000""",
    """insert into arrival (entry, instance_uid, source, outcome, size, received_at, at)
    select i, '2.25.9.' || i, 'S', 'filed', 1, at, at from one where i <= 20000""",
)


def test_a_page_of_a_hundred_thousand_studies_reads_no_more_than_the_page(tmp_path):
    with closing(make_world(tmp_path / "root")) as world:
        with world.index.write() as connection:
            for statement in MANY:
                connection.exec_driver_sql(FILL + statement)
        first, steps_first = counted(world, None)
        assert first[:4] == [100_000, 99_999, 99_998, 99_997]
        middle, steps_middle = counted(world, 50_000)
        assert middle == list(range(49_999, 49_949, -1))
        assert steps_middle < 3 * steps_first
        none, steps_rare = counted(world, None, WantedStudies(state="held"))
        assert (none, steps_rare < 3 * steps_first) == ([], True)
        for asked in (
            WantedStudies(state="ready"),
            WantedStudies(source="S"),
            WantedStudies(source="nobody"),
            WantedStudies(term="P77777"),
        ):
            _, steps = counted(world, 90_000, asked)
            assert steps * STEPS < MOST_STEPS, f"{asked}: {steps * STEPS} steps"
        for name in ("P77777", "nobody"):
            _, steps = counted(world, None, WantedStudies(term=name))
            assert steps < steps_first, "who is called so is found without reading all others"
        life, steps = with_steps(world, lambda connection: life_of_study(connection, 7))
        assert life.first_received
        assert steps < steps_first, "a study's life reads what is not its own"


def counted(world: World, behind: int | None, wanted: WantedStudies = WantedStudies()):  # noqa: B008
    """Return the ids of a page, and how many hundred steps of SQLite's machine it took."""
    found, steps = with_steps(world, lambda read: page_of_studies(read, wanted, 50, behind))
    return [one["id"] for one in found], steps


def with_steps(world: World, ask):
    """Return an answer of the index, and how many hundred steps of SQLite's machine it took."""
    steps = [0]

    def step() -> int:
        steps[0] += 1
        return 0

    with world.index.read() as connection:
        raw = connection.connection.driver_connection
        raw.set_progress_handler(step, STEPS)
        found = ask(connection)
        raw.set_progress_handler(None, 0)
    return found, steps[0]


# --- what changes


@pytest.mark.both_databases
def test_a_page_hears_of_what_concerns_it(world):
    installation = Installation(world.settings)
    pulse = Pulse(installation)
    first, second = number_of(world, 1), number_of(world, 2)
    with closing(installation), world.index.write() as connection:
        before = {one: newest_change(connection, one) for one in (None, first, second)}
        insert_event(connection, "wait", "2026-01-01T00:00:00.000Z", study_id=second, by="a test")
        after = {one: newest_change(connection, one) for one in (None, first, second)}
    assert [before[one] == after[one] for one in (None, first, second)] == [False, True, False]
    with closing(installation):

        async def first_words() -> list[str]:
            words = []
            stream = _stream(pulse, second)
            words.append(await anext(stream))
            pulse.stopping = True
            return words + [word async for word in stream]

        assert asyncio.run(first_words()) == ["retry: 5000\n\n"]
        assert pulse.streams == 0


def test_pages_that_ask_all_at_once_are_no_more_than_may_listen(world, monkeypatch):
    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    monkeypatch.setattr(events, "_LOOK_SECONDS", 0.01)

    async def listening(pulse: Pulse) -> int:
        streams = [_stream(pulse, None) for _ in range(4)]
        for one in streams:
            await anext(one)
        following = [asyncio.ensure_future(anext(one, "ended")) for one in streams]
        await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
        found = pulse.streams
        pulse.stopping = True
        assert await asyncio.gather(*following) == ["ended"] * 4
        return found

    with closing(Installation(world.settings)) as installation:
        pulse = Pulse(installation)
        assert asyncio.run(listening(pulse)) == 2
    assert pulse.streams == 0


@pytest.mark.both_databases
def test_hours_are_counted_once_and_old_ones_forgotten(tmp_path):
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

    def arrive(connection, entry: str, hours_ago: float, outcome: str = "filed") -> None:
        at = (now - timedelta(hours=hours_ago)).isoformat(timespec="milliseconds")
        connection.execute(arrival.insert().values(
            entry=entry, source="s", outcome=outcome, at=at.replace("+00:00", "Z")))  # fmt: skip

    with closing(make_world(tmp_path / "root")) as world, world.index.write() as connection:
        for number in range(40):
            arrive(connection, f"old-{number}", 100 - number)
        arrive(connection, "a", 23.1)
        arrive(connection, "b", 2)
        arrive(connection, "c", 2, "duplicate")
        counts = HourCounts()
        hours = counts.update(connection, now)
        assert len(hours) == 24
        assert [(hour.received, hour.filed) for hour in hours if hour.received] == [(1, 1), (2, 1)]
        arrive(connection, "d", 0)
        hours = counts.update(connection, now)
        assert sum(hour.received for hour in hours) == 4
        assert hours[-1].received == 1
        later = counts.update(connection, now + timedelta(hours=1))
        assert sum(hour.received for hour in later) == 3


# --- small decisions


def test_the_chart_reaches_the_highest_hour_and_labels_the_newest():
    hours = [Hour(f"2026-01-01T{n:02}:00:00.000Z", n * 10, n * 5, n == 23) for n in range(24)]
    chart = draw(hours)
    assert [round_up(n) for n in (0, 10, 11, 230, 1001)] == [10, 10, 20, 500, 2000]
    assert chart.lines[-1][1] == 500
    heights = [one.received.height for one in chart.hours]
    assert heights == sorted(heights)
    assert chart.hours[-1].labelled
    assert all(one.received.y + one.received.height == pytest.approx(chart.base, abs=0.2)
               for one in chart.hours)  # fmt: skip


def test_durations_and_sizes_are_told_in_units_that_fit():
    told = [seconds(n) for n in (0.04, 9.96, 59.4, 60, 200, 7500, 100_000)]
    assert told == ["0.0 s", "10.0 s", "59 s", "1 min", "3 min 20 s", "2 h 5 min", "1 d 3 h"]
    assert [size(n) for n in (0, 999, 1000, 525_668, 2.5e9, 9.99e14)] == [
        "0 bytes", "999 bytes", "1.0 KB", "526 KB", "2.5 GB", "999 TB"]  # fmt: skip


def test_every_setting_is_shown_with_its_origin_and_no_secret(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('root = "r"\n[receiver]\nport = 104\n[[sources]]\ncalling_ae = "PACS1"\n')
    environ = {
        "PETCT_INGEST_REDIS__URL": "rediss://user:hunter2@queues.example:6379/0",
        "PETCT_INGEST_NOTIFY__WEBHOOK__SECRET_FILE": "signing",
        "PETCT_INGEST_NOTIFY__WEBHOOK__URL": "https://hooks.example/T0/hunter2?token=hunter2",
    }
    settings = load_settings(config, environ=environ)
    told = {one.key: one for one in explain(settings, config, environ)}
    assert told["receiver.port"].value == "104"
    assert told["receiver.port"].origin is Origin.FILE
    assert told["redis.url"].value == '"rediss://…@queues.example:6379/0"'
    assert told["redis.url"].origin is Origin.ENVIRONMENT
    assert told["receiver.host"].origin is Origin.DEFAULT
    assert told["receiver.host"].meaning.startswith("the address to listen on")
    assert told["sources"].value == '[{ calling_ae = "PACS1" }]'
    assert "hunter2" not in " ".join(one.value for one in told.values())
    named = load_settings(root=tmp_path, environ={}, overrides={"receiver": {"port": 4}})
    by = {one.key: one.origin for one in explain(named, None, {})}
    assert by["root"] is by["receiver.port"] is Origin.COMMAND_LINE


# --- the role


def test_the_page_waits_for_its_port_and_ends_at_once_though_somebody_listens(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        web = world.settings.web.model_copy(update={"port": port})
        settings: Settings = world.settings.model_copy(update={"web": web})
        stop = threading.Event()
        role = threading.Thread(target=run_web, args=(settings, stop))
        role.start()
        bound = port_file(settings.layout)
        assert not bound.exists()
    wait_until(bound.exists, 20, "the page listens")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/events?study=1", timeout=10) as stream:
        assert stream.readline() == b"retry: 5000\n"
        stop.set()
        role.join(10)
        assert not role.is_alive()
    assert not bound.exists()
