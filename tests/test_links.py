"""Links and other odd things, planted wherever a user or a careless hand may plant them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from facts_builder import ct
from filing_world import (
    FOLDER,
    World,
    a_world,
    changed,
    encoded,
    other_pixels,
    small_instances,
    uid_of,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from daemon.watcher import claiming, sources
from daemon.watcher.claiming import Claimer
from daemon.watcher.gate import SpoolGate
from daemon.watcher.outcomes import Outcome
from daemon.watcher.scanning import Found, scan
from daemon.watcher.territory import survey
from workers import durable, rooted
from workers.completeness.judging import judge_studies
from workers.errors import DataError, PairDamaged
from workers.filing import quarantine
from workers.filing.placing import place_instance
from workers.filing.releasing import retry_entry
from workers.index.tables import pair
from workers.pairing import build
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study
from workers.rooted import LinkRefused, folder_below, is_file

STUDY = make_study(PhantomSpec(size="tiny"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", spool={"minimum_free_mb": 1, "minimum_free_inodes": 1}) as one:
        yield one


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing of ours may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    return folder


def untouched(outside: Path) -> bool:
    return {one.name: one.read_bytes() for one in outside.iterdir()} == {"precious": b"precious"}


# folders below a store ----------------------------------------------------------------------------


def test_folders_are_made_below_a_store_and_through_no_link(tmp_path: Path, outside: Path) -> None:
    with folder_below(tmp_path, PurePosixPath("a/b/c"), 0o750) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "a/b/c").stat())
    (tmp_path / "a" / "link").symlink_to(outside)
    for inside in ("a/link", "a/link/d"):
        with pytest.raises(LinkRefused), folder_below(tmp_path, PurePosixPath(inside), 0o750):
            pass
    with pytest.raises(LinkRefused):
        is_file(tmp_path, PurePosixPath("a/link/precious"))
    assert untouched(outside)


@pytest.mark.parametrize("inside", ["../outside", "a/../../outside", "/outside"])
def test_no_path_leads_upward(tmp_path: Path, inside: str) -> None:
    with (
        pytest.raises(ValueError, match="leads out"),
        folder_below(tmp_path, PurePosixPath(inside)),
    ):
        pass


def test_a_store_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to("disk")
    with folder_below(tmp_path / "store", PurePosixPath("a"), 0o700):
        assert (tmp_path / "disk" / "a").is_dir()
    assert not is_file(tmp_path / "store", PurePosixPath("a/missing"))


def test_every_descriptor_is_closed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    before = len(os.listdir("/proc/self/fd"))
    for inside in ("a/b", "link/x", "a/link/x"):
        try:
            with folder_below(tmp_path, PurePosixPath(inside), 0o700):
                pass
        except LinkRefused:
            pass
    assert len(os.listdir("/proc/self/fd")) == before


# the inbox ----------------------------------------------------------------------------------------


def claimer_of(world: World, inbox: Path) -> Claimer:
    gate = SpoolGate(world.layout, world.settings.spool)
    return Claimer(world.layout, FOLDER, os.path.realpath(inbox), None, gate, lambda _: None)


def found_in(inbox: Path) -> tuple[list[Found], dict[str, str]]:
    found: list[Found] = []
    findings = scan(survey(inbox, frozenset()), lambda one: found.append(one) or True)
    return found, findings.odd


def plant(kind: str, path: Path, outside: Path) -> None:
    if kind == "a symbolic link":
        path.symlink_to(outside / "precious")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it never ends


KINDS = [
    "a symbolic link", "a pipe", "a socket",
    pytest.param("a device", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_left_alone_and_told(world: World, outside: Path, kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="in") as short:  # a socket's path is short
        inbox = Path(short)
        plant(kind, inbox / "odd.dcm", outside)
        (inbox / "good.dcm").write_bytes(b"good")
        (inbox / "folder").symlink_to(outside)
        found, odd = found_in(inbox)
        assert [one.path for one in found] == ["good.dcm"]
        assert odd == {"odd.dcm": kind, "folder": "a symbolic link"}
        assert os.path.lexists(inbox / "odd.dcm")
    assert untouched(outside)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_swapped_in_between_look_and_rename_never_comes_into_the_spool(
    world: World, tmp_path: Path, outside: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.dcm").write_bytes(b"first")
    found, _ = found_in(inbox)
    undisturbed = sources.OpenedSource.undisturbed
    swapped = []

    def swap(opened: Any) -> bool:
        answer = undisturbed(opened)
        if not swapped:  # after the look, before the rename
            swapped.append(True)
            (inbox / "a.dcm").rename(inbox / "aside")
            with tempfile.TemporaryDirectory(prefix="in") as short:
                plant(kind, Path(short, "x"), outside)
                os.rename(Path(short, "x"), inbox / "a.dcm")
        return answer

    rename_new = durable.rename_new

    def rename_and_fill(source: Any, target: Any) -> None:
        rename_new(source, target)
        if Path(target).is_relative_to(world.layout.spool):  # its old name is taken at once
            (inbox / "a.dcm").write_bytes(b"third")

    monkeypatch.setattr(sources.OpenedSource, "undisturbed", swap)
    monkeypatch.setattr(claiming, "is_at", _is_at_but_the_first(sources.is_at))
    monkeypatch.setattr(durable, "rename_new", rename_and_fill)
    (result,) = claimer_of(world, inbox).take(found, lambda: True)
    monkeypatch.undo()
    assert swapped
    assert result.outcome is Outcome.CHANGED
    assert world.waiting() == []
    assert (inbox / "aside").read_bytes() == b"first"
    assert (inbox / "a.dcm").read_bytes() == b"third"
    assert untouched(outside)


def _is_at_but_the_first(real: Any) -> Any:
    asked = []

    def answer(path: Path, file: Any) -> bool:
        asked.append(path)
        return True if len(asked) == 1 else real(path, file)

    return answer


def test_a_folder_that_becomes_a_link_after_the_scan_leads_nowhere(
    world: World, tmp_path: Path
) -> None:
    inbox, theirs = tmp_path / "inbox", tmp_path / "theirs"
    (inbox / "study").mkdir(parents=True)
    (inbox / "study" / "a.dcm").write_bytes(b"one")
    found, _ = found_in(inbox)
    (inbox / "study").rename(theirs)  # the very same file, but outside
    (inbox / "study").symlink_to(theirs)
    (result,) = claimer_of(world, inbox).take(found, lambda: True)
    assert result.outcome is Outcome.CHANGED
    assert (theirs / "a.dcm").read_bytes() == b"one"
    assert world.waiting() == []


# the spool ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_in_the_spool_holds_up_nothing(
    world: World, tmp_path: Path, outside: Path, kind: str
) -> None:
    (content,) = small_instances(tmp_path / "made", 1)
    (entry,) = world.put({"a": content})
    with tempfile.TemporaryDirectory(prefix="in") as short:
        plant(kind, Path(short, "x"), outside)
        shutil.move(Path(short, "x"), entry.where(world.layout).with_name("odd")) if kind not in (
            "a socket", "a device",
        ) else os.rename(Path(short, "x"), entry.where(world.layout).with_name("odd"))  # fmt: skip
    report = world.file()
    assert (report.outcomes, report.left) == ({"filed": 1}, 1)
    assert untouched(outside)


# the tree -----------------------------------------------------------------------------------------


def one_filed(world: World, tmp_path: Path) -> tuple[bytes, bytes]:
    first, second = small_instances(tmp_path / "made", 2)
    world.put({"a": first})
    world.file_all()
    return first, second


@pytest.mark.parametrize("level", [0, 1, 2, 3, 6])
def test_a_link_in_the_place_of_a_folder_of_the_tree_leads_nowhere(
    world: World, tmp_path: Path, outside: Path, level: int
) -> None:
    """Patient, accession, studies, and folders of digits."""
    first, second = one_filed(world, tmp_path)
    inside = world.path_of(uid_of(first)).relative_to(world.layout.archive)
    folder = world.layout.archive.joinpath(*inside.parts[: level + 1])
    moved = tmp_path / "moved"
    folder.rename(moved)
    folder.symlink_to(outside)
    before = sorted(os.listdir(outside))
    other = changed(second, PatientID="ANOTHER", StudyInstanceUID="1.2.3",
                    SeriesInstanceUID="1.2.3.4", SOPInstanceUID="1.2.3.4.5")  # fmt: skip
    entry, _ = world.put({"b": second, "c": other})
    world.file()  # the other patient's is filed all the same
    assert sorted(os.listdir(outside)) == before
    assert untouched(outside)
    assert world.waiting() == [entry]
    assert world.path_of("1.2.3.4.5").exists()
    folder.unlink()
    moved.rename(folder)  # mended: what waited is filed
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 3}


@pytest.mark.parametrize("level", [0, 2, 6])
def test_a_duplicate_is_not_dropped_on_the_word_of_a_link(
    world: World, tmp_path: Path, level: int
) -> None:
    first, _ = one_filed(world, tmp_path)
    inside = world.path_of(uid_of(first)).relative_to(world.layout.archive)
    place = world.layout.archive.joinpath(*inside.parts[: level + 1])
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    world.put({"again": first})
    with pytest.raises(LinkRefused):
        world.file()
    assert len(world.waiting()) == 1
    assert world.outcomes() == {"filed": 1}


@pytest.mark.parametrize("same", [True, False])
def test_a_link_under_the_name_of_an_instance_is_neither_adopted_nor_replaced(
    world: World, tmp_path: Path, same: bool
) -> None:
    first, second = one_filed(world, tmp_path)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(second if same else b"other")
    target = world.path_of(uid_of(first)).with_name(f"{uid_of(second)}.dcm")
    target.symlink_to(theirs)
    world.put({"b": second})
    with pytest.raises(LinkRefused):
        world.file()
    assert len(world.waiting()) == 1
    assert target.is_symlink()
    target.unlink()
    world.file_all()
    world.check()
    assert theirs.read_bytes() == (second if same else b"other")


def test_nothing_outside_is_compared_or_removed_as_a_stray_copy(
    world: World, tmp_path: Path
) -> None:
    """A second folder of the series is a link: what lies behind it is not ours."""
    first, _ = one_filed(world, tmp_path)
    second_home = changed(first, AccessionNumber="ELSEWHERE", SOPInstanceUID="1.2.9")
    world.put({"b": second_home})
    world.file_all()
    folder = world.path_of("1.2.9").parent
    theirs = tmp_path / "theirs"
    folder.rename(theirs)
    (theirs / f"{uid_of(first)}.dcm").write_bytes(first)
    folder.symlink_to(theirs)
    world.put({"again": first})
    world.file_all()
    assert (theirs / f"{uid_of(first)}.dcm").read_bytes() == first


def test_a_replacement_goes_through_no_link(world: World, tmp_path: Path) -> None:
    first, _ = one_filed(world, tmp_path)
    patient = world.layout.archive / "PHANTOM-0001"
    patient.rename(tmp_path / "moved")
    patient.symlink_to(tmp_path / "moved")
    world.put({"a": other_pixels(first)})
    with pytest.raises(LinkRefused):
        world.file(duplicates="replace")
    patient.unlink()
    (tmp_path / "moved").rename(patient)
    assert world.path_of(uid_of(first)).read_bytes() == first


def test_a_journal_that_is_a_link_is_not_written(
    world: World, tmp_path: Path, outside: Path
) -> None:
    (world.layout.archive_private / "facts.jsonl").symlink_to(outside / "precious")
    (content,) = small_instances(tmp_path / "made", 1)
    world.put({"a": content})
    with pytest.raises(OSError, match="symbolic"):
        world.file()
    assert untouched(outside)
    assert len(world.waiting()) == 1


# the quarantine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["dcm", "json", "tmp"])
def test_a_link_in_quarantine_is_not_followed(world: World, outside: Path, ending: str) -> None:
    (entry,) = world.put({"letter": b"Dear colleague"})
    dot = "." if ending == "tmp" else ""
    link = world.layout.quarantine / f"{dot}{entry.identifier}.{ending}"
    link.symlink_to(outside / "precious")
    if ending == "dcm":  # it holds nothing of ours, and the entry is kept where it is
        with pytest.raises(FileExistsError):
            world.file()
        assert len(world.waiting()) == 1
        link.unlink()
    world.file_all()
    assert untouched(outside)
    assert world.kept_bytes(entry) == b"Dear colleague"
    world.check()


def test_an_entry_that_became_a_link_is_not_given_back(world: World, outside: Path) -> None:
    (entry,) = world.put({"letter": b"Dear colleague"})
    world.file_all()
    kept = quarantine.file_of(world.layout.quarantine, entry.identifier)
    kept.unlink()
    kept.symlink_to(outside / "precious")
    with pytest.raises(OSError, match="symbolic"):
        retry_entry(world.index, world.layout, entry.identifier)
    assert world.waiting() == []
    reason = quarantine.reason_of(world.layout.quarantine, entry.identifier)
    reason.unlink()
    reason.symlink_to(outside / "precious")
    with pytest.raises(OSError, match="symbolic"):
        quarantine.read_reason(world.layout.quarantine, entry.identifier)


# pairs --------------------------------------------------------------------------------------------


@pytest.fixture
def wanted(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose pair is to be made: its row."""
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")
    parts = [STUDY.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    return world.rows(pair)[0]


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_in_the_place_of_a_pair_holds_it_and_keeps_what_it_names(
    world: World, wanted: Any, outside: Path, dangling: bool
) -> None:
    home = world.layout.archive / "PHANTOM-0001" / "P000001S0001"
    (home / "Auto-Paired").symlink_to(outside / "nothing" if dangling else outside)
    assert make_pair(world.index, world.settings, wanted.id, wanted.generation) == "held"
    (row,) = world.rows(pair)
    assert "symbolic link" in row.reasons
    assert (home / "Auto-Paired").is_symlink()
    assert untouched(outside)
    assert list((world.layout.archive_private / "tmp").iterdir()) == []


@pytest.mark.parametrize("what", ["file", "folder", "home"])
def test_no_pair_is_made_of_what_a_link_names(
    world: World, wanted: Any, tmp_path: Path, what: str
) -> None:
    file = world.path_of(STUDY.named("PET AC").dataset(0).SOPInstanceUID)
    place = {"file": file, "folder": file.parent, "home": world.layout.archive / "PHANTOM-0001"}
    place[what].rename(tmp_path / "moved")
    place[what].symlink_to(tmp_path / "moved")
    assert make_pair(world.index, world.settings, wanted.id, wanted.generation) == "held"
    assert not list((tmp_path / "moved").rglob("Auto-Paired")) if what == "home" else True


def test_a_pair_opens_no_file_outside_its_folder(world: World, wanted: Any, outside: Path) -> None:
    assert make_pair(world.index, world.settings, wanted.id, wanted.generation) == "ready"
    home = world.layout.archive / "PHANTOM-0001" / "P000001S0001" / "Auto-Paired"
    words = (home / "pair.json").read_text()
    (home / "pair.json").write_text(words.replace('"ct.npy"', '"../../../ct.npy"'))
    with pytest.raises(PairDamaged, match="outside"):
        load_pair(home)
    (home / "pair.json").write_text(words)
    (home / "ct.npy").rename(outside / "ct.npy")
    (home / "ct.npy").symlink_to(outside / "ct.npy")
    with pytest.raises(OSError, match="symbolic"):
        load_pair(home)


# names --------------------------------------------------------------------------------------------

hostile = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="./\\\0%~\n\r -_aA", max_size=40),
    st.sampled_from(["..", "../..", "/etc", "a/../../b", "\0", ".petct", "Auto-Paired", "studies",
                     "C:\\x", "\u2024\u2024/", "\uff0e\uff0e\uff0f", "CON", "a" * 3000]),
)  # fmt: skip
uids = st.one_of(
    st.sampled_from(["1.2", "1.2.3", "2.25.1"]), st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with a_world(tmp_path_factory.mktemp("hostile") / "root") as one:
        yield one


@given(hostile, hostile, hostile, uids, uids)
@budget(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_header_says_its_folder_lies_below_the_archive(
    shared: World, patient: str, accession: str, prefix: str, study_uid: str, series_uid: str
) -> None:
    facts = replace(ct(series=series_uid), study_instance_uid=study_uid, patient_id=patient,
                    accession_number=accession)  # fmt: skip
    archive = shared.layout.archive
    try:
        with shared.index.write() as connection:
            place, _ = place_instance(connection, facts, prefix=prefix, source="t", at="now")
    except DataError:
        return
    folder = PurePosixPath(place.folder)
    assert len(folder.parts) == 7
    assert os.path.normpath(archive / folder) == str(archive / folder)
    assert folder.parts[0] != ".petct"
    with rooted.folder_below(archive, folder, 0o750) as descriptor:
        real = os.readlink(f"/proc/self/fd/{descriptor}")
    assert real == f"{os.path.realpath(archive)}/{folder}"
