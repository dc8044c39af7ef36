"""Who may read what is filed: as the settings say, whatever the umask and whoever dropped it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import SENDER, World, encoded, make_world, small_instances, uid_of
from running import petct, running, wait_until

from config.errors import FolderUnusable
from config.settings import load_settings
from daemon.watcher.watching import run_watcher
from workers.completeness.judging import judge_studies
from workers.filing.protocol import Filer
from workers.index.sqlite import back_up
from workers.index.tables import pair
from workers.pairing import build
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study
from workers.spool.batches import waiting_entries

STUDY = make_study(PhantomSpec(size="tiny"))


@pytest.fixture(params=[0o000, 0o077], ids=["umask 0", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def modes_below(top: Path) -> dict[str, int]:
    found = {}
    for folder, _, files in os.walk(top):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            found[str(path.relative_to(top))] = mode(path)
    return found


def paired(world: World) -> None:
    parts = [STUDY.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    (row,) = world.rows(pair)
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [("0640", "0750"), ("0600", "0700"), ("0664", "0775")]
)
def test_the_tree_its_pairs_journal_and_index_have_the_modes_of_the_settings(
    tmp_path: Path, umask: int, file_mode: str, folder_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "draw_pair", lambda *_: b"a picture")
    world = make_world(
        tmp_path / "root", files={"mode": file_mode, "folder_mode": folder_mode},
        pairing={"nifti": True},
    )  # fmt: skip
    try:
        paired(world)
        root, files, folders = world.layout.root, int(file_mode, 8), int(folder_mode, 8)
        found = modes_below(world.layout.archive)
        private = {name: found.pop(name) for name in list(found) if name.startswith(".petct")}
        assert len(found) > 30
        assert {name.rpartition("/")[2] for name in found} >= {
            "ct.npy", "pet.npy", "pair.json", "qc.png", "ct.nii.gz",
        }  # fmt: skip
        for name, have in found.items():
            assert have == (folders if (world.layout.archive / name).is_dir() else files), name
        assert private[".petct"] == folders & ~0o022
        assert private[".petct/facts.jsonl"] == files
        assert private[".petct/tmp"] == 0o700
        assert {mode(root / name) for name in ("index.sqlite", "index.sqlite-wal")} == {files}
        back_up(world.layout.index, "0")
        assert mode(root / "index.sqlite.before-migration-from-0") == files
        assert mode(root) == folders
        for place in (world.layout.spool, world.layout.quarantine, world.layout.run):
            assert mode(place) == 0o700, place
    finally:
        world.close()


def test_a_second_file_system_changes_no_mode(tmp_path: Path, elsewhere: Path, umask: int) -> None:
    world = make_world(tmp_path / "root", paths={"archive": str(elsewhere / "archive")})
    try:
        (content,) = small_instances(tmp_path / "made", 1)
        world.put({"a": content}, SENDER)
        world.file_all()
        path = world.path_of(uid_of(content))
        assert (mode(path), mode(path.parent), mode(elsewhere / "archive")) == (
            0o640, 0o750, 0o750,
        )  # fmt: skip
    finally:
        world.close()


def test_a_folder_that_hands_its_group_down_goes_on_doing_so(tmp_path: Path, umask: int) -> None:
    archive = tmp_path / "root" / "archive"
    archive.mkdir(parents=True)
    archive.chmod(0o2750)
    world = make_world(tmp_path / "root")
    try:
        (content,) = small_instances(tmp_path / "made", 1)
        world.put({"a": content})
        world.file_all()
        folder = world.path_of(uid_of(content)).parent
        while folder != archive.parent:
            assert mode(folder) == 0o2750, folder
            folder = folder.parent
    finally:
        world.close()


def watched_world(tmp_path: Path) -> World:
    return make_world(
        tmp_path / "root", spool={"minimum_free_mb": 1, "minimum_free_inodes": 1},
        watch=[{"path": str(tmp_path / "root" / "inbox"), "settle_seconds": 0.1}],
    )  # fmt: skip


def claimed(world: World) -> list[Any]:
    """Let a watcher take what lies in the inbox."""
    stop = threading.Event()
    thread = threading.Thread(target=run_watcher, args=(world.settings, stop))
    thread.start()
    try:
        wait_until(lambda: any(waiting_entries(world.layout)))
    finally:
        stop.set()
        thread.join()
    return list(waiting_entries(world.layout))


@pytest.mark.parametrize("dropped", [0o600, 0o4777, 0o444])
def test_a_dropped_file_gets_the_trees_mode_and_not_its_own(tmp_path: Path, dropped: int) -> None:
    world = watched_world(tmp_path)
    try:
        (content,) = small_instances(tmp_path / "made", 1)
        world.layout.inbox.mkdir(exist_ok=True)
        drop = world.layout.inbox / "a"
        drop.write_bytes(content)
        drop.chmod(dropped)
        inode = drop.stat().st_ino
        Filer(world.index, world.settings).file_entries(claimed(world))
        path = world.path_of(uid_of(content))
        assert (mode(path), path.stat().st_ino) == (0o640, inode)  # it was moved, not copied
    finally:
        world.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_another_user_owns_is_copied_so_that_he_cannot_change_it_later(
    tmp_path: Path,
) -> None:
    world = watched_world(tmp_path)
    try:
        (content,) = small_instances(tmp_path / "made", 1)
        world.layout.inbox.mkdir(exist_ok=True)
        drop = world.layout.inbox / "a"
        drop.write_bytes(content)
        os.chown(drop, 12345, 12345)
        (entry,) = claimed(world)
        assert entry.where(world.layout).stat().st_uid == os.geteuid()
        assert not drop.exists()
        world.file([entry])
        path = world.path_of(uid_of(content))
        assert (path.stat().st_uid, mode(path)) == (os.geteuid(), 0o640)
        assert list(world.layout.inbox.iterdir()) == []
    finally:
        world.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_an_entry_that_another_user_owns_is_never_linked_into_the_tree(tmp_path: Path) -> None:
    world = make_world(tmp_path / "root")
    try:
        (content,) = small_instances(tmp_path / "made", 1)
        (entry,) = world.put({"a": content})
        os.chown(entry.where(world.layout), 12345, 12345)
        world.file_all()
        world.check()
        assert world.path_of(uid_of(content)).stat().st_uid == os.geteuid()
    finally:
        world.close()


def test_a_role_makes_nothing_that_others_may_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with running(petct("sweep", "--root", root), tmp_path / "log") as sweeper:
        wait_until(lambda: (root / "archive" / ".petct" / "id").exists())
        umask = Path(f"/proc/{sweeper.pid}/status").read_text().partition("Umask:")[2].split()[0]
        assert umask == "0077"
        wait_until(lambda: (root / "index.sqlite").exists())
        assert (mode(root), mode(root / "archive"), mode(root / "run")) == (0o750, 0o750, 0o700)
        assert mode(root / "index.sqlite") == 0o640
        sweeper.end()


@pytest.mark.parametrize("files", [{"mode": "0440"}, {"folder_mode": "0670"}, {"mode": "0666"}])
def test_a_mode_that_locks_us_out_or_lets_everybody_write_is_refused(
    tmp_path: Path, files: dict[str, str]
) -> None:
    with pytest.raises(Exception, match="files"):
        load_settings(root=tmp_path, overrides={"files": files}, environ={})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("place", ["spool", "quarantine", "run", "inbox"])
def test_a_place_of_ours_that_is_another_users_link_is_refused(tmp_path: Path, place: str) -> None:
    layout = load_settings(root=tmp_path / "root", environ={}).layout
    layout.root.mkdir()
    (tmp_path / "theirs").mkdir(mode=0o755)
    (layout.root / place).symlink_to(tmp_path / "theirs")
    layout.make_private()  # our own link: a disk elsewhere
    os.chown(layout.root / place, 12345, 12345, follow_symlinks=False)
    with pytest.raises(FolderUnusable, match="another user"):
        layout.make_private()
