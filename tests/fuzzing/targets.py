"""What is fuzzed: each target takes any bytes and lets nothing escape but our own errors.

A target is a function of bytes that raises when something is wrong: an exception of another kind, a
path that leads out, a memory or recursion limit. `seeds.py` gives each its first inputs, `run.py`
runs them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from fuzzing.wire import Wire

from config.errors import ConfigError
from config.settings import Settings, load_settings
from daemon.receiver.access import Counts, judge_request, read_request
from daemon.receiver.asking import Refused, read_asked
from daemon.receiver.commands import Malformed, encode_response, parse_command
from workers import queues
from workers.archives.members import Finding
from workers.archives.opening import open_archive
from workers.deidentify.entry import EntryDeidentifier
from workers.errors import DataError, PairingRefused
from workers.filing import names
from workers.filing.comparing import compare_files
from workers.filing.examining import examine
from workers.header import uids
from workers.header.facts import InstanceFacts
from workers.header.read import Header, check_whole, read_open_header
from workers.identity import give_archive_identity
from workers.jobs import _entries as entries_of_job
from workers.pairing.pixels import open_file, stored_pixels
from workers.spool.batches import BatchSource, read_source
from workers.spool.notes import take_notes

Target = Callable[[bytes], None]

SOURCES = (
    BatchSource(kind="folder", folder="/drop"),
    BatchSource(kind="association", calling_ae="A", called_ae="B", address="::1"),
)
_COMPONENT = re.compile(r"[A-Za-z0-9%_-][A-Za-z0-9._%-]{0,63}")


def header(data: bytes) -> None:
    """Reading the header of a file, and what is made of it."""
    found = read(data)
    if found is None:
        return
    facts = found.facts
    text = facts.to_json()
    text.encode("utf-8")
    assert "\0" not in facts.patient_id + facts.accession_number + facts.modality
    if "NaN" not in text:
        assert InstanceFacts.from_json(text) == facts
    check_place(facts.patient_id, facts.accession_number, facts.study_instance_uid)


def placing(data: bytes) -> None:
    """Names of folders: three texts, a line each."""
    text = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")
    patient, accession, study, *_ = [*text.split("\n"), "", "", ""]
    check_place(patient, accession, uids.clean(study.encode("utf-8", "surrogatepass")))


def examining(data: bytes) -> None:
    """Examining an entry: instance, litter, or quarantine."""
    for source in SOURCES:
        for name in ("one.dcm", "DICOMDIR", "._one"):
            with as_file(data) as file, suppress(DataError):
                examine(file, name, source)


def comparing(data: bytes) -> None:
    """Comparing with an instance that is filed already."""
    with as_path(data) as other:
        for kept in kept_files():
            assert compare_files(kept, other).reason
        compare_files(other, other)
    with as_file(data) as file, suppress(DataError):
        check_whole(file)


def pixels(data: bytes) -> None:
    """Decoding the pixels of an instance that was filed."""
    found = read(data)
    if found is None:
        return
    with (
        as_path(data) as path,
        suppress(DataError, PairingRefused),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # pydicom's; our processes drop them, for they quote values
        opened = open_file(path, found.facts)
        stored = stored_pixels(opened.dataset, None)
        assert isinstance(stored, np.ndarray)
        assert stored.shape == (found.facts.rows, found.facts.columns)


def deidentifying(data: bytes) -> None:
    """De-identifying an entry, which reads and writes every element."""
    with as_path(data) as path, open(path, "rb") as file, suppress(DataError):
        done = deidentifier().deidentify(path, file, "0123", None)
        with done.file as opened:
            found = read_open_header(opened)
        assert found.facts.patient_id != "PHANTOM-0001"


def archives(data: bytes) -> None:
    """Reading every member of an archive."""
    seen = set()
    with (
        as_path(data, ".zip" if data[:1] == b"P" else ".tar") as path,
        closing(open_archive(path, scratch=path.parent)) as members,
    ):
        for one in members:
            if isinstance(one, Finding):
                assert one.words
                continue
            inside = PurePosixPath(one.path)
            assert inside.parts
            assert not inside.is_absolute()
            assert ".." not in inside.parts
            assert "\0" not in one.path
            assert one.path not in seen
            seen.add(one.path)
            with suppress(DataError):
                for _ in one.stream.chunks():
                    pass


def spool(data: bytes) -> None:
    """What the spool says of itself: a batch's description, notes."""
    settings = installation()
    batch = settings.layout.ready / "f1"
    (batch / "batch.json").write_bytes(data)
    with suppress(ValueError):
        source = read_source(settings.layout, "f1")
        assert len(source.key) < 1 << 20
    settings.layout.notes.mkdir(exist_ok=True)
    (settings.layout.notes / "1-fuzz-1.jsonl").write_bytes(data)
    for note in take_notes(settings.layout):
        assert note.key


