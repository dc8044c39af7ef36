"""Encode what an N-EVENT-REPORT says of a decided transaction (PS3.4 table J.3-2).

By hand, as it is read: pydicom takes seconds for 20,000 references, and the receiver's senders
would wait meanwhile.
"""

from __future__ import annotations

import struct

from workers.commitment.transactions import Reference, Transaction

ALL_COMMITTED, FAILURES_EXIST = 1, 2
"""Event Type IDs."""

_ITEM = struct.Struct("<HHL")


def event_type(transaction: Transaction) -> int:
    return FAILURES_EXIST if any(transaction.reasons) else ALL_COMMITTED


def event_information(transaction: Transaction, *, explicit: bool) -> bytes:
    """Return the data set, little endian: what is committed, and what is not and why."""
    committed: list[bytes] = []
    failed: list[bytes] = []
    for reference, reason in zip(transaction.references, transaction.reasons, strict=True):
        (failed if reason else committed).append(_item(reference, reason, explicit))
    parts = [_element(0x1195, b"UI", transaction.uid.encode("ascii"), explicit)]
    if failed:
        parts.append(_element(0x1198, b"SQ", b"".join(failed), explicit))
    if committed:
        parts.append(_element(0x1199, b"SQ", b"".join(committed), explicit))
    return b"".join(parts)


def _item(reference: Reference, reason: int, explicit: bool) -> bytes:
    inside = _element(0x1150, b"UI", reference.sop_class.encode("ascii"), explicit)
    inside += _element(0x1155, b"UI", reference.sop_instance.encode("ascii"), explicit)
    if reason:
        inside += _element(0x1197, b"US", struct.pack("<H", reason), explicit)
    return _ITEM.pack(0xFFFE, 0xE000, len(inside)) + inside


def _element(number: int, vr: bytes, value: bytes, explicit: bool) -> bytes:
    """Encode an element of group 0008 (PS3.5 7.1)."""
    value += b"\0" * (len(value) % 2)
    if not explicit:
        return struct.pack("<HHL", 0x0008, number, len(value)) + value
    if vr == b"SQ":
        return struct.pack("<HH2sHL", 0x0008, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 0x0008, number, vr, len(value)) + value
