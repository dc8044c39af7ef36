"""A small installation to file into, and the laws that its tree, index and spool obey."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import databases
import pytest
import sqlalchemy as sa
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID

from config.settings import Settings, load_settings
from workers.filing import examining, taking
from workers.filing.journal import read_facts
from workers.filing.protocol import Filer
from workers.filing.report import FilingReport
from workers.index.counting import SET_ASIDE, Counts, count_all
from workers.index.engine import MetadataIndex, asking, open_index, prepare_index
from workers.index.tables import arrival, folder, instance, series
from workers.phantom.study import PhantomSpec, write_many
from workers.phantom.study import instance as phantom_instance
from workers.spool.batches import (
    BatchSource,
    BatchWriter,
    EntryName,
    batch_names,
    remove_if_empty,
    waiting_entries,
)

FOLDER = BatchSource(kind="folder", folder="/data/drop")
SENDER = BatchSource(kind="association", calling_ae="PACS", called_ae="US", address="10.0.0.7")

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system of its own, and a fast one


def settings_for(root: Path, **overrides: Any) -> Settings:
    """Settings of an installation below `root`, without any of the environment's."""
    given = {"receiver": {"port": 0}, **databases.index_of(root), **overrides}
    return load_settings(root=root, overrides=given, environ={})


@dataclass
class World:
    """One installation whose spool is filled and filed by hand."""

    settings: Settings
    opened: MetadataIndex | None = field(default=None)

    @property
    def index(self) -> MetadataIndex:
        if self.opened is None:
            self.opened = open_index(self.settings)
        return self.opened

    @property
    def layout(self) -> Any:
        return self.settings.layout

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()
        self.opened = None

    def let_go(self) -> None:
        """Close every connection, but keep what the index has compiled."""
        if self.opened is not None:
            self.opened.engine.dispose()

    def put(self, files: dict[str, bytes], source: BatchSource = FOLDER) -> list[EntryName]:
        """Lay files (path inside the batch: bytes) into the spool as one batch."""
        names = []
        with BatchWriter(self.layout, source) as batch:
            for number, (path, content) in enumerate(files.items()):
                if source.kind == "association":
                    names.append(batch.publish((content,)))
                    continue
                temporary = self.layout.incoming / f"put-{number}"
                temporary.write_bytes(content)
                temporary.chmod(0o644)
                names.append(batch.adopt(temporary, path))
        return names

    def filer(self, **filing: Any) -> Filer:
        changed = self.settings.filing.model_copy(update=filing)
        return Filer(self.index, self.settings.model_copy(update={"filing": changed}))

    def file(self, entries: list[EntryName] | None = None, **filing: Any) -> FilingReport:
        """File what waits (or some of it) in one call."""
        names = self.waiting() if entries is None else entries
        return self.filer(**filing).file_entries(names)

    def file_all(self, **filing: Any) -> Counts:
        """File until nothing waits, tidy the empty batches, and return the counts."""
        self.file(**filing)
        for _ in range(2):
            if self.waiting():
                self.file(**filing)
        for batch in batch_names(self.layout):
            remove_if_empty(self.layout, batch)
        return self.counts()

    def waiting(self) -> list[EntryName]:
        return list(waiting_entries(self.layout))

    def counts(self) -> Counts:
        with self.index.read() as connection:
            return count_all(asking(connection))

    def rows(self, table: sa.Table) -> list[Any]:
        with self.index.read() as connection:
            return list(connection.execute(sa.select(table).order_by(table.c.id)))

    def outcomes(self) -> dict[str, int]:
        return dict(Counter(row.outcome for row in self.rows(arrival)))

    def outcome_of(self, entry: EntryName) -> Any:
        """The arrival of one entry."""
        return next(row for row in self.rows(arrival) if row.entry == entry.identifier)

    def reason_of(self, entry: EntryName) -> dict[str, Any]:
        """What stands beside an entry in quarantine."""
        path = self.layout.quarantine / f"{entry.identifier}.json"
        reason: dict[str, Any] = json.loads(path.read_bytes())
        return reason

    def kept_bytes(self, entry: EntryName) -> bytes:
        content: bytes = (self.layout.quarantine / f"{entry.identifier}.dcm").read_bytes()
        return content

    def tree(self) -> dict[str, bytes]:
        """Every file of the tree: path relative to the archive, and bytes."""
        found = {}
        for top, folders, files in os.walk(self.layout.archive):
            if Path(top) == self.layout.archive:
                folders[:] = [name for name in folders if name != ".petct"]
            folders[:] = [name for name in folders if not name.startswith("Auto-Paired")]
            for name in files:
                path = Path(top, name)
                found[str(path.relative_to(self.layout.archive))] = path.read_bytes()
        return found

    def path_of(self, uid: str) -> Path:
        """Where the index says that an instance lies."""
        with self.index.read() as connection:
            row = connection.execute(
                sa.select(folder.c.home, folder.c.digits, instance.c.file_name)
                .join(instance, instance.c.folder_id == folder.c.id)
                .where(instance.c.instance_uid == uid)
            ).one()
        found: Path = self.layout.archive / row.home / "studies" / row.digits / row.file_name
        return found

    def check(self, *, spool_empty: bool = True) -> None:
        """Assert the laws: tree = index, quarantine = arrivals, and nothing left over."""
        tree = self.tree()
        paths = set()
        per_series: Counter[int] = Counter()
        for row in self.rows(instance):
            path = self.path_of(row.instance_uid)
            relative = str(path.relative_to(self.layout.archive))
            assert relative in tree, f"a row without its file: {relative}"
            content = tree[relative]
            assert hashlib.sha256(content).hexdigest() == row.sha256, f"other bytes: {relative}"
            assert len(content) == row.size
            assert dataset_digest(content) == row.dataset_sha256
            assert path.name == f"{row.instance_uid}.dcm"
            paths.add(relative)
            per_series[row.series_id] += 1
        assert len(paths) == len(self.rows(instance)), "two rows for one file"
        assert set(tree) == paths, f"files without a row: {set(tree) - paths}"
        for row in self.rows(series):
            assert row.instances == per_series[row.id], "the series counts wrongly"
        self._check_quarantine()
        if spool_empty:
            self._check_left_overs()
        list(read_facts(self.layout.archive))

    def _check_quarantine(self) -> None:
        there = {path.name for path in self.layout.quarantine.iterdir()}
        wanted = set()
        for row in self.rows(arrival):
            if row.outcome in SET_ASIDE:
                wanted |= {f"{row.entry}.dcm", f"{row.entry}.json"}
                if f"{row.entry}.json" in there:
                    reason = json.loads((self.layout.quarantine / f"{row.entry}.json").read_bytes())
                    assert reason["reason"]
                    assert reason["code"] == row.code or row.outcome == "replaced"
        assert there == wanted, f"quarantine and index differ: {there ^ wanted}"

    def _check_left_overs(self) -> None:
        private = self.layout.spool_private
        for place in (
            self.layout.ready,
            self.layout.incoming,
            self.layout.archive_private / "tmp",
            private / "hands",
            private / "deaths",
        ):
            left = sorted(os.listdir(place)) if place.exists() else []
            assert not left, f"left over in {place}: {left}"


