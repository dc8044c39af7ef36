"""What comes from a source that asks for it is de-identified before tree and index see it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import (
    SENDER,
    BadSectors,
    World,
    changed,
    die,
    encoded,
    in_child,
    make_world,
    other_pixels,
    recoded,
    tiny,
    uid_of,
)
from pydicom import dcmread

from workers import durable
from workers.deidentify import entry
from workers.errors import StoreUnavailable
from workers.filing.journal import read_facts
from workers.filing.labels import Labels, labels_of
from workers.filing.left import left_entries
from workers.filing.releasing import retry_entry
from workers.index.tables import arrival, event, instance, series, study
from workers.spool.batches import BatchSource

DROP = BatchSource(kind="folder", folder="/data/drop")
OURS = {"deidentify": "dicognito"}
SECRETS = ("Doe^Jane", "MRN-4711", "ACC-0815", "DOE_JANE")


def secret_instance(number: int = 0, **more: Any) -> bytes:
    return changed(
        encoded(tiny("CT IMAGES", number)), PatientName="Doe^Jane", PatientID="MRN-4711",
        AccessionNumber="ACC-0815", **more,
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(
        tmp_path / "site",
        sources=[{"folder": "/data/drop", **OURS}, {"calling_ae": "PACS", **OURS}],
    )
    yield world
    world.close()


def everything_told(world: World) -> bytes:
    """Index, journal and names of the tree: what may hold nobody's name."""
    world.close()
    told = b"".join(path.read_bytes() for path in world.layout.root.glob("index.sqlite*"))
    told += json.dumps(list(read_facts(world.layout.archive))).encode()
    return told + "\n".join(str(path) for path in world.layout.archive.rglob("*")).encode()


