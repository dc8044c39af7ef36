"""What a person decides on the web page: the same as on the command line, once, and recorded."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import pytest
from filing_world import World, a_world, encoded, tiny
from running import wait_until
from typer.testing import CliRunner
from web_serving import Served, Visitor, served

from daemon.cli.app import app
from daemon.sweeper import Sweeper
from daemon.web.actions.acting import Undone
from daemon.web.actions.held import _override
from workers import clock
from workers.completeness.judging import judge_studies
from workers.completeness.overriding import override_pair
from workers.filing import releasing
from workers.filing.journal import read_facts
from workers.index.queries import list_set_aside
from workers.index.tables import event, pair
from workers.pairing.evidence import Override
from workers.phantom.study import PhantomSpec, make_study

SPEC = PhantomSpec(size="tiny")
AWAY = {"redis": {"url": "unix:///nonexistent.sock"}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two files in quarantine."""
    with a_world(tmp_path / "root", **AWAY) as one:
        one.put({"<b>Doe</b>/1": b"no DICOM", "2": b"neither"})
        one.file()
        yield one


@pytest.fixture
def held(world: World) -> World:
    """And a study whose PET lacks a slice."""
    made = make_study(SPEC)
    files = [
        encoded(made.named(name).dataset(number))
        for name, count in (("PET AC", 7), ("CT IMAGES", 12))
        for number in range(count)
    ]
    world.put({str(number): content for number, content in enumerate(files)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    Sweeper(world.index, world.settings).judge_quiet_series(clock.monotonic() + 1000)
    assert the_pair(world).state == "held"
    return world


@pytest.fixture
def page(world: World) -> Iterator[Served]:
    with served(world.settings) as one:
        yield one


def the_pair(world: World):
    (row,) = world.rows(pair)
    return row


def kinds(world: World) -> list[str]:
    return [row.kind for row in world.rows(event)]


def entries(world: World) -> list[str]:
    with world.index.read() as connection:
        return [one["entry"] for one in list_set_aside(connection)]


def form_of(visitor: Visitor, path: str) -> dict[str, str]:
    """The hidden fields of a confirmation."""
    fields = re.findall(r'type="hidden" name="(\w+)" value="(\w*)"', visitor.get(path).text)
    return dict(fields)


def press(visitor: Visitor, path: str, form: dict[str, str], **fields: object) -> str:
    """Send a form; return what the next page says."""
    answer = visitor.post(path, data=form | fields, headers={"Origin": visitor.origin})
    assert answer.status_code == 303, answer.text
    assert "?" not in answer.headers["location"]
    shown = visitor.get("/upload").text
    return unescape(" ".join(re.findall(r'role="status">([^<]+)<', shown)))


def do(visitor: Visitor, path: str, **fields: object) -> str:
    return press(visitor, path, form_of(visitor, path), **fields)


# held ---------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_held_study_is_forced_once_and_the_second_click_changes_nothing(held, page):
    visitor, path = page.client(), f"/held/{the_pair(held).study_id}/force"
    form = form_of(visitor, path)
    assert "pair is now pending" in press(visitor, path, form)
    forced = the_pair(held)
    assert (forced.state, json.loads(forced.override)["forced"]) == ("pending", True)
    assert "Nothing was changed" in press(visitor, path, form)
    assert the_pair(held) == forced
    facts = [fact for fact in read_facts(held.layout.archive) if fact["kind"] == "override"]
    assert len(facts) == 1
    (said,) = [row for row in held.rows(event) if row.kind == "override"]
    assert json.loads(said.details)["by"] == "web 127.0.0.1"


@pytest.mark.both_databases
def test_two_clicks_at_once_are_one(held, page):
    visitor, path = page.client(), f"/held/{the_pair(held).study_id}/wait"
    form = form_of(visitor, path)
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: visitor.post(path, data=form), range(2)))
    assert kinds(held).count("wait") == 1


