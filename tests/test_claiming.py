"""Claims into the spool, by every way, cut off at every step."""

import errno
import mmap
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings
from daemon.watcher import grouping, sources
from daemon.watcher.claiming import Claimer
from daemon.watcher.gate import SpoolGate
from daemon.watcher.leases import LeaseState
from daemon.watcher.ledger import Ledger, ledger_path
from daemon.watcher.names import NameKind
from daemon.watcher.outcomes import Outcome
from daemon.watcher.scanning import Found, scan
from daemon.watcher.settling import state_of
from daemon.watcher.territory import survey
from workers import durable
from workers.spool.batches import BatchSource, BatchWriter, EntryName, read_source, waiting_entries

CONTENTS = {"a.dcm": b"one", "study/b.dcm": b"two", "study/series 1/c.dcm": b"three" * 1000}


class Drop:
    """A watched folder with files, and claimers for it as a watcher would make them."""

    def __init__(self, settings: Settings, root: Path, mode: str = "move") -> None:
        self.settings = settings
        self.layout = settings.layout
        self.root = root
        self.mode = mode
        self.offered: list[EntryName] = []
        for path, content in CONTENTS.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def claimer(self) -> Claimer:
        """A fresh one, as after a restart."""
        source = BatchSource(kind="folder", folder=str(self.root))
        return Claimer(
            self.layout,
            source,
            os.path.realpath(self.root),
            self.ledger() if self.mode == "copy" else None,
            SpoolGate(self.layout, self.settings.spool),
            self.offered.append,
        )

    def ledger(self) -> Ledger:
        return Ledger(ledger_path(self.layout, str(self.root)))

    def found(self) -> list[Found]:
        found: list[Found] = []
        findings = scan(survey(self.root, frozenset()), lambda one: found.append(one) or True)
        assert findings.troubles == {}
        return found

    def take(self, keep_on: Callable[[], bool] = lambda: True) -> dict[str, Outcome]:
        found = self.found()
        if self.mode == "copy":
            ledger = self.ledger()
            found = [one for one in found if not ledger.knows(one)]
        results = self.claimer().take(found, keep_on)
        return {result.found.path: result.outcome for result in results}

    def entries(self) -> dict[str, bytes]:
        """What lies ready: path and content; every path once."""
        found = {}
        for entry in waiting_entries(self.layout):
            assert entry.path not in found
            found[entry.path] = entry.where(self.layout).read_bytes()
        return found

    def left(self) -> list[str]:
        return sorted(
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
        )


@pytest.fixture
def drop(settings: Settings) -> Drop:
    return Drop(settings, settings.layout.inbox)


def test_files_of_one_file_system_are_renamed_into_one_batch(drop):
    inodes = {one.path: one.state.inode for one in drop.found()}
    assert set(drop.take().values()) == {Outcome.TAKEN}
    assert drop.entries() == CONTENTS
    assert drop.left() == []
    entries = list(waiting_entries(drop.layout))
    assert sorted(drop.offered) == sorted(entries)
    assert {e.path: e.where(drop.layout).stat().st_ino for e in entries} == inodes
    (batch,) = {entry.batch for entry in entries}
    assert read_source(drop.layout, batch).folder == str(drop.root)


def test_files_of_another_file_system_are_copied_and_their_sources_removed(settings, elsewhere):
    drop = Drop(settings, elsewhere)
    assert set(drop.take().values()) == {Outcome.TAKEN}
    assert drop.entries() == CONTENTS
    assert drop.left() == []
    assert os.listdir(drop.layout.incoming) == []


def test_a_rename_that_the_kernel_refuses_across_mounts_becomes_a_copy(drop, monkeypatch):
    def refuse(*_: object) -> EntryName:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(grouping.GroupedBatch, "adopt", refuse)
    assert set(drop.take().values()) == {Outcome.TAKEN}
    assert drop.entries() == CONTENTS
    assert drop.left() == []


def test_a_hard_link_is_copied_so_that_no_inode_is_shared(drop, tmp_path):
    other = tmp_path / "kept by the user"
    os.link(drop.root / "a.dcm", other)
    assert drop.take()["a.dcm"] is Outcome.TAKEN
    other.write_bytes(b"the user goes on writing")
    assert drop.entries() == CONTENTS
    assert drop.left() == []