@pytest.mark.parametrize("source", [DROP, SENDER])
def test_nothing_that_names_somebody_reaches_tree_index_or_logs(
    world: World, source: BatchSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    contents = {f"DOE_JANE/{number}.dcm": secret_instance(number) for number in range(3)}
    originals = [uid_of(one) for one in contents.values()]
    world.put(contents, source)
    world.file()
    assert world.outcomes() == {"filed": 3}
    world.check()
    for content in world.tree().values():
        for secret in (*SECRETS, *originals):
            assert secret.encode() not in content
    told = everything_told(world)
    for secret in (*SECRETS, *originals):
        assert secret.encode() not in told, secret
        assert secret not in caplog.text


def test_slices_of_a_series_stay_together_and_a_repeated_one_is_a_duplicate(world: World) -> None:
    world.put({str(number): secret_instance(number) for number in range(3)}, DROP)
    world.file()
    world.put({"again": secret_instance(1), "recoded": recoded(secret_instance(2))}, SENDER)
    world.file()
    assert world.outcomes() == {"filed": 3, "duplicate": 2}
    assert len(world.rows(series)) == len(world.rows(study)) == 1


def test_the_received_data_set_is_remembered_by_a_keyed_digest(world: World) -> None:
    world.put({"a": secret_instance()}, DROP)
    world.file()
    (row,) = world.rows(arrival)
    assert row.dataset_sha256 not in (None, world.rows(instance)[0].dataset_sha256)
    assert len(row.dataset_sha256) == 64


def test_other_sources_are_left_as_they_are(world: World) -> None:
    content = secret_instance()
    world.put({"a": content}, BatchSource(kind="folder", folder="/data/other"))
    world.file()
    assert list(world.tree().values()) == [content]


def test_a_batch_of_nobody_knows_where_is_kept_as_it_came_and_not_told(world: World) -> None:
    (name,) = world.put({"a": secret_instance()}, BatchSource(kind="folder", folder="/x"))
    (world.layout.ready / name.batch / "batch.json").unlink()
    world.file()
    assert world.tree() == {}
    assert world.outcome_of(name).code == "identifiable"
    assert world.kept_bytes(name) == secret_instance()
    retry_entry(world.index, world.layout, name.identifier)
    world.file()
    assert world.tree() == {}, "a retry does not tell either where it came from"


def test_what_was_set_aside_de_identified_stays_so_when_it_is_retried(world: World) -> None:
    world.put({"a": secret_instance()}, DROP)
    world.file()
    (name,) = world.put({"b": other_pixels(secret_instance())}, DROP)
    world.file()
    assert world.outcome_of(name).outcome == "conflict"
    retry_entry(world.index, world.layout, name.identifier)
    world.file_all()
    assert world.outcomes() == {"filed": 1, "retried": 1, "conflict": 1}
    assert len(world.rows(study)) == 1


def test_what_stands_beside_the_data_set_goes_too(world: World) -> None:
    content = bytearray(secret_instance())
    content[:8] = b"Doe^Jane"
    dataset = dcmread(io.BytesIO(bytes(content)))
    dataset.file_meta.SourceApplicationEntityTitle = "DOE_JANE"
    dataset.PersonAddress = dataset.AdmissionID = "DOE_JANE"
    dataset.add_new(0x60000022, "LO", "DOE_JANE")
    dataset.add_new(0xFFFCFFFC, "OB", b"DOE_JANE")
    world.put({"a": encoded(dataset)}, DROP)
    world.file()
    (filed,) = world.tree().values()
    assert b"DOE_JANE" not in filed
    assert filed[:128] == bytes(128)


def test_what_may_name_somebody_in_its_pixels_is_set_aside_and_not_told(world: World) -> None:
    burned = world.put({"DOE_JANE/a": secret_instance(BurnedInAnnotation="YES")}, DROP)[0]
    damaged = world.put({"DOE_JANE/b": secret_instance(1)[:900]}, DROP)[0]
    litter = world.put({"DOE_JANE/Thumbs.db": b"no instance"}, DROP)[0]
    world.file()
    assert world.outcome_of(burned).code == "identifiable"
    assert "BurnedInAnnotation" in world.outcome_of(burned).reason
    assert world.outcome_of(damaged).outcome == "quarantined"
    assert world.outcome_of(litter).outcome == "skipped"
    assert world.kept_bytes(burned) == secret_instance(BurnedInAnnotation="YES")
    told = everything_told(world)
    for secret in (*SECRETS, uid_of(secret_instance())):
        assert secret.encode() not in told
    assert world.layout.quarantine.stat().st_mode & 0o077 == 0


def test_a_subject_of_the_path_takes_the_patients_place(tmp_path: Path) -> None:
    world = make_world(
        tmp_path / "site", sources=[{"folder": "/data/drop", "patient_id": "subject", **OURS}]
    )
    path = "input/EPL31_LHS_0001/imaging/EPL31_LHS_0001_02/t1w/a.dcm"
    named, nameless = world.put({path: secret_instance(), "b.dcm": secret_instance(1)}, DROP)
    world.file()
    (row,) = world.rows(series)
    assert (row.subject, row.session) == ("EPL31_LHS_0001", "EPL31_LHS_0001_02")
    assert world.rows(study)[0][2] == "EPL31_LHS_0001"
    assert world.outcome_of(named).outcome == "filed"
    assert world.outcome_of(nameless).code == "identifiable"
    fact = next(fact for fact in read_facts(world.layout.archive) if fact["kind"] == "source")
    assert (fact["subject"], fact["session"]) == ("EPL31_LHS_0001", "EPL31_LHS_0001_02")
    world.close()


def test_the_labels_of_a_path() -> None:
    pattern = make_pattern()
    assert labels_of("s1/imaging/s1_01/a/b.dcm", pattern) == Labels("s1", "s1_01")
    assert labels_of("in/put/s1/imaging/s1_01/x", pattern) == Labels("s1", "s1_01")
    assert labels_of("s1/images/a.dcm", pattern) == Labels()
    assert labels_of(os.fsdecode(b"s\xff/imaging/t/x"), pattern).subject.encode()


def make_pattern() -> str:
    from config.tables.work import LabelsSettings

    return LabelsSettings().pattern


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("5" * 64)])
def test_without_the_archives_own_seed_nothing_gets_a_second_name(
    world: World, change: Callable[[Path], None]
) -> None:
    world.put({"a": secret_instance()}, DROP)
    world.file()
    seed = world.settings.seed_file.read_bytes()
    change(world.settings.seed_file)
    world.put({"b": secret_instance(1)}, DROP)
    with pytest.raises(StoreUnavailable, match="seed"):
        world.file()
    assert len(world.waiting()) == 1
    world.settings.seed_file.write_bytes(seed)
    world.settings.seed_file.chmod(0o600)
    world.file_all()
    assert len({dcmread(path).PatientID for path in world.layout.archive.rglob("*.dcm")}) == 1
    assert seed.strip() not in (world.layout.archive_private / "seed.check").read_bytes()


