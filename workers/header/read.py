"""Read the header of one Part 10 file into `InstanceFacts`, within fixed bounds, refusing what is
no DICOM.

A file without preamble or file meta is refused although it could often be guessed: its transfer
syntax is not known (docs/decisions/0003-no-guessed-transfer-syntax.md).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom.errors import BytesLengthException

from workers import limits
from workers.errors import BadIdentity, DataError, Exceeded, Hostile, NotDicom, Truncated
from workers.header import uids
from workers.header.elements import Encoding, Walk, Window, walk_elements
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
    meta, found = _open_dataset(file)
    syntax, sop_class = _uid(meta, _META_SYNTAX), _uid(meta, _META_CLASS)
    walk = walk_elements(found.window, found.begin, found.end, found.encoding, wanted_tag)
    try:
        facts = extract_facts(walk, found.encoding, syntax, fallback_class=sop_class)
    except RecursionError:
        raise Hostile("sequences nested deeper than can be read") from None
    except _DECODING_ERRORS as error:
        raise DataError(f"the header cannot be decoded: {type(error).__name__}") from None
    _check_identity(facts)
    return Header(facts, meta.end, found.file_size, sop_class, _uid(meta, _META_INSTANCE))


def check_whole(file: BinaryIO) -> None:
    """Check every level of an open file, before something decodes it whole.

    Raises DataError: what `read_open_header` raises, and Exceeded where there is too much of
    anything in what that never looks into.
    """
    _, found = _open_dataset(file, limits.WHOLE_FILE)
    found.file.seek(found.begin)
    check_open_nesting(found.file, found.end, found.encoding)


def announced_uid(file: BinaryIO) -> str | None:
    """Return the MediaStorageSOPInstanceUID of an open file, where one can be read.

    It needs no readable data set: in an entry of an association it is what the sender called the
    instance, and what it will ask storage commitment for.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        uid = _uid(_read_meta(Window(file), size), _META_INSTANCE)
    except DataError:
        return None
    return uid if uids.is_valid(uid) else None


class _DataSet(NamedTuple):
    """What a data set is read from, from where to where, and how it is encoded."""

    file: BinaryIO
    window: Window
    begin: int
    end: int
    encoding: Encoding
    file_size: int
    """Of the file itself, where what it has was inflated."""


def _open_dataset(file: BinaryIO, most: limits.Limit | None = None) -> tuple[Walk, _DataSet]:
    """Read the file meta of an open file, and how its data set is encoded.

    Some writers encode otherwise than their file meta says; the first element shows it.
    """
    file_size = size = os.fstat(file.fileno()).st_size
    window = Window(file)
    meta = _read_meta(window, size)
    syntax, at = _uid(meta, _META_SYNTAX), meta.end
    if not syntax:
        raise NotDicom("no TransferSyntaxUID in the file meta: how it is encoded is not known")
    if _uid(meta, _META_CLASS) == _MEDIA_DIRECTORY:
        raise MediaDirectory("a media directory (DICOMDIR), not an instance")
    if at >= size:
        raise Truncated("the file ends after its file meta: there is no data set")
    if most is not None and size > most.maximum:
        raise Exceeded(most, size)
    if syntax in _DEFLATED:
        file = _inflate(file, at)
        window, at, size = Window(file), 0, file.tell()
    first = window.take(at, 6)
    if len(first) < 6:
        raise Truncated("the file ends inside the first element of the data set")
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    encoding = Encoding(implicit_vr=not explicit, little_endian=syntax != _BIG_ENDIAN)
    return meta, _DataSet(file, window, at, size, encoding, file_size)


def _read_meta(window: Window, size: int) -> Walk:
    if size == 0:
        raise NotDicom("the file is empty")
    head = window.take(0, PREAMBLE_BYTES)
    if len(head) < PREAMBLE_BYTES or head[128:] != b"DICM":
        raise NotDicom(_why_no_preamble(head))
    first = window.take(PREAMBLE_BYTES, 8)
    if len(first) < 8:
        raise Truncated("the file ends after its preamble")
    if first[:2] != b"\x02\x00":
        raise NotDicom("a preamble, but no file meta: the transfer syntax is not known")
    implicit = not (first[4:6].isalpha() and first[4:6].isupper())
    encoding = Encoding(implicit_vr=implicit, little_endian=True)
    return walk_elements(window, PREAMBLE_BYTES, size, encoding, _wanted_meta, only_group=2)


def _wanted_meta(tag: int) -> limits.Limit | None:
    return limits.VALUE if tag in _META_TAGS else None


def _why_no_preamble(head: bytes) -> str:
    group = int.from_bytes(head[:2], "little")
    if group == 2:
        return "file meta without the 128-byte preamble and DICM: no Part 10 file: dcmconv mends"
    if group == 8 and len(head) >= 8:
        return "a data set without file meta: its transfer syntax is not known: dcmconv mends it"
    return "no DICOM file: no DICM after a preamble of 128 bytes"


def _inflate(file: BinaryIO, start: int) -> io.BytesIO:
    """Inflate what a file has from a position on; the result stands at its end."""
    file.seek(start)
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
    for keyword, text in (
        ("PatientID", facts.patient_id),
        ("AccessionNumber", facts.accession_number),
        ("FrameOfReferenceUID", facts.frame_of_reference_uid),
    ):
        size = len((text or "").encode("utf-8", "surrogatepass"))
        if size > limits.IDENTIFIER.maximum:
            raise Exceeded(limits.IDENTIFIER, size, f"{keyword} has")


def _uid(walk: Walk, tag: int) -> str:
    element = walk.elements.get(tag)
    return uids.clean(element.value) if element else ""


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
