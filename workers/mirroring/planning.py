"""What is to be sent, under which key, in which parts: decisions, without a store or a disk.

An object's key is its file's path in the archive. A revision of a pair has a folder of its own,
which is never written to again, so that whoever reads one never meets another:

    <home>/Auto-Paired/0002-5f0c…/ct.npy pet.npy qc.png, and pair.json last
    <home>/Auto-Paired/latest.json       names the folder of the newest revision, and its state
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

MOST_PARTS = 10_000
"""Of one multipart upload (Amazon S3, multipart upload limits)."""

LATEST = "latest.json"
JOURNAL = ".petct/facts"
IDENTITY = ".petct/id"
_LATEST_SCHEMA = "petct-ingest/mirrored-pair/1"
_MIB = 1 << 20
_TYPES = {
    ".dcm": "application/dicom",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".png": "image/png",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that the store is to hold."""

    key: str
    """Below the prefix; for an instance its path in the archive."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says of an object; no digest: nobody gave it one, or it is not ours."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload: bytes from `offset` on."""

    number: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that the store holds already, with the digests that it tells."""

    size: int
    etag: str
    sha256: str | None = None
    """Base64, as S3 writes it."""


class Drift(StrEnum):
    """How an object of the store differs from what it should be."""

    MISSING = "missing"
    SIZE = "other-size"
    DIGEST = "other-digest"
    BYTES = "other-bytes"
    POINTER = "other-revision"


def judge(wanted: Wanted, stored: Stored | None) -> Drift | None:
    """Compare what the store says of an object with what it should hold; None: they agree."""
    if stored is None:
        return Drift.MISSING
    if stored.size != wanted.size:
        return Drift.SIZE
    return None if stored.sha256 == wanted.sha256 else Drift.DIGEST


def lacking(wanted: Iterable[Wanted], listed: Mapping[str, int]) -> list[Wanted]:
    """Return what a listing (key: size) does not show.

    An object comes into being whole and with checked bytes, so name and size tell that it is there.
    """
    return [one for one in wanted if listed.get(one.key) != one.size]


def parts_of(size: int, part_bytes: int) -> list[Part]:
    """Divide a file; the parts grow where there would be too many."""
    step = max(part_bytes, -(-size // MOST_PARTS))
    step = -(-step // _MIB) * _MIB if step > part_bytes else step
    return [
        Part(number, offset, min(step, size - offset))
        for number, offset in enumerate(range(0, size, step), 1)
    ]


def fits(part: Part, stored: StoredPart | None, md5: str, sha256: str) -> bool:
    """Tell whether a part that the store holds is this one.

    By the SHA-256 (base64) where the store keeps it, else by the ETag, which is the part's MD5
    unless it was encrypted with a key of its own.
    """
    if stored is None or stored.size != part.size:
        return False
    if stored.sha256 is not None:
        return stored.sha256 == sha256
    return stored.etag.strip('"') == md5


def content_type(key: str) -> str:
    """Name what an object holds."""
    return _TYPES.get(PurePosixPath(key).suffix, "application/octet-stream")


def folder_of(key: str) -> str:
    """Return the key of the folder above, with its slash; "" at the top."""
    return key.rpartition("/")[0] + "/" if "/" in key else ""


def by_folder(wanted: Iterable[Wanted]) -> dict[str, list[Wanted]]:
    """Group objects by their folder: one listing then tells of all."""
    found: dict[str, list[Wanted]] = {}
    for one in wanted:
        found.setdefault(folder_of(one.key), []).append(one)
    return found


def revision_folder(revision: int, pair_json_sha256: str) -> str:
    """Name the folder of a revision; an index made anew may count revisions anew."""
    return f"{revision:04d}-{pair_json_sha256[:12]}"


@dataclass(frozen=True, slots=True)
class Latest:
    """The content of latest.json."""

    study: str
    state: str
    """That of the pair in the index: only `ready` is to be used."""
    revision: int
    folder: str
    """Beside latest.json."""
    files: dict[str, dict[str, Any]]
    """Size and sha256 of each, pair.json among them."""

    def to_json(self) -> bytes:
        return json.dumps({"schema": _LATEST_SCHEMA, **asdict(self)}, indent=2).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the archive's journal, which only grows: bytes from `start` to before `end`."""

    start: int
    end: int

    @property
    def key(self) -> str:
        return f"{JOURNAL}/{self.start:015d}-{self.end:015d}.jsonl"


def segments_of(keys: Iterable[str]) -> list[Segment]:
    """Return the pieces that a listing shows, in order; other keys are none of ours."""
    found = []
    for key in keys:
        start, _, end = PurePosixPath(key).stem.partition("-")
        if start.isdigit() and end.isdigit() and Segment(int(start), int(end)).key == key:
            found.append(Segment(int(start), int(end)))
    return sorted(found, key=lambda one: (one.start, one.end))


def covered(segments: Sequence[Segment]) -> int:
    """Return up to where the pieces hold the journal without a gap."""
    end = 0
    for one in segments:
        if one.start <= end:
            end = max(end, one.end)
    return end