def test_what_was_decided_meanwhile_is_not_overruled(held, page):
    visitor, path = page.client(), f"/held/{the_pair(held).study_id}/choose"
    form = form_of(visitor, path)
    override_pair(held.index, held.settings, SPEC.uid(), Override(weight_kg=70.0), "somebody")
    assert "not as it was shown" in press(visitor, path, form, weight_kg="80")
    assert json.loads(the_pair(held).override)["weight_kg"] == 70.0


def test_a_choice_is_recorded_in_the_units_of_the_header(held, page):
    made = make_study(SPEC)
    visitor, path = page.client(), f"/held/{the_pair(held).study_id}/choose"
    ct = made.named("CT IMAGES").series_uid
    assert ct in visitor.get(path).text
    do(visitor, path, ct=ct, weight_kg="71,5", dose_mbq="370")
    said = json.loads(the_pair(held).override)
    assert (said["ct"], said["weight_kg"], said["dose_bq"]) == (ct, 71.5, 370e6)
    assert said["forced"] is False


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "nothing was chosen"),
        ({"ct": "9.9.9"}, "none of this study"),
        ({"pet": "' OR 1=1 --"}, "none of this study"),
        ({"weight_kg": "nan"}, "no weight"),
        ({"weight_kg": "0"}, "no weight"),
        ({"dose_mbq": "inf"}, "no dose"),
        ({"dose_mbq": "<script>"}, "no dose"),
    ],
)
def test_a_choice_that_is_none_changes_nothing(fields, words):
    shown = {"series": [{"series": "1.2.3"}]}
    with pytest.raises(Undone, match=words):
        _override(fields, shown, forced=False)