def make_world(root: Path, **overrides: Any) -> World:
    settings = settings_for(root, **overrides)
    prepare_index(settings).close()
    return World(settings)


@contextlib.contextmanager
def a_world(root: Path, **overrides: Any) -> Iterator[World]:
    world = make_world(root, **overrides)
    try:
        yield world
    finally:
        world.close()


# instances --------------------------------------------------------------------------------------


def small_instances(folder: Path, count: int, *, folders: int = 1, patient: int = 1) -> list[bytes]:
    """CT instances of 1.5 KB, in order."""
    paths = write_many(folder, count, folders=folders, patient_number=patient)
    return [path.read_bytes() for path in paths.values()]


def tiny(series_name: str = "PET AC", number: int = 0, **spec: Any) -> Dataset:
    return phantom_instance(PhantomSpec(size="tiny", **spec), series_name, number)


def encoded(dataset: Dataset, *, checked: bool = True) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=checked)
    return buffer.getvalue()


def changed(content: bytes, **elements: Any) -> bytes:
    """The same instance with other values (None deletes); file meta follows the SOPInstanceUID."""
    dataset = dcmread(io.BytesIO(content))
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    if elements.get("SOPInstanceUID"):
        dataset.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    return encoded(dataset)


def recoded(content: bytes, syntax: str = "1.2.840.10008.1.2") -> bytes:
    """The same instance in another uncompressed transfer syntax."""
    dataset = dcmread(io.BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = io.BytesIO()
    dcmwrite(
        buffer,
        dataset,
        enforce_file_format=True,
        implicit_vr=syntax == "1.2.840.10008.1.2",
        little_endian=True,
    )
    return buffer.getvalue()


def other_pixels(content: bytes) -> bytes:
    """The same instance with its last pixel changed."""
    return content[:-1] + bytes([content[-1] ^ 1])


def uid_of(content: bytes) -> str:
    return str(dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)


def dataset_digest(content: bytes) -> str:
    """SHA-256 of what stands behind the file meta."""
    group_length = int.from_bytes(content[140:144], "little")
    return hashlib.sha256(content[144 + group_length :]).hexdigest()


def explicit_element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    """One element in explicit little endian."""
    head = group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value


# processes ----------------------------------------------------------------------------------------


def in_child(action: Callable[[], None]) -> int:
    """Run an action in a forked child; return its exit code, negative for a signal."""
    return end_of_child(start_child(action))


def start_child(action: Callable[[], None]) -> int:
    """Start a forked child and return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:  # noqa: BLE001 - the end of this process
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def end_of_child(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class BadSectors:
    """Reading the entry of this name fails, as on a dying disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.name = name
        self._examine = examining.examine
        monkeypatch.setattr(taking, "examine", self)

    def __call__(self, file: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/secret/path")
        return self._examine(file, name, *arguments, **options)
