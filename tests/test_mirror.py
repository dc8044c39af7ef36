"""The mirror: all of it once, continued after every break, and never a mixed pair."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import databases
import pytest
from botocore.stub import Stubber
from conftest import PROJECT
from filing_world import World, encoded, make_world, settings_for
from installation import free_port
from object_store import KEY_ID, PREFIX, SECRET, Bucket, a_bucket, a_client, a_store, store_process
from running import petct, running, wait_until
from typer.testing import CliRunner, Result

from config.errors import BadValue
from config.settings import Settings, load_settings
from daemon import mirroring
from daemon.cli.app import app
from daemon.errors import AlreadyRunning
from daemon.looking import look
from daemon.mirroring import mirror_once, pause_after, run_mirror
from daemon.planning import plan_roles
from workers.completeness.judging import judge_studies
from workers.completeness.overriding import override_pair
from workers.durable import sha256_of
from workers.errors import MirrorStopped, MirrorUnusable
from workers.filing.journal import NAME, append_facts
from workers.index.marks import forget_marks
from workers.index.tables import instance, pair
from workers.mirroring.comparing import Comparer, Comparison
from workers.mirroring.mirror import MARKS
from workers.mirroring.planning import (
    MOST_PARTS,
    Drift,
    Part,
    Segment,
    Stored,
    StoredPart,
    Wanted,
    covered,
    fits,
    judge,
    parts_of,
    segments_of,
)
from workers.mirroring.sending import Sent, book
from workers.mirroring.store import ObjectStore
from workers.pairing import build
from workers.pairing.evidence import Override
from workers.pairing.load import load_pair
from workers.pairing.making import make_pair
from workers.phantom.study import PhantomSpec, make_study

MIB = 1 << 20
STUDY = make_study(PhantomSpec(size="tiny"))
_names = itertools.count(1)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with a_store() as address:
        yield address


@pytest.fixture
def bucket(endpoint: str) -> Iterator[Bucket]:
    with a_bucket(endpoint, f"petct-{next(_names)}") as one:
        yield one


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, module_database: str) -> Path:
    """An installation with one paired study, to be copied."""
    root = tmp_path_factory.mktemp("mirror") / "site"
    world = make_world(root)
    parts = [STUDY.named(name) for name in ("CT IMAGES", "PET AC")]
    world.put({f"{p.name}/{i}": encoded(p.dataset(i)) for p in parts for i in range(p.count)})
    report = world.file()
    judge_studies(world.index, world.settings, report.touched_studies, report.touched_series)
    make(world)
    world.close()
    return root


@pytest.fixture
def world(tmp_path: Path, template: Path, bucket: Bucket) -> Iterator[World]:
    """A copy of the installation, and a bucket for its mirror."""
    shutil.copytree(template, tmp_path / "site")
    databases.copy(template, tmp_path / "site")
    world = World(settings_for(tmp_path / "site", mirror=bucket.settings(tmp_path, part_mb=5)))
    yield world
    world.close()


def make(world: World) -> None:
    """Make the pair that is wanted; drawing it would take most of the time."""
    row = world.rows(pair)[0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "draw_pair", lambda *_: b"a picture")
        assert make_pair(world.index, world.settings, row.id, row.generation) == "ready"


def make_again(world: World, weight_kg: float) -> None:
    """Make the next revision, whose PET is another."""
    override_pair(world.index, world.settings, STUDY.study_uid, Override(weight_kg=weight_kg))
    make(world)


def with_mirror(world: World, **mirror: Any) -> Settings:
    settings = world.settings
    table = settings.mirror.model_dump(exclude_none=True) | mirror
    overrides = {"receiver": {"port": 0}, "mirror": table}
    overrides |= databases.index_of(settings.root)
    return load_settings(root=settings.root, overrides=overrides, environ={})


def once(world: World, **mirror: Any) -> Sent:
    stop = threading.Event()
    with mirroring.mirroring(with_mirror(world, **mirror), stop) as one:
        return mirror_once(one, stop)


def compare(world: World, **how: bool) -> Comparison:
    with mirroring.mirroring(world.settings, threading.Event(), alone=False) as one:
        return Comparer(one, **how).run()


def drifts(found: Comparison) -> dict[str, str]:
    return {one.key: str(one.drift) for one in found.differences}


def revision_of(world: World, bucket: Bucket) -> str:
    home = world.rows(pair)[0].folder
    return f"{home}/{bucket.get_json(f'{home}/latest.json')['folder']}"


def file_large(world: World, megabytes: int) -> str:
    """File one more instance of so many megabytes; return its key."""
    dataset = STUDY.named("PET AC").dataset(0)
    uid = f"{STUDY.study_uid}.77"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.EncapsulatedDocument = os.urandom(megabytes * MIB)
    world.put({"large": encoded(dataset)})
    world.file()
    return str(world.path_of(uid).relative_to(world.layout.archive))


def write_config(world: World, folder: Path, **mirror: Any) -> Path:
    """Write the settings for a process."""
    table = world.settings.mirror.model_dump(exclude_none=True, mode="json") | mirror
    path = folder / "petct.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text(f"root = {json.dumps(str(world.settings.root))}\n[mirror]\n" + "\n".join(lines))
    return path


# decisions ----------------------------------------------------------------------------------------


def test_parts_cover_a_file_once_and_are_never_too_many() -> None:
    for size in (1, 5 * MIB, 5 * MIB + 1, 12 * MIB, 5 * MIB * MOST_PARTS + 1):
        parts = parts_of(size, 5 * MIB)
        assert [part.number for part in parts] == list(range(1, len(parts) + 1))
        assert sum(part.size for part in parts) == size
        assert all(a.offset + a.size == b.offset for a, b in itertools.pairwise(parts))
        assert len(parts) <= MOST_PARTS


def test_a_part_is_known_by_its_checksum_else_by_its_md5_and_never_by_its_size_alone() -> None:
    part = Part(1, 0, 10)
    assert fits(part, StoredPart(10, '"md5"', "sum"), "other", "sum")
    assert not fits(part, StoredPart(10, '"md5"', "other"), "md5", "sum")
    assert fits(part, StoredPart(10, '"md5"'), "md5", "sum")
    assert not fits(part, StoredPart(10, '"other"'), "md5", "sum")
    assert not fits(part, StoredPart(9, '"md5"', "sum"), "md5", "sum")
    assert not fits(part, None, "md5", "sum")


def test_an_object_differs_by_absence_size_or_digest() -> None:
    wanted = Wanted("key", 5, "aa")
    assert judge(wanted, None) is Drift.MISSING
    assert judge(wanted, Stored(4, "aa")) is Drift.SIZE
    assert judge(wanted, Stored(5, None)) is Drift.DIGEST
    assert judge(wanted, Stored(5, "aa")) is None


def test_bytes_are_booked_one_behind_the_other_and_an_idle_way_saves_nothing_up() -> None:
    assert book(0.0, 100.0, 50, 10) == (100.0, 105.0)
    assert book(105.0, 101.0, 20, 10) == (105.0, 107.0)
    assert book(107.0, 500.0, 10, 10) == (500.0, 501.0)
    assert book(0.0, 100.0, 10**9, 0) == (100.0, 100.0)


def test_the_pieces_of_the_journal_are_taken_up_to_the_first_gap() -> None:
    pieces = [Segment(0, 10), Segment(10, 30), Segment(40, 50)]
    listed = [one.key for one in reversed(pieces)] + [".petct/facts/of-others.jsonl"]
    assert segments_of(listed) == pieces
    assert covered(pieces) == 30
    assert covered([]) == 0


def test_pauses_grow_and_stay_bounded() -> None:
    pauses = [pause_after(count) for count in range(1, 60)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 2
    assert pauses[-1] == 300


@pytest.mark.parametrize(
    "mirror",
    [
        {"url": "https://bucket"},
        {"url": "s3://user:secret@bucket"},
        {"url": "s3://Bucket"},
        {"url": "s3://bucket", "endpoint_url": "https://me:secret@host"},
        {"url": "s3://bucket", "part_mb": 4},
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(mirror: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        load_settings(root=tmp_path, overrides={"mirror": mirror}, environ={})


def test_run_has_the_role_where_there_is_a_store(world: World) -> None:
    assert "mirror" in [role.name for role in plan_roles(world.settings)]
    without = world.settings.model_copy(update={"mirror": type(world.settings.mirror)()})
    assert "mirror" not in [role.name for role in plan_roles(without)]


# a copy of all ------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_store_holds_the_tree_the_pair_and_the_journal_byte_by_byte(
    world: World, bucket: Bucket, tmp_path: Path
) -> None:
    sent = once(world)
    tree = world.tree()
    assert {key: bucket.get(key) for key in tree} == tree
    revision = revision_of(world, bucket)
    (tmp_path / "pair").mkdir()
    for key in bucket.listed(f"{revision}/"):
        (tmp_path / "pair" / Path(key).name).write_bytes(bucket.get(key))
    home = world.layout.archive / world.rows(pair)[0].folder
    assert load_pair(tmp_path / "pair").meta == load_pair(home).meta
    assert {path.name for path in (tmp_path / "pair").iterdir()} == set(os.listdir(home))
    journal = b"".join(map(bucket.get, bucket.listed(".petct/facts/")))
    assert journal == (world.layout.archive_private / NAME).read_bytes()
    assert len(bucket.listed()) == sent.objects + 1  # and whose archive it is
    assert not sent.left_out
    assert not compare(world, read_back=True).differences


def test_a_second_time_nothing_is_sent_and_with_lost_marks_neither(world: World) -> None:
    assert once(world).objects
    assert once(world).objects == 0
    forget_marks(world.index, MARKS, [])
    assert once(world).objects == 0


def test_pairs_alone_are_sent_where_that_is_asked_for(world: World, bucket: Bucket) -> None:
    once(world, what="pairs")
    folder = world.rows(pair)[0].folder
    assert all(key.startswith((f"{folder}/", ".petct/id")) for key in bucket.listed())
    assert bucket.get_json(f"{folder}/latest.json")["state"] == "ready"


def test_the_journal_is_sent_by_what_it_has_grown(world: World, bucket: Bucket) -> None:
    once(world)
    first = bucket.listed(".petct/facts/")
    append_facts(world.layout.archive, [{"kind": "told", "word": "later"}])
    once(world)
    pieces = bucket.listed(".petct/facts/")
    assert pieces[: len(first)] == first
    assert json.loads(bucket.get(pieces[-1])) == {"kind": "told", "word": "later"}


@pytest.mark.both_databases
def test_a_file_that_took_the_place_of_another_of_the_same_size_is_sent_again(
    world: World, bucket: Bucket
) -> None:
    once(world)
    before = world.rows(instance)[0]
    path = world.path_of(before.instance_uid)
    old = path.read_bytes()
    new = old.replace(b"CT IMAGES", b"CT IMAGEZ")
    world.put({"again": new})
    world.file(duplicates="replace")
    key = str(path.relative_to(world.layout.archive))
    assert path.read_bytes() != old
    assert len(path.read_bytes()) == len(old)
    assert once(world).objects == 1
    assert bucket.get(key) == path.read_bytes()


def test_bytes_that_went_bad_in_the_tree_never_reach_the_store(
    world: World, bucket: Bucket
) -> None:
    bad, gone = (world.path_of(row.instance_uid) for row in world.rows(instance)[:2])
    with bad.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    gone.unlink()
    left = {one.key for one in once(world).left_out}
    assert left == {str(path.relative_to(world.layout.archive)) for path in (bad, gone)}
    assert not left & set(bucket.listed())


def test_a_lost_archive_comes_back_from_the_store_with_what_no_header_tells(
    world: World, bucket: Bucket, tmp_path: Path
) -> None:
    override_pair(world.index, world.settings, STUDY.study_uid, Override(weight_kg=61.0))
    once(world)
    archive = tmp_path / "new" / "archive"
    for key in bucket.listed():
        if "/Auto-Paired" not in key and not key.startswith(".petct"):
            (archive / key).parent.mkdir(parents=True, exist_ok=True)
            (archive / key).write_bytes(bucket.get(key))
    (archive / ".petct").mkdir(mode=0o755)
    pieces = [bucket.get(key) for key in bucket.listed(".petct/facts/")]
    (archive / ".petct" / NAME).write_bytes(b"".join(pieces))
    command = ["reindex", "--root", str(archive.parent), "--processes", "1", "--no-pair"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    again = World(settings_for(archive.parent))
    assert again.tree() == world.tree()
    assert len(again.rows(instance)) == len(world.rows(instance))
    assert json.loads(again.rows(pair)[0].override)["weight_kg"] == 61.0
    again.close()


# pairs --------------------------------------------------------------------------------------------


class _Watched:
    """Note the order of what is put, and do something after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.after: dict[str, Any] = {}
        put = ObjectStore.put

        def watched(store: ObjectStore, key: str, data: bytes, sha256: str) -> None:
            put(store, key, data, sha256)
            self.keys.append(key)
            if action := self.after.pop(Path(key).name, None):
                action()

        monkeypatch.setattr(ObjectStore, "put", watched)


