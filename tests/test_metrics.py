"""/metrics: complete, in Prometheus' words, whoever was killed meanwhile, and about no patient."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import missing
from filing_world import (
    SENDER,
    World,
    a_world,
    die,
    end_of_child,
    in_child,
    other_pixels,
    small_instances,
    start_child,
)
from installation import dcmtk
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from web_serving import served

from config.layout import Layout
from config.settings import Settings
from daemon import working
from daemon.cli import roles
from daemon.observing.gauges import Rarely
from daemon.receiver.server import Receiver
from workers import jobs
from workers.filing.rows import insert_event
from workers.index import tallying
from workers.index.engine import MetadataIndex
from workers.index.tallying import EventTally
from workers.measuring import Counted, Measures, Timed, Totals, is_counting, read_measures

PREFIX = "petct_ingest_"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    spool = {"minimum_free_mb": 1, "minimum_free_inodes": 1}
    with a_world(tmp_path / "root", spool=spool) as one:
        yield one


def scraped(settings: Settings, **headers: str) -> httpx.Response:
    with served(settings) as page:
        return page.client().get("/metrics", headers=headers)


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels, without our prefix."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            found[f"{one.name.removeprefix(PREFIX)}{{{labels}}}".removesuffix("{}")] = one.value
    return found


def received(layout: Layout) -> int:
    return read_measures(layout).counts[Counted.RECEIVED, ""]


# what a process counts ----------------------------------------------------------------------------


def test_totals_go_on_where_the_last_process_ended_even_killed(settings: Settings) -> None:
    def counts_and_dies() -> None:
        measures = Measures(settings.layout, "receive")
        measures.count(Counted.RECEIVED, by=10)
        measures.observe(Timed.RECEIVE, 0.02)
        measures.flush()
        measures.count(Counted.RECEIVED, by=5)  # lost with the process
        die()

    for round_ in range(1, 4):
        assert in_child(counts_and_dies) == -9
        assert received(settings.layout) == 10 * round_
    assert len(list(settings.layout.metrics.glob("*.json"))) == 1, "no file for each process"
    assert read_measures(settings.layout).sums[Timed.RECEIVE] == pytest.approx(0.06)


def test_processes_at_once_count_beside_each_other(settings: Settings) -> None:
    def count() -> None:
        with Measures(settings.layout, "filing") as measures:
            for _ in range(200):
                measures.count(Counted.RECEIVED)
                measures.flush()

    for child in [start_child(count) for _ in range(4)]:
        assert end_of_child(child) == 0
    assert received(settings.layout) == 800
    assert len(list(settings.layout.metrics.glob("filing-*.json"))) <= 4


def test_the_starts_of_each_worker_are_counted_by_themselves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[str] = []
    monkeypatch.setattr(working, "run_worker", lambda _, queue, **_kind: worked.append(queue))
    for name in ("filing", "filing-2", "filing-2"):
        roles.work(name, root=settings.root)
    assert worked == ["filing"] * 3
    counts = read_measures(settings.layout).counts
    assert (counts[Counted.STARTS, "filing"], counts[Counted.STARTS, "filing-2"]) == (1, 2)


def test_totals_that_were_cut_begin_anew_and_what_cannot_be_written_is_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = Measures(settings.layout, "receive")
    measures.count(Counted.RECEIVED)
    measures.flush()
    measures.close()
    (settings.layout.metrics / "receive-1.json").write_text('{"counts": [["rec')
    assert received(settings.layout) == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Measures(settings.layout, "receive") as again:
        again.count(Counted.RECEIVED, by=2)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            again.flush()
        assert received(settings.layout) == 0
        again.flush()
        assert received(settings.layout) == 2


def test_what_another_version_counted_is_left_out() -> None:
    text = '{"counts": [["moons", "", 3], ["received", "", 2]], "times": {"file": [[1], 2.0]}}'
    found = Totals.from_json(text)
    assert found.counts == {(Counted.RECEIVED, ""): 2}
    assert found.classes == {}
    for damaged in ("", "[]", "null", '{"counts": 3}', '{"counts": [[1]], "times": {}}'):
        with pytest.raises(ValueError):
            Totals.from_json(damaged)


def test_it_is_known_whether_a_role_runs(settings: Settings) -> None:
    assert not is_counting(settings.layout, "receive")
    with Measures(settings.layout, "receive") as measures:
        measures.flush()
        assert is_counting(settings.layout, "receive")
        assert not is_counting(settings.layout, "watch")
    assert not is_counting(settings.layout, "receive")


def test_what_is_slow_is_asked_rarely() -> None:
    now, asked = [0.0], []

    def ask() -> int:
        asked.append(now[0])
        now[0] += 2.0
        return len(asked)

    rarely = Rarely(ask, lambda: now[0])
    assert rarely.get() == 1
    now[0] = 41.9
    assert rarely.get() == 1
    now[0] = 42.0
    assert rarely.get() == 2


# what the index tells -----------------------------------------------------------------------------


def test_each_event_is_counted_once_and_an_index_made_anew_begins_anew(world: World) -> None:
    tally = EventTally()
    with world.index.write() as connection:
        for number in range(3):
            insert_event(connection, "filed", "2026", instances=100 + number)
        insert_event(connection, "association-rejected", "2026", reason="who?", count=7)
        insert_event(connection, "override", "2026", by="me")
    counts = tally.update(world.index)
    assert counts == {("filed", ""): 303, ("association-rejected", ""): 7}
    with world.index.write() as connection:
        insert_event(connection, "conflict", "2026", code="conflict")
    assert tally.update(world.index)["conflict", "conflict"] == 1
    assert tally.update(world.index)["filed", ""] == 303
    with a_world(world.layout.root.parent / "other") as other:
        assert not tally.update(other.index)


@pytest.mark.both_databases
def test_what_was_counted_is_noted_and_a_later_start_reads_only_what_came_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallying, "_NOTED_EVENTS", 10)
    monkeypatch.setattr(tallying, "_PAGE_ROWS", 4)
    with world.index.write() as connection:
        for number in range(21):
            insert_event(connection, "conflict", "2026", code=f"code-{number % 2}")
    counts = EventTally().update(world.index)
    assert sorted(counts.values()) == [10, 11]
    read: list[int] = []
    really = EventTally._count_page

    def counted(self: EventTally, index: MetadataIndex, until: int) -> int:
        read.append(self._after)
        return really(self, index, until)

    monkeypatch.setattr(EventTally, "_count_page", counted)
    again = EventTally()
    assert again.update(world.index) == counts
    assert read, "what came behind the note is read"
    assert min(read) >= 12
    read.clear()
    monkeypatch.setattr(tallying, "_COUNTED", (*tallying._COUNTED, "another-kind"))
    assert EventTally().update(world.index) == counts
    assert min(read) == 0, "another version counted other events"


def test_codes_that_are_none_of_ours_make_no_endless_list(world: World) -> None:
    with world.index.write() as connection:
        for number in range(300):
            insert_event(connection, "quarantined", "2026", code=f"code-{number}")
    counts = EventTally().update(world.index)
    assert len(counts) <= 101
    assert sum(counts.values()) == 300


# the page -----------------------------------------------------------------------------------------


def test_a_scrape_tells_what_was_received_filed_set_aside_and_waits(
    world: World, tmp_path: Path
) -> None:
    first, second, third = small_instances(tmp_path / "made", 3)
    measures = Measures(world.layout, "receive")
    measures.count(Counted.RECEIVED, by=4)
    measures.count(Counted.REFUSED, "no-room", by=2)
    measures.observe(Timed.RECEIVE, 0.003)
    measures.close()
    place = jobs.Workplace(world.settings)
    with contextlib.closing(place):
        world.put({"a": first, "b": second}, SENDER)
        jobs.file_now(place, world.waiting())
        world.put({"c": other_pixels(first), "d": b"no DICOM", "e": first, ".DS_Store": b"x"})
        jobs.file_now(place, world.waiting())
    world.put({"f": third})
    found = samples(scraped(world.settings).text)
    expected = {
        "received_total": 4,
        "refused_total{reason=no-room}": 2,
        "receive_seconds_count": 1,
        "receive_seconds_bucket{le=0.0025}": 0,
        "receive_seconds_bucket{le=0.005}": 1,
        "filed_total": 2,
        "duplicates_total": 1,
        "skipped_total": 1,
        "set_aside_total{code=conflict,outcome=conflict}": 1,
        "set_aside_total{code=not-dicom,outcome=quarantined}": 1,
        "quarantine_files{code=not-dicom,outcome=quarantined}": 1,
        "file_seconds_count": 6,
        "file_seconds_bucket{le=+Inf}": 6,
        "spool_entries": 1,
        "queue_up": 0,
        "ready{check=receiver}": 0,
        "ready{check=archive}": 1,
        "ready{check=index}": 1,
        "intake_refusing{intake=receiver}": 0,
        "pairs{state=held}": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert 0 <= found["spool_oldest_seconds"] < 60
    assert found["disk_free_bytes{store=archive}"] > 0


def test_promtool_finds_nothing_to_say(world: World, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        missing("promtool of Debian's package prometheus")
    world.put({"a": b"no DICOM"})
    world.file()
    with Measures(world.layout, "receive") as measures:
        measures.count(Counted.STARTS, "receive")
        measures.count(Counted.REFUSED, "too-large")
    text = scraped(world.settings).content
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scraper_may_ask_for_openmetrics(world: World) -> None:
    answer = scraped(world.settings, Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {one.name for one in openmetrics.text_string_to_metric_families(answer.text)}
    assert f"{PREFIX}received" in names


def test_a_scrape_works_without_an_index_and_says_so(settings: Settings) -> None:
    found = samples(scraped(settings).text)
    assert found["ready{check=index}"] == 0
    assert "filed_total" not in found


def test_a_scrape_works_without_spool_and_archive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("daemon.observing.gauges.waiting_entries", broken)
    world.layout.archive.rename(world.layout.root / "away")
    found = samples(scraped(world.settings).text)
    assert found["ready{check=archive}"] == 0
    assert "spool_entries" not in found
    assert "disk_free_bytes{store=archive}" not in found


def test_no_label_comes_from_outside(world: World, tmp_path: Path) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    world.put({"Doe^Jane/a": content, "b": b"no DICOM"}, SENDER)
    world.file()
    with world.index.write() as connection:
        insert_event(connection, "association-rejected", "2026", source="EVIL@6.6.6.6", reason="x")
    text = scraped(world.settings).text
    for name in ("PACS", "EVIL", "6.6.6", "10.0.0.7", "Doe", "PHANTOM", "1.2.826", str(tmp_path)):
        assert name not in text
    labels = set(re.findall(r'(\w+)="', text))
    assert labels <= {
        "version", "python", "reason", "role", "le", "outcome", "code", "at", "state", "queue",
        "store", "intake", "check",
    }  # fmt: skip


def test_a_real_sender_is_counted_and_what_it_was_refused(
    settings: Settings, tmp_path: Path
) -> None:
    paths = []
    for number, content in enumerate(small_instances(tmp_path / "made", 3)):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(content)

    def send() -> subprocess.CompletedProcess[Any]:
        with Receiver(settings, lambda _: None) as receiver:
            command = [dcmtk("storescu"), "127.0.0.1", str(receiver.port), *map(str, paths)]
            environment = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
            return subprocess.run(command, env=environment, timeout=60, check=False)

    assert send().returncode == 0
    (settings.layout.spool_private / "id").unlink()  # its disk is gone
    send()
    totals = read_measures(settings.layout)
    assert totals.counts[Counted.RECEIVED, ""] == 3
    assert totals.counts[Counted.RECEIVED_BYTES, ""] == pytest.approx(3 * 1200, rel=0.5)
    assert totals.counts[Counted.REFUSED, "no-room"] >= 1
    assert sum(totals.classes[Timed.RECEIVE]) == 3


def test_scrapes_at_once_wait_for_each_other_and_agree(world: World) -> None:
    with world.index.write() as connection:
        for _ in range(1000):
            insert_event(connection, "filed", "2026", instances=3)
    with served(world.settings) as page:
        clients = [page.client() for _ in range(4)]
        texts: list[str] = []
        threads = [
            threading.Thread(target=lambda one=one: texts.append(one.get("/metrics").text))
            for one in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [samples(text)["filed_total"] for text in texts] == [3000.0] * 4
