"""What hinders the system is said, and nothing is taken that cannot be filed."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from filing_world import a_world, encoded, small_instances
from running import wait_until

from config.errors import BadValue
from config.settings import load_settings
from daemon import looking
from daemon.refilling import _Patience
from daemon.room import Room
from daemon.watcher import counting
from daemon.watcher.gate import SpoolGate
from workers import durable
from workers.completeness.judging import judge_studies
from workers.errors import StoreUnavailable
from workers.index.tables import pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study


@pytest.mark.parametrize("store", ["spool", "archive"])
def test_an_intake_takes_nothing_while_a_store_is_missing(tmp_path: Path, store: str) -> None:
    with a_world(tmp_path / "root", spool={"minimum_free_mb": 0}) as world:
        room = Room(world.layout, world.settings.spool)
        gate = SpoolGate(world.layout, world.settings.spool)
        assert room.refusal(1, 0.0) is None
        assert gate.reason() is None
        mark = getattr(world.layout, store) / ".petct" / "id"
        mark.rename(tmp_path / "id")
        assert f"the {store} at" in str(room.refusal(1, 1.0))
        wait_until(lambda: f"the {store} at" in str(gate.reason()), 5)  # a look counts for 0.2 s
        mark.write_text("f" * 32)
        assert "is another one" in str(room.refusal(1, 2.0))
        (tmp_path / "id").rename(mark)
        assert room.refusal(1, 3.0) is None
        wait_until(lambda: gate.reason() is None, 5)


def test_a_full_archive_ends_the_batch_at_once_and_names_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "root") as world:
        files = small_instances(tmp_path / "made", 5)
        world.put({str(number): content for number, content in enumerate(files)})
        tries = []

        def full(source: Any, target: Any, **_: Any) -> None:
            tries.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", full)
            with pytest.raises(StoreUnavailable) as caught:
                world.file()
        assert "No space left on device" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert len(tries) == 1
        assert world.file_all().filed == 5


def test_sqlites_words_for_a_full_disk_are_known() -> None:
    assert durable.why_full(RuntimeError("(sqlite3.OperationalError) database or disk is full"))
    assert durable.why_full(OSError(errno.EROFS, "Read-only file system"))
    assert durable.why_full(OSError(errno.EIO, "Input/output error")) is None


def test_a_file_missing_in_the_tree_holds_the_pair_in_words(tmp_path: Path) -> None:
    study = make_study(PhantomSpec(size="tiny"))
    with a_world(tmp_path / "root") as world:
        parts = [study.named(name) for name in ("CT IMAGES", "PET AC")]
        world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
        report = world.file()
        judge_studies(world.index, world.settings, report.touched_studies)
        next(world.layout.archive.rglob("*.dcm")).unlink()
        row = world.rows(pair)[0]
        assert make_pair(world.index, world.settings, row.id, row.generation) == "held"
        (row,) = world.rows(pair)
        assert row.state == "held"
        assert "1 file of the index missing in the tree" in row.reasons


def test_what_failed_at_once_is_asked_for_less_and_less_often() -> None:
    patience = _Patience()
    asked = [now for now in range(200) if patience.is_over("the same", float(now))]
    assert asked == [0, 2, 6, 14, 30, 62, 122, 182]
    assert patience.is_over("something else", 200.0)


def test_a_file_that_is_claimed_while_status_counts_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_world(tmp_path / "root") as world:
        (content,) = small_instances(tmp_path / "made", 1)
        dropped = world.layout.inbox / "one.dcm"
        dropped.write_bytes(content)
        count = counting.count_unclaimed

        def claimed_meanwhile(settings: Any) -> int:
            found = count(settings)
            dropped.unlink()
            world.put({"one.dcm": content})
            return found

        monkeypatch.setattr(counting, "count_unclaimed", claimed_meanwhile)
        assert looking.look(world.settings).waiting >= 1


def test_status_names_watched_folders_that_are_missing_and_inboxes_that_nobody_watches(
    tmp_path: Path,
) -> None:
    watch = [{"path": tmp_path / "gone"}]
    with a_world(tmp_path / "root", watch=watch) as world:
        (world.layout.inbox / "lost.dcm").write_bytes(b"x")
        troubles = "\n".join(looking.look(world.settings).troubles)
    assert f"{tmp_path / 'gone'} is missing" in troubles
    assert "nobody takes them" in troubles


def test_a_redis_url_without_a_scheme_is_refused_with_what_it_should_be(tmp_path: Path) -> None:
    given = {"redis": {"url": "localhost:6379"}}
    with pytest.raises(BadValue, match="redis://"):
        load_settings(root=tmp_path, overrides=given, environ={})


def test_a_single_table_where_several_may_stand_is_explained(tmp_path: Path) -> None:
    config = tmp_path / "petct.toml"
    config.write_text('[watch]\npath = "/data"\n')
    with pytest.raises(BadValue, match=r"\[\[watch\]\]"):
        load_settings(config, root=tmp_path, environ={})
