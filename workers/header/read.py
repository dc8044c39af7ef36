"""Read the header of one Part 10 file into `InstanceFacts`, within fixed bounds, refusing what is
no DICOM.

A file without preamble or file meta is refused although it could often be guessed: its transfer
syntax is not known (docs/decisions/0003-no-guessed-transfer-syntax.md).
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.errors import BytesLengthException

from workers import limits
from workers.errors import BadIdentity, DataError, Exceeded, Hostile, NotDicom, Truncated
from workers.header import uids
from workers.header.elements import Encoding, Walk, walk_elements
from workers.header.extract import extract_facts, wanted_tag
from workers.header.facts import InstanceFacts
from workers.header.nesting import check_open_nesting

PREAMBLE_BYTES = 132
_IMPLICIT = "1.2.840.10008.1.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_CHUNK_BYTES = 1 << 20
_DECODING_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, struct.error,
    NotImplementedError, OSError, BytesLengthException,
)  # fmt: skip
"""What pydicom raises on values that are none (of bytes in memory: an OSError is its own)."""
_META_CLASS, _META_INSTANCE, _META_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_META_TAGS = (_META_CLASS, _META_INSTANCE, _META_SYNTAX)


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was read."""

    facts: InstanceFacts
    dataset_offset: int
    """Where the data set begins, behind preamble and file meta."""
    size: int
    meta_sop_class_uid: str
    meta_sop_instance_uid: str


class MediaDirectory(NotDicom):
    """A DICOMDIR: an index of a medium, not an instance."""

    code = "media-directory"


def read_header(path: Path | str) -> Header:
    """Read one file. Raises DataError with the reason; OSError is the caller's to judge."""
    with open(path, "rb", opener=_no_follow) as file:
        return read_open_header(file)


def read_open_header(file: BinaryIO) -> Header:
    """Read from an open file, from its beginning."""
    meta, offset, size = _read_to_dataset(file)
    syntax = _uid(meta, _META_SYNTAX)
    source, end, encoding = _open_dataset(file, size, syntax)
    walk = walk_elements(source, end, encoding, wanted_tag)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values; what matters is in the facts
            facts = extract_facts(walk, encoding, syntax, fallback_class=_uid(meta, _META_CLASS))
    except RecursionError:
        raise Hostile("sequences nested deeper than can be read") from None
    except _DECODING_ERRORS as error:
        raise DataError(f"the header cannot be decoded: {type(error).__name__}") from None
    _check_identity(facts)
    return Header(facts, offset, size, _uid(meta, _META_CLASS), _uid(meta, _META_INSTANCE))


def check_whole(file: BinaryIO) -> None:
    """Check every level of an open file, before something decodes it whole.

    Raises DataError: what `read_open_header` raises, and Exceeded where there is too much of
    anything in what that never looks into.
    """
    meta, _, size = _read_to_dataset(file)
    if size > limits.WHOLE_FILE.maximum:
        raise Exceeded(limits.WHOLE_FILE, size)
    source, end, encoding = _open_dataset(file, size, _uid(meta, _META_SYNTAX))
    check_open_nesting(source, end, encoding)


def announced_uid(file: BinaryIO) -> str | None:
    """Return the MediaStorageSOPInstanceUID of an open file, where one can be read.

    It needs no readable data set: in an entry of an association it is what the sender called the
    instance, and what it will ask storage commitment for.
    """
    file.seek(0)
    try:
        uid = _uid(_read_meta(file, os.fstat(file.fileno()).st_size), _META_INSTANCE)
    except DataError:
        return None
    return uid if uids.is_valid(uid) else None


def _read_to_dataset(file: BinaryIO) -> tuple[Walk, int, int]:
    """Read the file meta; return it, where the data set begins, and the size of the file."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    meta = _read_meta(file, size)
    if not _uid(meta, _META_SYNTAX):
        raise NotDicom("no TransferSyntaxUID in the file meta: how it is encoded is not known")
    if _uid(meta, _META_CLASS) == _MEDIA_DIRECTORY:
        raise MediaDirectory("a media directory (DICOMDIR), not an instance")
    offset = file.tell()
    if offset >= size:
        raise Truncated("the file ends after its file meta: there is no data set")
    return meta, offset, size


def _read_meta(file: BinaryIO, size: int) -> Walk:
    if size == 0:
        raise NotDicom("the file is empty")
    head = file.read(PREAMBLE_BYTES)
    if len(head) < PREAMBLE_BYTES or head[128:] != b"DICM":
        raise NotDicom(_why_no_preamble(head))
    start = file.tell()
    first = file.read(8)
    file.seek(start)
    if len(first) < 8:
        raise Truncated("the file ends after its preamble")
    if first[:2] != b"\x02\x00":
        raise NotDicom("a preamble, but no file meta: the transfer syntax is not known")
    implicit = not (first[4:6].isalpha() and first[4:6].isupper())
    encoding = Encoding(implicit_vr=implicit, little_endian=True)
    return walk_elements(file, size, encoding, _wanted_meta, only_group=2)


def _wanted_meta(tag: int) -> limits.Limit | None:
    return limits.VALUE if tag in _META_TAGS else None


def _why_no_preamble(head: bytes) -> str:
    group = int.from_bytes(head[:2], "little")
    if group == 2:
        return "file meta without the 128-byte preamble and DICM: no Part 10 file: dcmconv mends"
    if group == 8 and len(head) >= 8:
        return "a data set without file meta: its transfer syntax is not known: dcmconv mends it"
    return "no DICOM file: no DICM after a preamble of 128 bytes"


def _open_dataset(file: BinaryIO, size: int, syntax: str) -> tuple[BinaryIO, int, Encoding]:
    """Return where the data set is read from, where that ends, and how it is encoded."""
    if syntax in _DEFLATED:
        file = _inflate(file)
        size = file.tell()
        file.seek(0)
    start = file.tell()
    first = file.read(6)
    file.seek(start)
    if len(first) < 6:
        raise Truncated("the file ends inside the first element of the data set")
    # some writers encode otherwise than their file meta says; the first element shows it
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    return file, size, Encoding(implicit_vr=not explicit, little_endian=syntax != _BIG_ENDIAN)


def _inflate(file: BinaryIO) -> io.BytesIO:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = io.BytesIO()
    while not engine.eof:
        chunk = engine.unconsumed_tail or file.read(_CHUNK_BYTES)
        if not chunk:
            raise Truncated("the deflated data set is cut")
        try:
            data.write(engine.decompress(chunk, _CHUNK_BYTES))
        except zlib.error as error:
            raise DataError(f"the deflated data set is damaged: {error}") from None
        if data.tell() > limits.INFLATED.maximum:
            raise Exceeded(limits.INFLATED)
    return data


def _check_identity(facts: InstanceFacts) -> None:
    for keyword, value in (
        ("SOPInstanceUID", facts.sop_instance_uid),
        ("StudyInstanceUID", facts.study_instance_uid),
        ("SeriesInstanceUID", facts.series_instance_uid),
        ("SOPClassUID", facts.sop_class_uid),
    ):
        if not value:
            raise BadIdentity(f"no {keyword}")
        if not uids.is_valid(value):
            raise BadIdentity(f"{keyword} is no UID (PS3.5 9.1): {uids.shown(value)}")


def _uid(walk: Walk, tag: int) -> str:
    element = walk.elements.get(tag)
    return uids.clean(element.value) if element else ""


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