def test_pair_json_is_sent_after_the_arrays_and_what_points_to_them_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = _Watched(monkeypatch)
    once(world, what="pairs")
    names = [Path(key).name for key in watched.keys]
    assert set(names[1:-2]) == {"ct.npy", "pet.npy", "qc.png"}
    assert names[-2:] == ["pair.json", "latest.json"]


def test_a_pair_that_is_replaced_while_its_arrays_are_sent_is_never_mixed(
    world: World, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = _Watched(monkeypatch)
    watched.after["ct.npy"] = lambda: make_again(world, 50.0)
    # what changes meanwhile is looked at in the next pass
    stop = threading.Event()
    settings = with_mirror(world, what="pairs", connections=1)
    with mirroring.mirroring(settings, stop) as one:
        one.step(0.0)
        first = whole(world, bucket)
        assert first["revision"] == 1
        one.step(1.0)
    assert whole(world, bucket)["revision"] == 2
    folders = {Path(key).parent.name for key in bucket.listed() if key.endswith("pet.npy")}
    assert len(folders) == 2, "the older revision stays for who reads it"


def whole(world: World, bucket: Bucket) -> dict[str, Any]:
    """Return the latest pair.json after comparing its arrays with it."""
    revision = revision_of(world, bucket)
    meta: dict[str, Any] = bucket.get_json(f"{revision}/pair.json")
    for which in ("ct", "pet"):
        data = bucket.get(f"{revision}/{which}.npy")
        assert hashlib.sha256(data).hexdigest() == meta[which]["sha256"]
    return meta


@pytest.mark.both_databases
def test_a_pair_that_is_held_again_is_not_called_ready(world: World, bucket: Bucket) -> None:
    once(world)
    latest = f"{world.rows(pair)[0].folder}/latest.json"
    assert bucket.get_json(latest)["state"] == "ready"
    with world.index.write() as connection:
        connection.execute(pair.update().values(state="held"))
        mirroring_event(connection, world)
    once(world)
    assert bucket.get_json(latest)["state"] == "held"


def mirroring_event(connection: Any, world: World) -> None:
    from workers.filing.rows import insert_event

    insert_event(connection, "pair-held", "2026-01-01T00:00:00.000Z",
                 study_id=world.rows(pair)[0].study_id)  # fmt: skip


# breaks -------------------------------------------------------------------------------------------


def test_after_a_kill_only_what_is_lacking_is_sent(
    world: World, bucket: Bucket, tmp_path: Path
) -> None:
    total = sum(len(data) for data in world.tree().values())
    config = write_config(world, tmp_path, megabytes_per_second=total / 3e6, connections=1)
    with running(petct("mirror", "--config", config), tmp_path / "first") as first:
        wait_until(lambda: len(bucket.listed()) > 8, 30, "some objects in the store")
        first.end(signal.SIGKILL)
    there = len(bucket.listed())
    sent = once(world)
    assert sent.objects == len(bucket.listed()) - there
    assert sent.objects > 0
    assert not compare(world, read_back=True).differences


def test_an_upload_in_parts_goes_on_where_it_was_killed(
    world: World, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(world)
    key = file_large(world, 24)
    config = write_config(world, tmp_path, megabytes_per_second=20, connections=1)

    def parts() -> list[Any]:
        begun = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", ())
        return [
            part
            for one in begun
            for part in bucket.client.list_parts(
                Bucket=bucket.name, Key=one["Key"], UploadId=one["UploadId"]
            ).get("Parts", ())
        ]

    with running(petct("mirror", "--config", config), tmp_path / "first") as first:
        wait_until(lambda: len(parts()) >= 2, 30, "two parts in the store")
        first.end(signal.SIGKILL)
    assert key not in bucket.listed()
    have = len(parts())
    sent_parts = []
    put_part = ObjectStore.put_part

    def counted(store: ObjectStore, key: str, upload: str, part: Part, *more: Any) -> StoredPart:
        sent_parts.append(part.number)
        return put_part(store, key, upload, part, *more)

    monkeypatch.setattr(ObjectStore, "put_part", counted)
    once(world)
    assert len(sent_parts) == len(parts_of(world_size(world, key), 5 * MIB)) - have
    assert bucket.get(key) == (world.layout.archive / key).read_bytes()
    assert not parts()
    assert not compare(world).differences


def world_size(world: World, key: str) -> int:
    return (world.layout.archive / key).stat().st_size


def test_an_upload_that_was_begun_for_other_bytes_is_given_up(world: World, bucket: Bucket) -> None:
    key = file_large(world, 12)
    at = {"Bucket": bucket.name, "Key": PREFIX + key}
    upload = bucket.client.create_multipart_upload(**at)["UploadId"]
    bucket.client.upload_part(**at, UploadId=upload, PartNumber=1, Body=b"\0" * 5 * MIB)
    once(world)
    assert sha256_of(world.layout.archive / key) == hashlib.sha256(bucket.get(key)).hexdigest()
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_a_store_that_has_no_uploads_to_list_has_none_to_continue(world: World) -> None:
    store = ObjectStore(world.settings.mirror, world.settings.root)
    with Stubber(store._client) as answers:
        answers.add_client_error("list_multipart_uploads", "NoSuchUpload")  # as rclone 1.75 says
        assert store.unfinished("key") is None


def test_a_store_that_is_away_is_told_once_and_the_mirror_goes_on_by_itself(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings = with_mirror(
        world, endpoint_url=f"http://127.0.0.1:{port}", url=f"s3://later/{PREFIX}"
    )
    monkeypatch.setattr(mirroring, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(mirroring, "_LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(mirroring, "_LOOK_SECONDS", 0.05)
    quick = {"total_max_attempts": 1}
    monkeypatch.setattr("workers.mirroring.store.RETRIES", quick)
    stop = threading.Event()
    trouble = world.layout.run / "mirror.trouble"
    told = lambda: [r for r in caplog.records if r.message == "mirror-waits"]  # noqa: E731
    with caplog.at_level(logging.INFO):
        thread = threading.Thread(target=run_mirror, args=(settings, stop))
        thread.start()
        try:
            wait_until(trouble.exists, 20, "the trouble")
            assert "cannot be reached" in trouble.read_text()
            assert any("cannot be reached" in words for words in look(settings).troubles)
            with store_process(port):
                wait_until(lambda: "no bucket" in trouble.read_text(), 30, "the next trouble")
                client = a_client(f"http://127.0.0.1:{port}")
                client.create_bucket(Bucket="later")
                later = Bucket("", client, "later")
                expected = set(world.tree())
                wait_until(lambda: expected <= set(later.listed()), 30, "the mirror goes on")
                client.close()
        finally:
            stop.set()
            thread.join(20)
    assert not trouble.exists()
    reasons = [record.facts["reason"] for record in told()]
    assert len(reasons) == len(set(reasons))


def test_a_mirror_that_is_told_to_stop_stops_within_a_page(world: World) -> None:
    stop = threading.Event()
    with mirroring.mirroring(with_mirror(world), stop) as one:
        stop.set()
        with pytest.raises(MirrorStopped):
            one.step(0.0)


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ({"url": "s3://not-there"}, "there is no bucket 'not-there'"),
        ({"credentials_file": "gone.ini"}, "credentials_file is missing"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    world: World, mirror: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.mirroring.store.RETRIES", {"total_max_attempts": 1})
    with pytest.raises(MirrorUnusable, match=words):
        once(world, **mirror)


def test_credentials_that_the_store_does_not_know_are_told_without_themselves(
    world: World, tmp_path: Path
) -> None:
    port = free_port()
    with store_process(port, INITIAL_NO_AUTH_ACTION_COUNT="1"):
        address = f"http://127.0.0.1:{port}"
        client = a_client(address)
        client.create_bucket(Bucket="guarded")
        client.close()
        with pytest.raises(MirrorUnusable, match="refuses our credentials") as caught:
            once(world, url="s3://guarded", endpoint_url=address)
    assert SECRET not in str(caught.value)
    assert KEY_ID not in str(caught.value)


def test_a_bucket_of_another_archive_is_left_alone(world: World, bucket: Bucket) -> None:
    bucket.spoil(".petct/id", b"another archive")
    with pytest.raises(MirrorUnusable, match="another archive"):
        once(world)
    assert bucket.listed() == [".petct/id"]


def test_one_process_at_a_time_mirrors_a_root(world: World) -> None:
    with (
        mirroring.mirroring(world.settings, threading.Event()),
        pytest.raises(AlreadyRunning),
        mirroring.mirroring(world.settings, threading.Event()),
    ):
        pass


# comparing ----------------------------------------------------------------------------------------


def test_each_kind_of_drift_is_found_and_mended(world: World, bucket: Bucket) -> None:
    once(world)
    one, two, three, four = (
        str(world.path_of(row.instance_uid).relative_to(world.layout.archive))
        for row in world.rows(instance)[:4]
    )
    revision = revision_of(world, bucket)
    latest = f"{world.rows(pair)[0].folder}/latest.json"
    bucket.remove(one)
    bucket.spoil(two, b"short")
    same_size = bytearray(bucket.get(three))
    same_size[-1] ^= 1
    bucket.spoil(three, bytes(same_size))
    rotten = bytearray(bucket.get(four))
    rotten[-1] ^= 1
    digest = sha256_of(world.layout.archive / four)
    bucket.spoil(four, bytes(rotten), Metadata={"sha256": digest})  # only its bytes tell
    bucket.spoil(f"{revision}/pet.npy", b"not an array")
    bucket.spoil(latest, b"{}")
    expected = {
        one: "missing",
        two: "other-size",
        three: "other-digest",
        f"{revision}/pet.npy": "other-size",
        latest: "other-revision",
    }
    assert drifts(compare(world)) == expected
    assert drifts(compare(world, read_back=True)) == expected | {four: "other-bytes"}
    mended = compare(world, read_back=True, repair=True)
    assert mended.left == 0
    assert len(mended.differences) == 6
    assert not compare(world, read_back=True).differences


def test_the_command_compares_beside_the_role_and_tells_by_its_exit_code(
    world: World, bucket: Bucket, tmp_path: Path
) -> None:
    config = write_config(world, tmp_path)

    def mirror(*options: str) -> Result:
        return CliRunner().invoke(app, ["mirror", "--config", str(config), *options])

    sent = mirror("--once", "--json")
    assert sent.exit_code == 0
    assert json.loads(sent.stdout)["objects"] == len(bucket.listed()) - 1
    key = next(key for key in bucket.listed() if key.endswith(".dcm"))
    bucket.remove(key)
    with running(petct("mirror", "--config", config), tmp_path / "role") as role:
        role.await_output("mirroring")
        found = mirror("--verify")
        assert found.exit_code == 3
        assert f"missing  {key}" in found.stdout
        assert isinstance(mirror("--once").exception, AlreadyRunning)
        assert mirror("--verify", "--repair").exit_code == 0
        assert role.end() == 0
    assert "the store holds all of it" in mirror("--verify").stdout
    for said in (role.stderr, sent.stderr, found.stderr):
        assert SECRET not in said
        assert world.rows(pair)[0].folder not in said
        assert STUDY.study_uid not in said


def test_the_command_needs_an_address(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["mirror", "--once", "--root", str(tmp_path)])
    assert isinstance(found.exception, MirrorUnusable)
    assert "mirror.url" in str(found.exception)


def test_the_page_names_every_kind_of_drift() -> None:
    page = (PROJECT / "docs/mirror.md").read_text()
    assert all(f"`{one}`" in page for one in Drift)