def test_two_links_of_one_file_within_a_drop_are_two_entries(drop):
    os.link(drop.root / "a.dcm", drop.root / "study" / "same.dcm")
    drop.take()
    assert drop.entries() == {**CONTENTS, "study/same.dcm": b"one"}
    assert drop.left() == []


def test_a_file_that_somebody_writes_stays_until_it_is_closed(drop):
    with open(drop.root / "a.dcm", "ab"):
        assert drop.take()["a.dcm"] is Outcome.BUSY
        assert drop.left() == ["a.dcm"]
    assert drop.take() == {"a.dcm": Outcome.TAKEN}


def test_a_file_that_somebody_maps_for_writing_stays(drop):
    with open(drop.root / "a.dcm", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    try:
        assert drop.take()["a.dcm"] is Outcome.BUSY
    finally:
        mapped.close()


def test_a_file_that_is_only_read_is_taken(drop):
    with open(drop.root / "a.dcm", "rb"):
        assert drop.take()["a.dcm"] is Outcome.TAKEN


def test_a_writer_that_comes_while_we_look_keeps_its_file(drop, monkeypatch):
    """It waits for our lease, in the kernel; we see that and let go."""
    opened = threading.Event()
    writer = threading.Thread(
        target=lambda: (open(drop.root / "a.dcm", "ab").close(), opened.set())
    )
    fsync = os.fsync

    def fsync_while_somebody_opens(descriptor: int) -> None:
        fsync(descriptor)
        if writer.ident is None and os.readlink(f"/proc/self/fd/{descriptor}").endswith("a.dcm"):
            writer.start()
            assert not opened.wait(0.2)

    monkeypatch.setattr(os, "fsync", fsync_while_somebody_opens)
    assert drop.take()["a.dcm"] is Outcome.CHANGED
    writer.join(5)
    assert opened.is_set()
    assert "a.dcm" in drop.left()
    assert drop.take() == {"a.dcm": Outcome.TAKEN}


@pytest.mark.parametrize("mode", ["move", "copy"])
def test_a_file_that_changes_while_it_is_copied_is_not_published(
    settings, elsewhere, monkeypatch, mode
):
    drop = Drop(settings, elsewhere, mode)
    copy_new = durable.copy_new

    def copy_and_grow(source: Path, target: Path, mode: int) -> None:
        copy_new(source, target, mode)
        if "b.dcm" in source.name:
            with open(os.open(source, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK), "ab") as file:
                file.write(b"more")

    monkeypatch.setattr(sources, "take_lease", lambda _: LeaseState.UNKNOWN)
    monkeypatch.setattr(durable, "copy_new", copy_and_grow)
    assert drop.take()["study/b.dcm"] is Outcome.CHANGED
    assert "study/b.dcm" not in drop.entries()
    assert os.listdir(drop.layout.incoming) == []
    monkeypatch.undo()
    drop.take()
    assert drop.entries() == {**CONTENTS, "study/b.dcm": b"twomore"}


def test_a_source_that_is_replaced_at_the_last_moment_is_given_back(drop, monkeypatch):
    adopt = BatchWriter.adopt

    def adopt_what_came_instead(
        self: BatchWriter, file: Path, path: str, *, sync: bool
    ) -> EntryName:
        if path == "a.dcm":
            (drop.root / "new").write_bytes(b"half of a new fi")
            os.replace(drop.root / "new", file)
        return adopt(self, file, path, sync=sync)

    monkeypatch.setattr(BatchWriter, "adopt", adopt_what_came_instead)
    assert drop.take()["a.dcm"] is Outcome.CHANGED
    assert drop.left() == ["a.dcm"]
    assert "a.dcm" not in drop.entries()


def test_what_is_no_longer_as_it_settled_is_not_taken(drop):
    found = drop.found()
    (drop.root / "a.dcm").write_bytes(b"something longer")
    (drop.root / "study" / "b.dcm").unlink()
    results = drop.claimer().take(found, lambda: True)
    outcomes = {result.found.path: result.outcome for result in results}
    assert outcomes["a.dcm"] is Outcome.CHANGED
    assert outcomes["study/b.dcm"] is Outcome.GONE
    assert outcomes["study/series 1/c.dcm"] is Outcome.TAKEN


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_takes_the_place_of_a_settled_file_is_not_followed(drop, tmp_path, kind):
    found = drop.found()
    secret = tmp_path / "secret"
    secret.write_bytes(b"one")
    (drop.root / "a.dcm").unlink()
    if kind == "link":
        (drop.root / "a.dcm").symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(drop.root / "a.dcm")
    else:
        (drop.root / "a.dcm").mkdir()
    results = drop.claimer().take(found, lambda: True)
    assert {r.found.path: r.outcome for r in results}["a.dcm"] in (Outcome.GONE, Outcome.CHANGED)
    assert secret.exists()
    assert "a.dcm" not in drop.entries()


def test_a_full_spool_ends_the_round_and_keeps_every_file(settings, elsewhere, monkeypatch):
    drop = Drop(settings, elsewhere)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "copy_new", full)
    with pytest.raises(OSError, match="No space left"):
        drop.take()
    assert len(drop.left()) == len(CONTENTS)
    monkeypatch.undo()
    drop.take()
    assert drop.entries() == CONTENTS


