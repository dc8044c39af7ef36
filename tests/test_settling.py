"""Settled or not, what a name says, which emptied folders go: decisions without a clock."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.watcher.emptied import Emptied
from daemon.watcher.names import (
    NameKind,
    claim_name,
    enters_folder,
    entry_path,
    kind_of_file,
    read_claim,
)
from daemon.watcher.scanning import FolderState
from daemon.watcher.settling import FileState, Settling

SMALL = FileState(inode=7, size=10, mtime_ns=1)
GROWN = FileState(inode=7, size=20, mtime_ns=2)
BATCH = "f1764000000000-0011aabb"


def test_a_file_settles_when_it_stays_the_same_for_the_time_asked():
    settling = Settling(2.0)
    settling.saw("a", SMALL, now=100.0)
    assert settling.due(101.9) == []
    assert settling.due(102.0) == ["a"]
    assert settling.confirm("a", SMALL, now=102.0)


def test_a_file_that_grew_meanwhile_starts_anew():
    settling = Settling(2.0)
    settling.saw("a", SMALL, now=100.0)
    assert settling.due(102.0) == ["a"]
    assert not settling.confirm("a", GROWN, now=102.0)
    assert settling.due(103.9) == []
    assert settling.due(104.0) == ["a"]
    assert settling.confirm("a", GROWN, now=104.0)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(FileState(8, 10, 1), id="replaced"),
        pytest.param(FileState(7, 10, 2), id="rewritten"),
        pytest.param(FileState(7, 11, 1), id="grown under an mtime that is set back"),
    ],
)
def test_inode_size_and_mtime_all_count(other):
    settling = Settling(2.0)
    settling.saw("a", SMALL, now=0.0)
    settling.saw("a", other, now=1.9)
    assert settling.due(2.0) == []
    assert settling.due(3.9) == ["a"]


def test_seeing_the_same_again_does_not_start_anew():
    settling = Settling(2.0)
    for tenth in range(21):
        settling.saw("a", SMALL, now=tenth / 10)
    assert settling.due(2.0) == ["a"]


@pytest.mark.parametrize("mtime_ns", [-1, 0, 2**62], ids=["before 1970", "1970", "far ahead"])
def test_what_the_mtime_says_of_today_means_nothing(mtime_ns):
    settling = Settling(2.0)
    state = FileState(1, 1, mtime_ns)
    settling.saw("a", state, now=0.0)
    assert not settling.confirm("a", state, now=1.0)
    assert settling.confirm("a", state, now=2.0)


def test_a_path_that_was_named_is_named_again_until_it_is_forgotten():
    settling = Settling(2.0)
    settling.saw("a", SMALL, now=0.0)
    assert settling.due(2.0) == ["a"]
    assert settling.due(2.0) == []
    assert settling.due(4.0) == ["a"]
    settling.forget("a")
    assert settling.due(99.0) == []
    assert settling.next_due() is None
    assert len(settling) == 0


def test_the_longest_waiting_come_first_and_no_more_than_asked():
    settling = Settling(1.0)
    for number in range(10):
        settling.saw(f"{number}", SMALL, now=float(number))
    assert settling.due(100.0, limit=3) == ["0", "1", "2"]
    assert settling.due(100.0, limit=3) == ["3", "4", "5"]


def test_a_postponed_path_waits_unless_it_changes():
    settling = Settling(1.0)
    settling.saw("a", SMALL, now=0.0)
    settling.postpone("a", until=50.0)
    assert settling.due(49.0) == []
    assert settling.next_due() == 50.0
    settling.saw("a", GROWN, now=10.0)
    assert settling.due(11.0) == ["a"]


def test_a_name_may_ask_for_more_patience_than_the_folder():
    settling = Settling(2.0)
    settling.saw("a", SMALL, now=0.0, at_least=300.0)
    assert not settling.confirm("a", SMALL, now=299.0)
    assert not settling.confirm("a", GROWN, now=300.0)
    assert not settling.confirm("a", GROWN, now=599.0)
    assert settling.confirm("a", GROWN, now=600.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([SMALL, GROWN]), st.floats(0.01, 3)),
        max_size=60,
    )
)
def test_whatever_is_confirmed_was_unchanged_for_as_long_as_asked(looks):
    settling = Settling(2.0)
    now = 0.0
    since: dict[str, tuple[FileState, float]] = {}
    for number, state, wait in looks:
        now += wait
        path = str(number)
        if path not in since or since[path][0] != state:
            since[path] = (state, now)
        settled = settling.confirm(path, state, now)
        assert settled == (now - since[path][1] >= 2.0)


TAKEN = """
    IM01 scan.dcm 1.2.840.113619.2 IMG.tmp.dcm DICOMDIR .DS_Store ._IMG.dcm Thumbs.db desktop.ini
    batch.json readme.txt partial x.parts ~x ä.dcm a~b
