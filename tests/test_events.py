"""The audit: from where and when each instance came, and what became of it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import PROJECT
from filing_world import (
    SENDER,
    World,
    a_world,
    changed,
    encoded,
    other_pixels,
    small_instances,
    uid_of,
)
from running import Running, petct
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.cli.escaping import shown
from daemon.cli.events import NothingKnown, in_words, read_time
from workers.completeness.judging import judge_studies
from workers.completeness.overriding import override_pair
from workers.filing.releasing import drop_entry, retry_entry
from workers.filing.rows import insert_event
from workers.index import history
from workers.index.history import Wanted, events_after, life_of, newest_events
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival, event, pair, study
from workers.pairing import build
from workers.pairing.evidence import Override
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

pytestmark = pytest.mark.both_databases

PATIENT = "PHANTOM-0001"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


def life(world: World, content: bytes) -> list[dict[str, Any]]:
    with world.index.read() as connection:
        return life_of(connection, uid_of(content))


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [one["kind"] for one in told]


def shown_by(world: World, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["events", "--root", str(world.layout.root), *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_an_instance_that_was_filed_has_its_source_and_both_times(world: World) -> None:
    before = datetime.now(UTC)
    (content,) = small_instances(world.layout.root.parent / "made", 1)
    world.put({"a": content}, SENDER)
    world.file_all()
    received, filed = life(world, content)
    assert (received["kind"], filed["kind"]) == ("received", "filed")
    assert received["source"] == filed["source"] == SENDER.key
    times = [datetime.fromisoformat(one["at"]).timestamp() for one in (received, filed)]
    assert before.timestamp() - 0.1 <= times[0] <= times[1] <= datetime.now(UTC).timestamp()


def test_each_further_arrival_is_told_with_what_became_of_it(world: World, tmp_path: Path) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    variant = changed(content, StudyDescription="another")
    for file in (content, content, variant, other_pixels(content)):
        world.put({"a": file})
        world.file_all()
    told = life(world, content)
    assert [kind for kind in kinds(told) if kind != "received"] == [
        "filed", "duplicate", "variant", "conflict",
    ]  # fmt: skip
    assert kinds(told).count("received") == 4
    said = {one["kind"]: one["details"] for one in told}
    assert said["duplicate"]["reason"] == "equal bytes"
    assert "(0008,1030)" in said["variant"]["reason"]
    assert said["conflict"]["code"] == "conflict"


def test_what_was_set_aside_keeps_its_history_when_it_is_retried_and_dropped(
    world: World, tmp_path: Path
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    _, second = world.put({"1": content, "2": other_pixels(content)})
    world.file_all()
    again = retry_entry(world.index, world.layout, second.identifier, "anna")
    world.file_all()
    drop_entry(world.index, world.layout, again.identifier, "bert")
    told = life(world, content)
    assert [kind for kind in kinds(told) if kind != "received"] == [
        "filed", "conflict", "retried", "conflict", "dropped",
    ]  # fmt: skip
    said = {one["kind"]: one["details"] for one in told}
    assert said["retried"] == {"by": "anna", "again": again.identifier}
    assert said["dropped"] == {"by": "bert"}


def test_what_replaced_another_is_told(world: World, tmp_path: Path) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    for file in (content, other_pixels(content)):
        world.put({"a": file})
        world.file_all(duplicates="replace")
    assert [kind for kind in kinds(life(world, content)) if kind != "received"] == [
        "filed", "replaced",
    ]  # fmt: skip


def test_a_quarantined_entry_and_a_study_with_duplicates_have_events(
    world: World, tmp_path: Path
) -> None:
    files = small_instances(tmp_path / "made", 3)
    for _ in range(2):
        world.put({str(number): file for number, file in enumerate(files)}, SENDER)
        world.file_all()
    (letter,) = world.put({"letter": b"Dear colleague"})
    world.file_all()
    told = {one["kind"]: one for one in newest_events(world.index, Wanted(), 100)}
    assert told["quarantined"]["entry"] == letter.identifier
    assert told["quarantined"]["details"] == {"code": "not-dicom"}
    assert told["duplicate"]["details"] == {"instances": 3}
    assert told["duplicate"]["source"] == SENDER.key
    assert told["duplicate"]["study"] == told["filed"]["study"]


@pytest.fixture
def paired(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[World, bytes, bytes]:
    """A study with a pair of revision 1; an instance of it, and one that is not in the pair."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")
    made = make_study(PhantomSpec(size="tiny"))
    ct, pet, nac = (made.named(name) for name in ("CT IMAGES", "PET AC", "PET NAC"))
    files = {f"{s.name}/{n}": encoded(s.dataset(n)) for s in (ct, pet, nac) for n in range(s.count)}
    world.put(files)
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    (row,) = world.rows(pair)
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    return world, files["PET AC/0"], files["PET NAC/0"]