def test_a_file_too_large_for_the_reserve_is_not_begun(settings, elsewhere):
    drop = Drop(settings, elsewhere)
    with open(drop.root / "huge", "wb") as file:
        file.truncate(1 << 50)  # sparse: more than any disk
    outcomes = drop.take()
    assert outcomes.pop("huge") is Outcome.TROUBLE
    assert set(outcomes.values()) == {Outcome.TAKEN}


def test_a_batch_json_of_the_user_is_an_entry_like_any_other(drop):
    (drop.root / "batch.json").write_bytes(b"{}")
    (drop.root / "_").mkdir()
    (drop.root / "_" / "batch.json").write_bytes(b"[]")
    drop.take()
    assert drop.entries() == {**CONTENTS, "_/batch.json": b"{}", "_/_/batch.json": b"[]"}


@pytest.mark.parametrize("mode", ["move", "copy"])
def test_names_that_are_not_utf8_and_names_of_255_bytes(settings, elsewhere, mode):
    drop = Drop(settings, elsewhere, mode)
    odd, long = os.fsdecode(b"\xff\xfe.dcm"), "n" * 251 + ".dcm"
    for name in (odd, long):
        (drop.root / name).write_bytes(os.fsencode(name))
    assert set(drop.take().values()) == {Outcome.TAKEN}
    entries = drop.entries()
    assert entries[odd] == os.fsencode(odd)
    assert os.fsencode(long) in entries.values()
    assert len(entries) == len(CONTENTS) + 2


def test_copied_files_stay_and_are_taken_once(settings, elsewhere):
    drop = Drop(settings, elsewhere, "copy")
    assert set(drop.take().values()) == {Outcome.TAKEN}
    assert drop.entries() == CONTENTS
    assert drop.left() == sorted(CONTENTS)
    assert drop.take() == {}


def test_a_copied_file_that_changes_is_taken_again(settings, elsewhere):
    drop = Drop(settings, elsewhere, "copy")
    drop.take()
    (drop.root / "a.dcm").write_bytes(b"ONE")
    assert drop.take() == {"a.dcm": Outcome.TAKEN}
    assert len(list(waiting_entries(drop.layout))) == len(CONTENTS) + 1


def test_copied_files_of_one_file_system_share_no_inode(settings):
    drop = Drop(settings, settings.layout.inbox, "copy")
    drop.take()
    inodes = {one.state.inode for one in drop.found()}
    assert inodes.isdisjoint(
        e.where(drop.layout).stat().st_ino for e in waiting_entries(drop.layout)
    )