def jobs(data: bytes) -> None:
    """A job as a stranger may lay it into the queue."""
    queues.is_ours(data)
    with suppress(ValueError, RecursionError):
        batches = json.loads(data)
        for entry in entries_of_job(installation(), batches):
            assert entry.batch == "f1"


def settings(data: bytes) -> None:
    """A configuration file."""
    with as_path(data, ".toml") as path, suppress(ConfigError):
        load_settings(path, root=path.parent, environ={})


def commands(data: bytes) -> None:
    """A command set of DIMSE, and the answer to it."""
    with suppress(Malformed):
        command = parse_command(data)
        for maximum in (0, 128, 16384):
            answer = encode_response(command, 1, 0x0122, "refused", maximum)
            assert answer.startswith(b"\4\0")


def requests(data: bytes) -> None:
    """An A-ASSOCIATE-RQ, before pynetdicom sees it."""
    asked = read_request(data, "10.0.0.7")
    if asked is not None:
        judge_request(asked, installation().receiver, Counts(0, 0))


def commitments(data: bytes) -> None:
    """The Action Information of a request for storage commitment."""
    for explicit in (False, True):
        with suppress(Refused):
            read_asked(data, explicit=explicit)


def conversations(data: bytes) -> None:
    """All that one sender says, to a real receiver on a socket."""
    wire = receiver()
    wire.send(data)
    if wire.sent % 20 == 0:
        wire.check()
        wire.empty()


TARGETS: dict[str, Target] = {
    one.__name__: one
    for one in (header, placing, examining, comparing, pixels, deidentifying, archives, spool, jobs,
                settings, commands, requests, commitments, conversations)
}  # fmt: skip


# what they share ----------------------------------------------------------------------------------


def read(data: bytes) -> Header | None:
    with as_file(data) as file, suppress(DataError):
        return read_open_header(file)
    return None


def check_place(patient: str, accession: str, study: str) -> None:
    """Names are single safe components, whatever they are made of."""
    for named in (names.patient_name(patient, study), names.accession_name(accession, study)):
        for name in (named.name, names.with_suffix(named)):
            assert _COMPONENT.fullmatch(name), ascii(name)
            assert name not in (".", "..")
    assert all(len(part) == 5 and part.isdigit() for part in names.uid_digits(study))


@contextmanager
def as_file(data: bytes) -> Iterator[BinaryIO]:
    with open(os.memfd_create("fuzz", os.MFD_CLOEXEC), "wb+") as file:
        file.write(data)
        file.flush()
        yield file  # type: ignore[misc]


@contextmanager
def as_path(data: bytes, suffix: str = "") -> Iterator[Path]:
    path = workplace() / f"input{suffix}"
    path.write_bytes(data)
    yield path


@cache
def workplace() -> Path:
    """A folder in memory; the runner's process has one, and removes it at its end."""
    given = os.environ.get("PETCT_FUZZ_PLACE")
    return Path(given or tempfile.mkdtemp(prefix="petct-fuzz-", dir="/dev/shm"))


@cache
def kept_files() -> tuple[Path, ...]:
    """Instances that are in the tree: of each encoding one."""
    from fuzzing.seeds import instances

    found = []
    for name, content in instances().items():
        path = workplace() / f"kept-{name}"
        path.write_bytes(content)
        found.append(path)
    return tuple(found[:3])


@cache
def deidentifier() -> EntryDeidentifier:
    seed = workplace() / "seed"
    seed.write_text("0123456789abcdef" * 4)
    seed.chmod(0o600)
    layout = installation().layout
    give_archive_identity(layout)
    return EntryDeidentifier(layout, seed)


@cache
def receiver() -> Wire:
    return Wire(workplace() / "wire")


@cache
def installation() -> Settings:
    found = load_settings(root=workplace() / "root", environ={})
    found.layout.make_private()
    batch = found.layout.ready / "f1"
    batch.mkdir(exist_ok=True)
    (batch / "entry").write_bytes(b"x")
    return found