def test_the_pairs_that_an_instance_is_in_are_told_with_their_revision(
    paired: tuple[World, bytes, bytes],
) -> None:
    world, inside, outside = paired
    (made,) = [one for one in life(world, inside) if one["kind"] == "pair-ready"]
    assert made["details"]["revision"] == 1
    assert "pair-ready" not in kinds(life(world, outside))
    (study_uid,) = [row.study for row in world.rows(study)]
    override_pair(world.index, world.settings, study_uid, Override(weight_kg=99.0), "anna")
    (row,) = world.rows(pair)
    make_pair(world.index, world.settings, row.id, row.generation)
    told = life(world, inside)
    assert [one["details"]["revision"] for one in told if one["kind"] == "pair-ready"] == [1, 2]
    (said,) = [one for one in told if one["kind"] == "override"]
    assert said["details"] == {"by": "anna", "weight_kg": 99.0}


def test_an_instance_that_came_after_the_pair_was_made_is_not_in_it(
    paired: tuple[World, bytes, bytes],
) -> None:
    world, inside, _ = paired
    late = changed(inside, SOPInstanceUID="1.2.3.4")
    world.put({"late": late})
    world.file_all()
    assert kinds(life(world, late)) == ["received", "filed"]


def test_no_patient_is_in_what_events_prints(paired: tuple[World, bytes, bytes]) -> None:
    world, inside, _ = paired
    assert PATIENT in str(world.rows(study)[0])
    accession = world.path_of(uid_of(inside)).relative_to(world.layout.archive).parts[1]
    for arguments in ([], ["--json"], ["--instance", uid_of(inside)]):
        told = shown_by(world, *arguments)
        assert PATIENT not in told
        assert accession not in told


def test_a_line_for_people_fits_eighty_columns(paired: tuple[World, bytes, bytes]) -> None:
    world, inside, _ = paired
    for arguments in ([], ["--instance", uid_of(inside)]):
        lines = shown_by(world, *arguments).splitlines()
        assert len(lines) > 3
        assert max(map(len, lines)) <= 80
    assert "pair-ready" in shown_by(world, "--kind", "pair-ready")


def some_events(world: World, count: int = 25) -> None:
    with world.index.write() as connection:
        for number in range(count):
            insert_event(
                connection,
                "odd" if number % 2 else "even",
                f"2026-01-01T00:00:{number:02d}.000Z",
                source=f"AE{number % 3}>US@10.0.0.7",
            )


def test_events_come_newest_last_and_whole_over_many_pages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PAGE_ROWS", 4)
    some_events(world)
    found = [one["id"] for one in newest_events(world.index, Wanted(), 10)]
    assert found == list(range(16, 26))
    assert [one["id"] for one in events_after(world.index, Wanted(), 0)] == list(range(1, 26))
    assert [one["id"] for one in newest_events(world.index, Wanted(kinds=("odd",)), 2)] == [22, 24]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(kinds=("odd",)), 12),
        (Wanted(kinds=("odd", "even")), 25),
        (Wanted(source="AE1>"), 8),
        (Wanted(source="%"), 0),
        (Wanted(since="2026-01-01T00:00:20.000Z"), 5),
        (Wanted(until="2026-01-01T00:00:20.000Z"), 20),
        (Wanted(study="1.2.3"), 0),
    ],
)
def test_events_can_be_chosen(world: World, wanted: Wanted, count: int) -> None:
    some_events(world)
    assert len(list(newest_events(world.index, wanted, 100))) == count