"""
LEFT = """
    .hidden .a.dcm.X8s9Qw a.tmp A.TMP a.dcm.part a.partial a.crdownload a.filepart a.dcm~ .a.swp
    .nfs000012 .petct-claim.x .petct-claim.f12-ab.x ~$letter.doc .goutputstream-AB12 x.download
"""


@pytest.mark.parametrize("name", TAKEN.split())
def test_names_that_are_taken(name):
    assert kind_of_file(name) is NameKind.TAKE


@pytest.mark.parametrize("name", LEFT.split())
def test_names_that_are_left_alone(name):
    assert kind_of_file(name) is NameKind.LEAVE


def test_what_may_be_rsync_at_a_name_with_an_underscore_is_waited_for_longer():
    assert kind_of_file("._scan.dcm.Ab3xYz") is NameKind.LATER
    assert kind_of_file("._scan.dcm") is NameKind.TAKE


def test_folders_under_temporary_or_dotted_names_are_not_entered():
    assert enters_folder("STS_002")
    assert enters_folder("2024.01.01")
    assert not any(enters_folder(name) for name in (".git", ".rsync-tmp", "study.part", "x.TMP"))


@given(st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=255))
def test_a_claim_tells_its_batch_and_its_name(name):
    claim = claim_name(BATCH, name)
    assert kind_of_file(claim) is NameKind.CLAIM
    assert len(os.fsencode(claim)) <= 255
    read = read_claim(claim)
    assert read is not None
    assert read.batch == BATCH
    if len(os.fsencode(name)) <= 200:
        assert read.name == name


def test_a_claim_of_a_long_name_is_cut_between_letters_and_stays_its_own():
    names = ["ü" * 127 + end for end in "ab"]
    claims = [claim_name(BATCH, name) for name in names]
    assert len(set(claims)) == 2
    for claim in claims:
        assert len(os.fsencode(claim)) <= 255
        os.fsencode(claim).decode("utf-8")


def test_a_claim_keeps_a_name_that_is_not_utf8():
    name = os.fsdecode(b"scan\xff.dcm")
    claim = read_claim(claim_name(BATCH, name))
    assert claim is not None
    assert claim.name == name


PATHS = st.lists(st.sampled_from(["_", "batch.json", "a"]), min_size=1, max_size=4).map("/".join)


@given(PATHS, PATHS)
def test_entry_paths_never_collide_with_the_batch_nor_with_each_other(one, other):
    assert entry_path(one) != "batch.json"
    assert (entry_path(one) == entry_path(other)) == (one == other)


def test_a_path_that_the_spool_cannot_hold_is_cut():
    path = "/".join(["folder" * 30] * 22)
    assert entry_path(path).startswith("_/~")
    assert len(entry_path(path)) < 300


def state(inode: int, mtime_ns: int = 0) -> FolderState:
    return FolderState(inode, mtime_ns)


def test_an_emptied_drop_goes_whole_after_its_quiet_time():
    emptied = Emptied(600.0)
    drop = {"d/a/b": state(3), "d/a": state(2), "d": state(1)}
    emptied.saw(drop, now=0.0)
    assert emptied.due(599.0) == []
    emptied.saw(drop, now=600.0)
    assert emptied.due(600.0) == ["d/a/b", "d/a", "d"]


def test_a_folder_that_changed_keeps_those_above_it():
    emptied = Emptied(600.0)
    emptied.saw({"d/a": state(2), "d/b": state(3), "d": state(1)}, now=0.0)
    emptied.saw({"d/a": state(2, mtime_ns=5), "d/b": state(3), "d": state(1)}, now=600.0)
    assert emptied.due(600.0) == ["d/b"]


def test_a_folder_that_was_filled_meanwhile_starts_anew():
    emptied = Emptied(600.0)
    emptied.saw({"d": state(1)}, now=0.0)
    emptied.saw({}, now=300.0)
    emptied.saw({"d": state(1)}, now=600.0)
    assert emptied.due(601.0) == []
    assert emptied.due(1200.0) == ["d"]