def test_the_commands_tell_programs_what_the_pair_became(held):
    for action in ("choose --weight-kg 70", "forget", "wait", "force"):
        name, *options = action.split()
        words = ["held", name, SPEC.uid(), *options, "--root", str(held.settings.root), "--json"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (action, done.output)
        told = json.loads(done.stdout)
        assert (told["study"], told["state"]) == (SPEC.uid(), the_pair(held).state)
    assert the_pair(held).state == "pending"


def test_waiting_longer_starts_the_time_anew_and_says_so(held, page):
    visitor = page.client()
    assert "Recorded" in do(visitor, f"/held/{the_pair(held).study_id}/wait")
    assert kinds(held).count("wait") == 1


def test_a_decision_on_nothing_is_not_found(page):
    visitor = page.client()
    for path in ("/held/99/force", "/held/1/burn", "/held/x/force", "/quarantine/x/retry",
                 f"/held/{2**63}/force", f"/studies/{'9' * 5000}"):  # fmt: skip
        assert visitor.get(path).status_code == 404


def test_a_description_with_markup_stays_text(tmp_path):
    with a_world(tmp_path / "root", **AWAY) as world:
        image = tiny("PET AC")
        image.SeriesDescription = "<script>alert(1)</script>"
        image.PatientID = "<img src=x>"
        world.put({"1": encoded(image)})
        report = world.file()
        judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
        with served(world.settings) as page:
            shown = page.client().get(f"/held/{the_pair(world).study_id}/force").text
    assert "&lt;script&gt;alert(1)" in shown
    assert "&lt;img src=x&gt;" in shown
    assert "<img" not in shown


# quarantine ---------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_file_is_retried_once_and_the_second_click_says_so(world, page):
    visitor, (entry, _) = page.client(), entries(world)
    path = f"/quarantine/{entry}/retry"
    form = form_of(visitor, path)
    assert "waits to be filed again" in press(visitor, path, form)
    assert len(world.waiting()) == 1
    assert "no longer in quarantine" in press(visitor, path, form)
    assert len(world.waiting()) == 1
    world.file_all()
    assert len(entries(world)) == 2  # it is no DICOM file, still
    assert kinds(world).count("retried") == 1
    world.check()


def test_a_file_is_deleted_for_good_after_a_page_that_asks(world, page):
    visitor, (entry, other) = page.client(), entries(world)
    path = f"/quarantine/{entry}/drop"
    assert "cannot be brought back" in visitor.get(path).text
    assert entries(world) == [entry, other]
    form = form_of(visitor, path)
    assert "deleted" in press(visitor, path, form)
    assert "no longer in quarantine" in press(visitor, path, form)
    assert entries(world) == [other]
    assert visitor.get(path).status_code == 404


@pytest.mark.both_databases
def test_all_are_retried_behind_the_page_and_what_cannot_be_read_stays(world, page):
    visitor, (entry, _) = page.client(), entries(world)
    (world.layout.quarantine / f"{entry}.json").unlink()
    assert "File all 2 again?" in visitor.get("/quarantine/retry-all").text
    assert do(visitor, "/quarantine/retry-all") == "They are given back, one after the other."
    wait_until(lambda: not page.services.retrying.progress.running, 10, "the end of it")
    shown = " ".join(visitor.get("/quarantine").text.split())
    assert "1 went back to be filed. 1 stay: they could not be read." in shown
    assert entries(world) == [entry]


def test_the_command_goes_on_past_what_cannot_be_read_as_the_page_does(world):
    (entry, _) = entries(world)
    (world.layout.quarantine / f"{entry}.json").unlink()
    words = ["quarantine", "retry", "--all", "--root", str(world.settings.root)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, len(world.waiting())) == (0, 1)
    assert "1 wait to be filed again\n1 stay: they could not be read" in done.stdout
    assert entries(world) == [entry]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(done.stdout) == {"given_back": 0, "left": 1}


def test_one_run_through_the_quarantine_goes_on_at_a_time_and_ends_with_the_page(
    world, page, monkeypatch
):
    monkeypatch.setattr(releasing, "_A_PAGE", 1)
    offered, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def offer(_: object) -> None:
        offered.release()
        go_on.acquire(timeout=20)

    visitor, retrying = page.client(), page.services.retrying
    monkeypatch.setattr(retrying, "_offer", offer)
    do(visitor, "/quarantine/retry-all")
    assert offered.acquire(timeout=10)
    shown = visitor.get("/quarantine").text
    assert 'max="2" value="0"' in shown
    assert 'href="/quarantine/retry-all"' not in shown
    assert do(visitor, "/quarantine/retry-all") == "They are given back already."
    with ThreadPoolExecutor(1) as stopping:
        ended = stopping.submit(retrying.close)
        wait_until(retrying._stopping.is_set, 10, "the stop")
        go_on.release()
        ended.result(20)
    assert (retrying.progress.given, retrying.progress.trouble) == (1, "the page was stopped")
    assert len(entries(world)) == 1


def test_what_comes_into_quarantine_meanwhile_is_left_there(world):
    seen = []
    for name in releasing.retry_all(world.index, world.layout):
        world.file_all()  # it is no DICOM file, still
        seen.append(name)
    assert len(seen) == len(entries(world)) == 2


def test_an_action_without_the_form_s_token_is_not_done(held, world, page):
    visitor = page.client()
    study, (entry, _) = the_pair(world).study_id, entries(world)
    for path in (f"/held/{study}/force", f"/quarantine/{entry}/drop", "/quarantine/retry-all"):
        form = form_of(visitor, path) | {"csrf": "0" * 64}
        assert visitor.post(path, data=form).status_code == 403
    assert len(entries(world)) == 2
    assert the_pair(world).override is None


def test_words_for_one_visitor_are_shown_to_it_once_and_to_nobody_else(world, page):
    visitor, other = page.client(), page.client()
    other.token("/upload")
    path = f"/quarantine/{entries(world)[0]}/drop"
    visitor.post(path, data=form_of(visitor, path), headers={"Origin": visitor.origin})
    assert "It is deleted" not in other.get("/upload").text
    assert "It is deleted" in visitor.get("/upload").text
    assert "It is deleted" not in visitor.get("/upload").text