def test_an_instance_that_never_came_is_an_error(world: World) -> None:
    done = CliRunner().invoke(
        app, ["events", "--root", str(world.layout.root), "--instance", "1.2.3"]
    )
    assert isinstance(done.exception, NothingKnown)
    assert "1.2.3" in str(done.exception)


def test_an_instance_that_lay_in_the_tree_already_is_told_as_adopted(
    world: World, tmp_path: Path
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    world.put({"a": content})
    world.file_all()
    with world.index.write() as connection:
        connection.execute(arrival.delete())  # as in an index made anew from the tree
    assert kinds(life(world, content)) == ["adopted"]


KIND = re.compile(r'(?:insert_event\(\s*connection,|\bnote\(|_tell\()\s*"([a-z-]+)"')


def test_the_page_on_the_audit_names_every_kind_that_is_written() -> None:
    page = (PROJECT / "docs" / "audit.md").read_text()
    told = set(re.findall(r"`([a-z-]+)`", page))
    written = {
        kind
        for package in ("workers", "daemon")
        for path in (PROJECT / package).rglob("*.py")
        for kind in KIND.findall(path.read_text())
    }
    assert len(written) > 10
    assert written | set(SET_ASIDE) <= told


def test_the_commands_of_the_page_on_the_audit_work(paired: tuple[World, bytes, bytes]) -> None:
    world, inside, _ = paired
    page = (PROJECT / "docs" / "audit.md").read_text()
    (block,) = re.findall(r"```sh\n(.+?)```", page, re.DOTALL)
    (study_uid,) = [row.study for row in world.rows(study)]
    assert len(block.splitlines()) == 5
    for line in block.splitlines():
        words = line.replace(" --follow", "").split()
        uid = uid_of(inside) if "--instance" in words else study_uid
        assert words[:4] == ["petct-ingest", "events", "--root", "DIR"]
        shown_by(world, *[uid if word == "UID" else word for word in words[4:]])


def test_following_shows_what_comes(world: World, tmp_path: Path) -> None:
    some_events(world, 3)
    following = Running(
        petct("events", "--root", world.layout.root, "--follow", "--json"), tmp_path / "follow"
    )
    try:
        following.await_output('"id": 3')
        with world.index.write() as connection:
            insert_event(connection, "late", "2026-01-02T00:00:00.000Z")
        following.await_output('"late"')
    finally:
        assert following.end(signal.SIGINT) == 0
    assert [json.loads(line)["id"] for line in following.stdout.splitlines()] == [1, 2, 3, 4]


def test_an_entry_that_killed_a_worker_is_told(world: World, tmp_path: Path) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    (entry,) = world.put({"a": content})
    hands = world.layout.spool_private / "hands"
    hands.mkdir(parents=True, exist_ok=True)
    (hands / "1-dead").write_text(entry.identifier)
    world.file_all()
    assert kinds(life(world, content)) == ["received", "worker-died", "filed"]


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        (None, None),
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("2026-01-31T10:00", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31T10:00+02:00", "2026-01-31T08:00:00.000Z"),
        ("90m", "2026-02-01T10:30:00.000Z"),
        ("2d", "2026-01-30T12:00:00.000Z"),
    ],
)
def test_a_time_is_a_date_a_moment_or_an_age(text: str | None, iso: str | None) -> None:
    assert read_time(text, datetime(2026, 2, 1, 12, tzinfo=UTC)) == iso


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "999999999999d", "1y"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no time"):
        read_time(text, datetime(2026, 2, 1, tzinfo=UTC))


def test_a_hostile_ae_title_steers_no_terminal() -> None:
    assert shown("A\x1b[2J\r\nB\u202e") == "A\\x1b[2J\\r\\nB\\u202e"
    one = {"at": "2026-01-01T00:00:00.000Z", "kind": "k\x1b", "study": None, "series": None,
           "source": "[red]\x07", "entry": None, "details": {"reason": "a\nb"}}  # fmt: skip
    assert in_words(one) == (
        "2026-01-01 00:00:00  source [red]\\x07\nk\\x1b                reason a\\nb"
    )


def test_events_wait_for_nothing_when_the_index_is_new(world: World) -> None:
    assert shown_by(world) == "No such event.\n"
    assert shown_by(world, "--json") == ""
    assert world.rows(event) == []