def test_a_torn_line_of_the_ledger_is_as_if_never_written(settings, elsewhere):
    drop = Drop(settings, elsewhere, "copy")
    drop.take()
    path = ledger_path(drop.layout, str(drop.root))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"batch":"f1764000000000-0011aabb","took":[["a.d')
    assert len(drop.ledger()) == len(CONTENTS)
    assert drop.ledger().unfinished() == {}
    (drop.root / "new.dcm").write_bytes(b"new")
    assert drop.take() == {"new.dcm": Outcome.TAKEN}
    assert len(drop.ledger()) == len(CONTENTS) + 1


def test_the_ledger_forgets_what_is_gone_for_a_day_and_shrinks(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    (tmp_path / "f").write_bytes(b"x")
    state = state_of((tmp_path / "f").stat())
    assert state is not None
    for number in range(60):
        batch = f"f{number}"
        ledger.begin(batch, [Found(f"{number}/{n}", state) for n in range(50)])
        ledger.finish(batch)
    size = (tmp_path / "ledger").stat().st_size
    kept = {f"0/{n}" for n in range(50)}
    ledger.saw(kept, now=0.0)
    ledger.saw(kept, now=86_000.0)
    assert len(ledger) == 3000
    ledger.saw(kept, now=86_400.0)
    assert len(ledger) == 50
    assert (tmp_path / "ledger").stat().st_size < size / 20
    assert len(Ledger(tmp_path / "ledger")) == 50
    assert Ledger(tmp_path / "ledger").knows(Found("0/1", state))


def test_a_ledger_that_cannot_be_written_whole_is_left_as_it_was(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger")
    ledger.begin("f1", [])
    before = (tmp_path / "ledger").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, raw: write(fd, raw[: len(raw) // 2]))
    with pytest.raises(OSError, match="whole"):
        ledger.finish("f1")
    assert (tmp_path / "ledger").read_bytes() == before


STEPS = ("open", "rename", "unlink", "link", "fsync", "mkdir", "rmdir", "write", "replace")
"""The calls before any of which the process may be killed."""


def killed_before_step(drop: Drop, number: int) -> bool:
    """Claim in a child that is killed before its `number`-th step; False if it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _kill_at(number)
            drop.take()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def _kill_at(number: int) -> None:
    left = [number]

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    durable.rename_new = counted(durable.rename_new)  # type: ignore[assignment]
    durable.copy_new = counted(durable.copy_new)  # type: ignore[assignment]


@pytest.mark.chaos
@pytest.mark.parametrize("filed", [False, True], ids=["waiting", "filed meanwhile"])
@pytest.mark.parametrize("mode", ["rename", "move", "copy"])
def test_a_kill_before_any_step_loses_nothing_and_doubles_nothing(
    settings, elsewhere, tmp_path, mode, filed
):
    """What is filed between kill and restart may come back only under the name that it had."""
    step = 0
    killed = True
    while killed:
        step += 1
        root = (tmp_path if mode == "rename" else elsewhere) / f"drop{step}"
        drop = Drop(settings, root, "copy" if mode == "copy" else "move")
        killed = killed_before_step(drop, step)
        seen: dict[EntryName, bytes] = {}

        def file_all(drop: Drop = drop, seen: dict[EntryName, bytes] = seen) -> None:
            for entry in list(waiting_entries(drop.layout)):
                content = entry.where(drop.layout).read_bytes()
                assert seen.setdefault(entry, content) == content
                entry.where(drop.layout).unlink()

        if filed:
            file_all()
        for _ in range(3):  # the restart; a claim may have to settle once more
            drop.take()
        file_all()
        assert {entry.path: content for entry, content in seen.items()} == CONTENTS
        assert len(seen) == len(CONTENTS), f"twice after a kill before step {step}"
        assert drop.left() == (sorted(CONTENTS) if mode == "copy" else [])
        assert os.listdir(drop.layout.incoming) == [] or killed
        for name in os.listdir(drop.layout.ready):
            shutil.rmtree(drop.layout.ready / name)
        for name in os.listdir(drop.layout.incoming):
            leftover = drop.layout.incoming / name
            assert leftover.name.endswith(".batch"), "a copy in progress is finished, not left"
            shutil.rmtree(leftover)
    assert step > 20


def test_a_stop_between_claims_leaves_them_to_be_found_again(settings, elsewhere):
    drop = Drop(settings, elsewhere)
    answers = iter([True] * (len(CONTENTS) + 2))
    drop.take(lambda: next(answers, False))
    kinds = {one.kind for one in drop.found()}
    assert kinds == {NameKind.CLAIM}
    assert set(drop.take().values()) == {Outcome.TAKEN}
    assert drop.entries() == CONTENTS
    assert len({entry.batch for entry in waiting_entries(drop.layout)}) == 1


def test_a_batch_that_another_process_holds_is_left_to_it(settings):
    source = BatchSource(kind="folder", folder="x")
    with BatchWriter(settings.layout, source) as batch, pytest.raises(BlockingIOError):
        BatchWriter(settings.layout, source, batch.name)


def test_a_batch_taken_up_again_numbers_nothing(settings):
    source = BatchSource(kind="folder", folder="x")
    name = "f1764000000000-0011aabb"
    with (
        BatchWriter(settings.layout, source, name) as batch,
        pytest.raises(ValueError, match="taken up again"),
    ):
        batch.publish((b"x",))
    assert os.listdir(settings.layout.ready) == []
