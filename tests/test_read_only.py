"""A delivery that cannot be written to is adopted: what we make of it lies below the root."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from disks import call, private_mounts
from filing_world import SENDER, World, a_world, encoded, settings_for, tiny
from running import petct
from test_reindex import deliver
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.looking import look
from workers.completeness.overriding import override_pair
from workers.errors import StoreUnavailable
from workers.filing.journal import read_facts
from workers.identity import PinnedStores, check_archive
from workers.index.engine import prepare_index
from workers.index.tables import pair
from workers.pairing.evidence import Override
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

EASY = {"minimum_free_mb": 1, "minimum_free_inodes": 1}


class ReadOnly:
    """A folder that nobody may write to: a read-only bind mount where we may mount, else modes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._mounts = private_mounts()

    def begin(self) -> None:
        if self._mounts:
            call("mount", "--bind", self.place, self.place)
            call("mount", "-o", "remount,bind,ro", self.place)
        else:
            self._modes(0o555)

    def end(self) -> None:
        if self._mounts:
            with suppress(subprocess.CalledProcessError):
                call("umount", "--lazy", self.place)
        else:
            self._modes(0o755)

    def _modes(self, mode: int) -> None:
        for folder in [self.place, *(one for one in self.place.rglob("*") if one.is_dir())]:
            folder.chmod(mode)


@pytest.fixture
def delivery(tmp_path: Path) -> Iterator[Path]:
    """Two studies, read-only."""
    place = tmp_path / "delivery"
    deliver(place, 1, 2, only=("CT IMAGES", "PET AC"))
    disk = ReadOnly(place)
    disk.begin()
    yield place
    disk.end()


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    found = [folder, *folder.rglob("*")]
    return {str(one): (one.lstat().st_ino, one.lstat().st_mtime_ns) for one in found}


def adopted(delivery: Path, *words: str) -> tuple[World, dict[str, Any]]:
    """Reindex a delivery by the command; return the installation and what was told."""
    root = delivery.parent / "site"
    done = subprocess.run(
        petct("reindex", "--root", root, "--archive", delivery, "--json", *words),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = settings_for(root, paths={"archive": str(delivery)}, spool=EASY)
    return World(settings), json.loads(done.stdout)


def command(world: World, tmp_path: Path, *words: object) -> str:
    config = tmp_path / "config.toml"
    config.write_text(
        f'root = "{world.layout.root}"\n[paths]\narchive = "{world.layout.archive}"\n'
    )
    result = CliRunner().invoke(app, [*map(str, words), "--config", str(config)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_read_only_delivery_is_adopted_paired_and_exported(
    delivery: Path, tmp_path: Path
) -> None:
    before = everything(delivery)
    world, told = adopted(delivery)
    assert (told["adopted"], told["findings"], told["pairs"]) == (told["files"], {}, {"ready": 2})
    output = world.layout.root / "pairs"
    assert world.layout.output == output
    made = sorted(output.glob("*/*/Auto-Paired"))
    assert len(made) == 2
    assert load_pair(made[0]).units == "suvbw"

    studies = json.loads(command(world, tmp_path, "studies", "--state", "ready", "--json"))
    shown = json.loads(command(world, tmp_path, "show", studies[0]["study"], "--json"))
    assert shown["pair"]["suv"]["status"] == "ok"
    command(world, tmp_path, "export", "sample", studies[0]["study"], tmp_path / "sample")
    assert len(list((tmp_path / "sample" / "DICOM").iterdir())) > 0
    command(world, tmp_path, "export", "datalist", tmp_path / "list.json", "--validation", "0")
    listed = json.loads((tmp_path / "list.json").read_text())
    assert all(Path(one["pet"]).is_file() for one in listed["training"])
    assert len(listed["training"]) == 2
    command(world, tmp_path, "check")
    command(world, tmp_path, "export", "omidb", tmp_path / "omi")

    _, again = adopted(delivery)
    assert (again["adopted"], again["unchanged"], again["pairs"]) == (0, told["files"], {})
    assert everything(delivery) == before
    world.close()


def test_nothing_new_is_filed_into_it_and_the_reason_is_told(delivery: Path) -> None:
    before = everything(delivery)
    world, _ = adopted(delivery, "--no-pair")
    assert "read-only" not in " ".join(look(world.settings).troubles)
    with pytest.raises(StoreUnavailable, match="adopted read-only: nothing new is filed"):
        PinnedStores(world.layout).check()
    names = world.put({"late": encoded(tiny(patient_number=3))}, SENDER)
    with pytest.raises(StoreUnavailable, match="adopted read-only: nothing new is filed"):
        world.file()
    assert world.waiting() == names
    assert everything(delivery) == before
    world.close()


def test_what_a_person_says_is_kept_below_the_root(delivery: Path) -> None:
    world, _ = adopted(delivery, "--no-pair")
    uid = make_study(PhantomSpec(size="tiny")).study_uid
    override_pair(world.index, world.settings, uid, Override(forced=True), "tester")
    facts = [one["kind"] for one in read_facts(world.layout.output)]
    assert facts == ["override"]
    (row,) = [one for one in world.rows(pair) if one.override]
    assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"
    world.close()


def test_a_delivery_that_is_not_mounted_is_not_walked(tmp_path: Path) -> None:
    place = tmp_path / "delivery"
    deliver(place, 1, only=("PET AC",))
    disk = ReadOnly(place)
    disk.begin()
    world, _ = adopted(place, "--no-pair")
    disk.end()
    aside = place.rename(tmp_path / "aside")
    place.mkdir()
    identity = world.index.identities().archive
    with pytest.raises(StoreUnavailable, match=r"empty: is its disk mounted\?"):
        check_archive(world.layout, identity)
    place.rmdir()
    aside.rename(place)
    check_archive(world.layout, identity)
    world.close()


def test_an_archive_of_ours_keeps_identity_and_journal_on_a_read_only_disk(tmp_path: Path) -> None:
    with a_world(tmp_path / "first") as world:
        world.put({"a": encoded(tiny())}, SENDER)
        world.file()
        archive, identity = world.layout.archive, world.index.identities().archive
        facts = list(read_facts(archive))
    assert facts
    disk = ReadOnly(archive)
    disk.begin()
    settings = settings_for(tmp_path / "second", paths={"archive": str(archive)})
    index = prepare_index(settings)
    assert index.identities().archive == identity
    assert list(read_facts(settings.layout.output)) == facts
    index.close()
    disk.end()


def test_a_disk_that_turns_read_only_stays_what_it_is(tmp_path: Path) -> None:
    with a_world(tmp_path / "site") as world:
        disk = ReadOnly(world.layout.archive)
        disk.begin()
        prepare_index(world.settings).close()
        assert not world.layout.is_read_only
        disk.end()
        world.put({"a": encoded(tiny())}, SENDER)
        assert world.file_all().filed == 1