def a_disk_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/secret/DOE_JANE")

    monkeypatch.setattr(entry, "keep_note", fail)


def a_full_spool(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/DOE_JANE")

    monkeypatch.setattr(entry, "dcmwrite", fail)


def a_seed_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise StoreUnavailable("the seed of de-identification is missing")

    monkeypatch.setattr(entry, "seed_of_archive", fail)


@pytest.mark.parametrize("others", [1, 3], ids=["one by one", "together"])
@pytest.mark.parametrize("trouble", [a_seed_that_is_away, a_disk_that_fails, a_full_spool])
def test_what_cannot_be_de_identified_now_waits_and_the_rest_is_filed(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[World, pytest.MonkeyPatch], None],
    others: int,
) -> None:
    names = world.put({f"{number}": secret_instance(number) for number in range(2)}, DROP)
    elsewhere = BatchSource(kind="folder", folder="/data/other")
    plain = {str(number): encoded(tiny("CT IMAGES", number)) for number in range(4, 4 + others)}
    broken = world.put({"broken": encoded(tiny("CT IMAGES", 9))}, elsewhere)
    names += world.put(plain, elsewhere)
    if others == 1:  # a batch that fails as a whole for another reason too
        names += broken
        BadSectors(monkeypatch, "broken")
    with monkeypatch.context() as now:
        trouble(world, now)
        report = world.file(names)
        assert world.outcomes() == {"filed": others}
        assert report.left == len(names) - others
        told = {one.name: one.reason for one in left_entries(world.layout)}
        assert set(told) == set(names) - {name for name in names if name.path in plain}
        assert not any("DOE_JANE" in reason for reason in told.values())
        with pytest.raises(StoreUnavailable, match="de-identif"):
            world.file(names[:2])
    monkeypatch.undo()
    world.file_all()
    assert world.outcomes() == {"filed": others + 3}
    assert not left_entries(world.layout)


# killed at any line -------------------------------------------------------------------------------


def before(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        module = durable if hasattr(durable, name) else os
        monkeypatch.setattr(module, name, lambda *_, **__: die())

    return patch


def after(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = durable if hasattr(durable, name) else os
        real = getattr(module, name)

        def last(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            die()

        monkeypatch.setattr(module, name, last)

    return patch


@pytest.mark.parametrize(
    "kill",
    [before("replace_file"), after("replace_file"), before("rename"), after("rename"),
     before("link"), after("link"), after("unlink")],
    ids=["written", "noted", "before its name", "named", "before the tree", "in the tree", "gone"],
)  # fmt: skip
def test_killed_at_any_step_it_is_de_identified_once_and_filed_once(
    world: World, monkeypatch: pytest.MonkeyPatch, kill: Callable[[pytest.MonkeyPatch], None]
) -> None:
    world.put({"warm": secret_instance(5)}, DROP)  # makes the seed
    world.file()
    world.put({"a": secret_instance()}, DROP)
    world.let_go()
    with monkeypatch.context() as patched:
        kill(patched)
        assert in_child(lambda: world.file()) == -9
    world.file_all()
    assert world.outcomes() == {"filed": 2}
    names = {dcmread(path).PatientID for path in world.layout.archive.rglob("*.dcm")}
    assert len(names) == 1, "a second time would give another name"
    assert not list((world.layout.spool_private / "deidentified").iterdir())
    assert len([row for row in world.rows(event) if row.kind == "filed"]) == 2
