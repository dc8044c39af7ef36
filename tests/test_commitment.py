"""What our word is given for: the pure verdicts, and requests decided against a real tree."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filing_world import (
    FOLDER,
    SENDER,
    World,
    a_world,
    changed,
    die,
    encoded,
    in_child,
    make_world,
    other_pixels,
    recoded,
    small_instances,
    uid_of,
)
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from config.tables.intake import CommitmentSettings, PeerSettings, SourcePolicy
from daemon.sweeper import Sweeper
from workers import clock
from workers.commitment import deciding, undelivered
from workers.commitment import transactions as store
from workers.commitment.deciding import Commitments
from workers.commitment.transactions import (
    Damaged,
    Ending,
    Reference,
    State,
    Transaction,
    Transactions,
)
from workers.commitment.undelivered import undeliverable
from workers.commitment.verdicts import (
    Arrival,
    FailureReason,
    Filed,
    FileState,
    ReferenceFacts,
    judge_reference,
)
from workers.filing.releasing import drop_entry, retry_entry
from workers.index.tables import arrival, event, instance
from workers.spool.batches import BatchSource

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TRANSACTION = "1.2.826.0.1.3680043.8.1"
GOOD, FAILED, UNKNOWN, CLASS, RESOURCES = 0, 0x0110, 0x0112, 0x0119, 0x0213

# the verdict ------------------------------------------------------------------------------------

FILED = Filed(CT, "digest", FileState.INTACT)
AS_SENT = Arrival("filed", "digest")
FINE = ReferenceFacts(CT, FILED, (AS_SENT,))
OUTCOMES = ["filed", "duplicate", "retried", "variant", "conflict", "quarantined", "dropped",
            "replaced", "skipped", "unheard-of"]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (FINE, FailureReason.NONE),
        (replace(FINE, arrivals=(AS_SENT, Arrival("duplicate", "other"))), FailureReason.NONE),
        (replace(FINE, arrivals=(AS_SENT, Arrival("retried", "other"))), FailureReason.NONE),
        (replace(FINE, deidentified=True), FailureReason.PROCESSING_FAILURE),
        (ReferenceFacts(CT, deidentified=True, waits=True), FailureReason.PROCESSING_FAILURE),
        (replace(FINE, waits=True), FailureReason.RESOURCE_LIMITATION),
        (ReferenceFacts(CT), FailureReason.NO_SUCH_INSTANCE),
        (replace(FINE, filed=None), FailureReason.PROCESSING_FAILURE),
        (replace(FINE, sop_class=MR), FailureReason.CLASS_CONFLICT),
        (replace(FINE, arrivals=()), FailureReason.PROCESSING_FAILURE),
        # filed otherwise than it came, or nobody knows how it came
        (replace(FINE, arrivals=(Arrival("filed", "other"),)), FailureReason.PROCESSING_FAILURE),
        # dropped by somebody, or filed again by a repair: nobody sent it
        (replace(FINE, arrivals=(replace(AS_SENT, was_sent=False),)), 0x0110),
        (replace(FINE, filed=replace(FILED, file=FileState.CHANGED)), 0x0110),
        (replace(FINE, filed=replace(FILED, file=FileState.MISSING)), 0x0110),
        *(
            (replace(FINE, arrivals=(AS_SENT, Arrival(outcome, "digest"))), 0x0110)
            for outcome in OUTCOMES[3:]
        ),
    ],
)
def test_the_verdict_on_one_instance(facts: ReferenceFacts, reason: int) -> None:
    assert judge_reference(facts).reason == reason


arrivals_drawn = st.lists(
    st.builds(Arrival, st.sampled_from(OUTCOMES), st.sampled_from(["digest", "other", None])),
    max_size=5,
).map(tuple)
facts_drawn = st.builds(
    ReferenceFacts,
    sop_class=st.sampled_from([CT, MR]),
    filed=st.none()
    | st.builds(Filed, st.just(CT), st.just("digest"), st.sampled_from(list(FileState))),
    arrivals=arrivals_drawn,
    waits=st.booleans(),
    deidentified=st.booleans(),
)


@given(facts_drawn)
def test_our_word_is_given_only_for_what_is_filed_as_every_sender_sent_it(
    facts: ReferenceFacts,
) -> None:
    verdict = judge_reference(facts)
    assert verdict.why
    if verdict.committed:
        assert not facts.waits
        assert not facts.deidentified
        assert facts.filed == Filed(facts.sop_class, "digest", FileState.INTACT)
        assert {one.outcome for one in facts.arrivals} <= {"filed", "duplicate", "retried"}
        assert any(one.dataset_sha256 == "digest" for one in facts.arrivals)


@given(facts_drawn, arrivals_drawn)
def test_a_further_arrival_never_makes_our_word_better(
    facts: ReferenceFacts, further: tuple[Arrival, ...]
) -> None:
    fine = replace(facts, arrivals=(AS_SENT, *facts.arrivals))
    if not judge_reference(fine).committed:
        assert not judge_reference(replace(fine, arrivals=fine.arrivals + further)).committed


# the files --------------------------------------------------------------------------------------


def a_transaction(*references: Reference, uid: str = TRANSACTION) -> Transaction:
    return Transaction(uid, SENDER, clock.utc_now(), references or (Reference(CT, "1.2.3"),))


def test_a_transaction_is_read_as_it_was_written(tmp_path: Path) -> None:
    world = make_world(tmp_path / "root")
    transactions = Transactions(world.layout)
    asked = a_transaction()
    transactions.write(asked, State.REQUEST)
    assert transactions.read(asked.key, State.REQUEST) == asked
    decided = replace(asked, decided_at=clock.utc_now(), reasons=(0,))
    transactions.write(decided, State.RESULT)
    assert transactions.read(asked.key, State.REQUEST) is None
    assert transactions.read(asked.key, State.RESULT) == decided
    folder = world.layout.commitment
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


json_drawn = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
GENUINE = json.loads(replace(a_transaction(), decided_at=clock.utc_now(), reasons=(0,)).to_bytes())


@given(st.sampled_from(sorted(GENUINE)), json_drawn)
def test_a_damaged_file_is_never_taken_for_a_transaction(field: str, value: Any) -> None:
    try:
        found = Transaction.from_bytes(json.dumps(GENUINE | {field: value}).encode())
    except Damaged:
        return
    assert found.references
    assert found.uid
    found.check()


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_transaction(data: bytes) -> None:
    with pytest.raises(Damaged):
        Transaction.from_bytes(data)


def test_a_damaged_file_is_put_aside_and_the_others_go_on(world: World, slices: Any) -> None:
    (world.layout.commitment / f"{'0' * 32}.request").write_bytes(b"{")
    assert ask(world, *refer(slices)) == [GOOD] * 3
    assert [path.suffix for path in world.layout.commitment.iterdir()] == [".damaged", ".result"]


def test_what_is_not_reported_yet_keeps_the_reporter_awake(world: World) -> None:
    transactions = Transactions(world.layout)
    assert transactions.is_at_rest()
    for state, rests in ((State.REQUEST, False), (State.RESULT, False), (State.ENDED, True)):
        transactions.write(a_transaction(), state)
        assert transactions.is_at_rest() is rests


def test_only_so_many_transactions_wait_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = Transactions(world.layout)
    monkeypatch.setattr(store, "MOST_TRANSACTIONS", 2)
    for number in (1, 2):
        assert not transactions.is_full()
        transactions.write(a_transaction(uid=f"1.{number}"), State.REQUEST)
    assert transactions.is_full()


# decided against a tree -------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root") as one:
        yield one


@pytest.fixture
def slices(world: World, tmp_path: Path) -> list[bytes]:
    """Three instances that one association sent, filed."""
    made = small_instances(tmp_path / "made", 3)
    world.put({str(number): content for number, content in enumerate(made)}, SENDER)
    world.file_all()
    return made


def refer(contents: list[bytes]) -> list[Reference]:
    return [Reference(CT, uid_of(content)) for content in contents]


def request(world: World, *references: Reference, uid: str = TRANSACTION) -> Transaction:
    asked = a_transaction(*references, uid=uid)
    Transactions(world.layout).write(asked, State.REQUEST)
    return asked


def result(world: World, asked: Transaction) -> list[int] | None:
    decided = Transactions(world.layout).read(asked.key, State.RESULT)
    return None if decided is None else list(decided.reasons)


def ask(world: World, *references: Reference) -> list[int] | None:
    """Ask, let it be decided, and return the reasons; None: not yet."""
    asked = request(world, *references)
    Commitments(world.index, world.settings).work()
    return result(world, asked)


def events(world: World) -> list[str]:
    return [row.kind for row in world.rows(event) if row.kind.startswith("commitment-")]


def send(world: World, content: bytes, source: BatchSource = SENDER) -> Any:
    (entry,) = world.put({"again": content}, source)
    return entry


@pytest.mark.both_databases
def test_what_was_filed_as_it_came_is_committed(world: World, slices: list[bytes]) -> None:
    assert ask(world, *refer(slices)) == [GOOD] * 3
    assert events(world) == ["commitment-requested", "commitment-decided"]
    told = [row for row in world.rows(event) if row.kind == "commitment-decided"]
    assert told[0].source == SENDER.key
    details = json.loads(told[0].details)
    assert (details["references"], details["committed"], details["failed"]) == (3, 3, {})


def test_equal_content_that_came_again_in_another_encoding_does_not_hinder(
    world: World, slices: list[bytes]
) -> None:
    send(world, slices[0])
    send(world, recoded(slices[1]))
    send(world, slices[2], FOLDER)
    world.file_all()
    assert world.outcomes() == {"filed": 3, "duplicate": 3}
    assert ask(world, *refer(slices)) == [GOOD] * 3


def test_a_file_that_is_not_what_was_filed_is_not_committed(
    world: World, slices: list[bytes]
) -> None:
    first, second, third = (world.path_of(uid_of(content)) for content in slices)
    first.write_bytes(other_pixels(slices[0]))
    second.unlink()
    moved = third.rename(third.with_suffix(".moved"))
    third.symlink_to(moved)
    assert ask(world, *refer(slices)) == [FAILED] * 3


def test_a_file_behind_a_linked_folder_is_not_committed(world: World, slices: list[bytes]) -> None:
    folder = world.path_of(uid_of(slices[0])).parent
    moved = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(moved)
    assert ask(world, *refer(slices)) == [FAILED] * 3


@pytest.mark.parametrize("policy", ["keep-first", "quarantine", "replace"])
def test_another_version_forbids_our_word_whatever_is_done_with_it(
    world: World, slices: list[bytes], policy: str
) -> None:
    send(world, other_pixels(slices[0]))
    send(world, changed(slices[1], PatientComments="corrected"))
    world.file_all(duplicates=policy)
    assert ask(world, *refer(slices)) == [FAILED, FAILED, GOOD]


@pytest.mark.both_databases
def test_what_was_dropped_from_quarantine_still_forbids_our_word(
    world: World, slices: list[bytes]
) -> None:
    entry = send(world, other_pixels(slices[0]))
    world.file_all()
    drop_entry(world.index, world.layout, entry.identifier)
    assert ask(world, *refer(slices)) == [FAILED, GOOD, GOOD]


@pytest.mark.both_databases
def test_what_could_not_be_read_counts_under_the_name_that_its_sender_gave_it(
    world: World, slices: list[bytes]
) -> None:
    cut = send(world, slices[0][:-100])
    named_otherwise = dcmread(io.BytesIO(slices[1]))
    named_otherwise.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    other = send(world, encoded(named_otherwise, checked=False))
    world.file_all()
    assert (world.outcome_of(cut).code, world.outcome_of(other).code) == (
        "truncated",
        "bad-identity",
    )
    assert world.outcome_of(cut).instance_uid == uid_of(slices[0])
    references = [*refer(slices), Reference(CT, "1.2.3.77")]
    assert ask(world, *references) == [FAILED, GOOD, GOOD, FAILED]


def test_unknown_and_of_another_class(world: World, slices: list[bytes]) -> None:
    known = uid_of(slices[0])
    references = [Reference(CT, "1.2.3.4"), Reference(MR, known), Reference(CT, known)]
    assert ask(world, *references) == [UNKNOWN, CLASS, GOOD]


def test_an_instance_of_which_only_a_damaged_version_came_is_no_unknown_one(
    world: World, tmp_path: Path
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    send(world, content[:-100])
    world.file_all()
    assert ask(world, *refer([content])) == [FAILED]


def test_a_rebuilt_index_knows_no_longer_what_was_received(
    world: World, slices: list[bytes]
) -> None:
    with world.index.write() as connection:
        connection.execute(arrival.delete())
    assert ask(world, *refer(slices)) == [FAILED] * 3


def test_what_is_deidentified_is_never_committed_whoever_asks(
    world: World, slices: list[bytes], tmp_path: Path
) -> None:
    from_a_trial = BatchSource("association", calling_ae="TRIAL", called_ae="US")
    policy = SourcePolicy(calling_ae="TRIAL", deidentify="dicognito")
    world.settings = world.settings.model_copy(update={"sources": (policy,)})
    (content,) = small_instances(tmp_path / "trial", 1, patient=3)
    send(world, content, from_a_trial)
    world.file_all()
    (filed,) = {row.instance_uid for row in world.rows(instance)} - {uid_of(c) for c in slices}
    assert filed != uid_of(content)
    references = [*refer([slices[0], content]), Reference(CT, filed)]
    assert ask(world, *references) == [GOOD, UNKNOWN, FAILED]
    asked = replace(a_transaction(*references), source=from_a_trial)
    Transactions(world.layout).write(asked, State.REQUEST)
    Commitments(world.index, world.settings).work()
    assert result(world, asked) == [FAILED] * 3


# what still lies in the spool -------------------------------------------------------------------


@pytest.mark.both_databases
def test_what_lies_in_the_spool_is_answered_when_it_is_filed(
    world: World, slices: list[bytes], tmp_path: Path
) -> None:
    late = small_instances(tmp_path / "late", 1, patient=2)[0]
    send(world, late)
    send(world, other_pixels(slices[1]))
    commitments = Commitments(world.index, world.settings)
    all_of_it = request(world, *refer([*slices, late]))
    first_alone = request(world, *refer(slices[:1]), uid="1.2.9")
    commitments.work()
    assert (result(world, all_of_it), result(world, first_alone)) == (None, [GOOD])
    assert events(world).count("commitment-requested") == 2
    commitments.work()
    assert result(world, all_of_it) is None
    world.file_all()
    commitments.work()
    assert result(world, all_of_it) == [GOOD, FAILED, GOOD, GOOD]
    assert Counter(events(world)) == {"commitment-requested": 2, "commitment-decided": 2}


@pytest.mark.parametrize("source", [SENDER, FOLDER], ids=["sent", "dropped"])
def test_an_entry_that_cannot_be_read_may_be_any_instance(
    world: World, slices: list[bytes], source: BatchSource
) -> None:
    send(world, b"who knows", source)
    asked = request(world, *refer(slices))
    commitments = Commitments(world.index, world.settings)
    commitments.work()
    assert result(world, asked) is None
    world.file_all()
    commitments.work()
    assert result(world, asked) == [GOOD] * 3


def test_a_dropped_file_is_known_by_its_data_set_too(world: World, slices: list[bytes]) -> None:
    meta = slices[0].index(uid_of(slices[0]).encode())
    stale = slices[0][:meta] + slices[0][meta:].replace(b"1.", b"2.", 1)
    assert uid_of(stale) == uid_of(slices[0])
    send(world, stale, FOLDER)
    assert ask(world, *refer(slices[:1])) is None


def test_what_came_after_the_request_is_not_waited_for(world: World, slices: list[bytes]) -> None:
    commitments = Commitments(world.index, world.settings)
    blocking = send(world, b"who knows")
    asked = request(world, *refer(slices))
    commitments.work()
    send(world, b"nobody knows either")
    send(world, other_pixels(slices[0]))
    world.file([blocking])
    commitments.work()
    assert result(world, asked) == [GOOD] * 3


def test_what_a_person_put_back_into_the_spool_is_waited_for(
    world: World, slices: list[bytes]
) -> None:
    conflict = send(world, other_pixels(slices[0]))
    world.file_all()
    blocking = send(world, b"who knows")
    commitments = Commitments(world.index, world.settings)
    asked = request(world, *refer(slices))
    commitments.work()
    retry_entry(world.index, world.layout, conflict.identifier)  # after the first look
    world.file([blocking])
    commitments.work()
    assert result(world, asked) is None
    world.file_all()
    commitments.work()
    assert result(world, asked) == [FAILED, GOOD, GOOD]


def test_what_is_put_back_between_two_looks_is_looked_for_again(
    world: World, slices: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    conflict = send(world, other_pixels(slices[0]))
    world.file_all()
    commitments = Commitments(world.index, world.settings)
    asked = request(world, *refer(slices))
    look = commitments._spooled.look

    def put_back_after() -> None:
        look()
        monkeypatch.undo()
        retry_entry(world.index, world.layout, conflict.identifier)

    monkeypatch.setattr(commitments._spooled, "look", put_back_after)
    commitments.work()
    assert result(world, asked) is None
    commitments.work()
    assert result(world, asked) is None
    world.file_all()
    commitments.work()
    assert result(world, asked) == [FAILED, GOOD, GOOD]


def test_after_a_day_what_is_not_filed_is_answered_too(world: World, slices: list[bytes]) -> None:
    send(world, slices[0])
    long_ago = datetime.now(UTC) - timedelta(hours=25)
    asked = replace(a_transaction(*refer(slices)), asked_at=f"{long_ago:%Y-%m-%dT%H:%M:%S}.000Z")
    Transactions(world.layout).write(asked, State.REQUEST)
    Commitments(world.index, world.settings).work()
    assert result(world, asked) == [RESOURCES, GOOD, GOOD]


def test_nothing_is_decided_while_the_archive_is_another(world: World, slices: list[bytes]) -> None:
    identity = world.layout.archive / ".petct" / "id"
    known = identity.read_bytes()
    identity.write_bytes(b"another disk\n")
    asked = request(world, *refer(slices))
    commitments = Commitments(world.index, world.settings)
    commitments.work()
    assert result(world, asked) is None
    identity.write_bytes(known)
    commitments.work()
    assert result(world, asked) == [GOOD] * 3


# how it goes on, and kills ----------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_audit_hears_how_a_delivery_ended_and_the_files_go(
    world: World, slices: list[bytes]
) -> None:
    commitments = Commitments(world.index, world.settings)
    for number, ending in enumerate((Ending.SAME_ASSOCIATION, Ending.GIVEN_UP)):
        asked = request(world, *refer(slices), uid=f"1.2.{number}")
        commitments.work()
        transactions = Transactions(world.layout)
        decided = transactions.read(asked.key, State.RESULT)
        assert decided is not None
        ended = replace(decided, ended_at=clock.utc_now(), ending=ending)
        transactions.write(ended, State.ENDED)
        commitments.work()
    assert events(world)[2::3] == ["commitment-reported", "commitment-given-up"]
    assert not os.listdir(world.layout.commitment)


def test_a_peer_that_nobody_knows_is_told_of_once(
    world: World, slices: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding, "PEER_SECONDS", -1)
    assert ask(world, *refer(slices)) == [GOOD] * 3
    for _ in range(2):
        Commitments(world.index, world.settings).work()  # the sweeper was started again
    assert events(world).count("commitment-peer-unknown") == 1
    assert undeliverable(world.settings) == []  # not yet
    monkeypatch.setattr(undelivered, "PEER_SECONDS", -1)
    (trouble,) = undeliverable(world.settings)
    assert trouble.startswith("1 results of storage commitment wait for PACS: ")
    peers = (PeerSettings(ae_title="PACS", host="10.0.0.7", port=104),)
    commitment = CommitmentSettings(peers=peers)
    known = world.settings.model_copy(update={"commitment": commitment})
    assert undeliverable(known) == []


def test_what_a_kill_left_half_written_is_swept_away(world: World, slices: list[bytes]) -> None:
    asked = request(world, *refer(slices))
    half = world.layout.commitment / f".{asked.key}.result.0123abcd.tmp"
    half.write_bytes(b"{")
    os.utime(half, (0, 0))
    Sweeper(world.index, world.settings)._clean()
    assert [path.name for path in world.layout.commitment.iterdir()] == [f"{asked.key}.request"]


def test_killed_at_any_line_it_comes_to_the_same_end(world: World, slices: list[bytes]) -> None:
    world.path_of(uid_of(slices[1])).write_bytes(b"changed")
    expected = [GOOD, FAILED, GOOD]
    lines = _lines_of_a_decision(world, slices)
    assert lines > 100
    for number, line in enumerate(range(5, lines, lines // 20)):
        asked = request(world, *refer(slices), uid=f"1.2.{number}")
        world.let_go()
        assert in_child(lambda line=line: _work_and_die_at(world, line)) == -signal.SIGKILL
        Commitments(world.index, world.settings).work()
        assert result(world, asked) == expected
        Transactions(world.layout).remove(asked.key, State.RESULT)
    told = Counter((row.kind, row.note) for row in world.rows(event) if row.note)
    assert set(told.values()) == {1}
    assert Counter(kind for kind, _ in told) == {
        "commitment-requested": number + 2,
        "commitment-decided": number + 2,
    }


def _lines_of_a_decision(world: World, slices: list[bytes]) -> int:
    counter = itertools.count()
    asked = request(world, *refer(slices), uid="1.2.999")
    _traced(world, lambda: next(counter))
    assert result(world, asked)
    Transactions(world.layout).remove(asked.key, State.RESULT)
    return next(counter)


def _work_and_die_at(world: World, line: int) -> None:
    counter = itertools.count()
    _traced(world, lambda: die() if next(counter) == line else None)


def _traced(world: World, at_line: Any) -> None:
    """Work with a call before every line of the modules that decide."""

    def trace(frame: Any, what: str, _: Any) -> Any:
        if "/workers/commitment/" not in frame.f_code.co_filename:
            return None
        if what == "line":
            at_line()
        return trace

    commitments = Commitments(world.index, world.settings)
    sys.settrace(trace)
    try:
        commitments.work()
    finally:
        sys.settrace(None)
