"""The head that turns the bytes of a C-STORE into a DICOM file (PS3.10 7.1).

It is made from the command set alone: the data set behind it stays as it was received.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IMPLEMENTATION_CLASS_UID = "2.25.204926817234125493228736752459674292816"
IMPLEMENTATION_VERSION_NAME = "PETCT_INGEST_1"

_PREAMBLE = bytes(128) + b"DICM"
_UID_BYTES = 64


@dataclass(frozen=True, slots=True)
class Encoding:
    """What one presentation context says of all its instances."""

    transfer_syntax: str
    source_ae: str


def uid_problem(uid: str | None) -> str | None:
    """Say why a UID of a command set cannot stand in a file's header, or return None.

    Only the value representation is asked here (PS3.5 6.2, UI): a UID with other characters is
    written down as it came, and judged when the instance is filed.
    """
    if not uid:
        return "is empty"
    if len(uid) > _UID_BYTES:
        return f"has {len(uid)} characters, {_UID_BYTES} are allowed"
    if not uid.isascii() or not uid.isprintable() or "\\" in uid:
        return "has characters that no UID can have"
    return None


def file_head(sop_class: str, sop_instance: str, encoding: Encoding) -> bytes:
    """Return preamble and File Meta Information for one instance.

    Raises
    ------
    ValueError
        A UID is not ASCII; see `uid_problem`.
    """
    meta = b"".join(
        (
            _long(0x0001, b"OB", b"\0\1"),  # File Meta Information Version
            _uid(0x0002, sop_class),  # Media Storage SOP Class UID
            _uid(0x0003, sop_instance),  # Media Storage SOP Instance UID
            _uid(0x0010, encoding.transfer_syntax),
            _uid(0x0012, IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _source(encoding.source_ae),
        )
    )
    group_length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta))
    return _PREAMBLE + group_length + meta


def _source(ae_title: str) -> bytes:
    """Encode Source Application Entity Title, type 3: left out where it is none."""
    title = ae_title.strip()
    if not title or len(title) > 16 or not title.isascii() or not title.isprintable():
        return b""
    return _text(0x0016, b"AE", title)


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    return _short(element, b"UI", value + b"\0" * (len(value) % 2))


def _text(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    return _short(element, vr, value + b" " * (len(value) % 2))


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def _long(element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sHL", 2, element, vr, 0, len(value)) + value
