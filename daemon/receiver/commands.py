"""Command sets of DIMSE messages: read the ones that we handle, write their answers (PS3.7 6.3, E).

A command set is implicit VR little endian, group 0000, and short.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from daemon.receiver.part10 import uid_problem

MOST_COMMAND_BYTES = 64 << 10
"""The longest real ones have some hundred bytes."""

C_STORE_RQ = 0x0001
C_ECHO_RQ = 0x0030
KNOWN_FIELDS = frozenset(
    {
        *(field | kind for kind in (0, 0x8000) for field in (0x01, 0x10, 0x20, 0x21, 0x30)),
        *(field | kind for kind in (0, 0x8000) for field in range(0x100, 0x151, 0x10)),
        0x0FFF,
    }
)
"""Every Command Field of PS3.7 E.1."""

_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_ELEMENT = struct.Struct("<HHL")
_RESPONSE_NUMBERS = struct.Struct("<" + 4 * "HHLH")  # at once: four elements of a number each
_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_P_DATA = 0x04
_IS_COMMAND, _IS_LAST = 1, 2


class Malformed(Exception):
    """What was received is against PS3.7 or PS3.8; the message says how."""


@dataclass(frozen=True, slots=True)
class Command:
    """What we need of a command set; UIDs as received, None where they are missing."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class: str | None
    sop_instance: str | None


def parse_command(encoded: bytes) -> Command:
    """Read a command set.

    Raises
    ------
    Malformed
        It is cut, has elements of other groups, or lacks what every message has.
    """
    found = _elements(encoded)
    field = _number(found, 0x0100, "CommandField")
    if field not in KNOWN_FIELDS:
        raise Malformed(f"CommandField {field:#06x} is unknown")
    is_request = not field & _RESPONSE and field != 0x0FFF
    return Command(
        field=field,
        message_id=_number(found, 0x0110, "MessageID") if is_request else 0,
        has_data_set=_number(found, 0x0800, "CommandDataSetType") != _NO_DATA_SET,
        sop_class=_uid(found.get(0x0002)),
        sop_instance=_uid(found.get(0x1000)),
    )


def _elements(encoded: bytes) -> dict[int, bytes]:
    found = {}
    at, end = 0, len(encoded)
    while at < end:
        if end - at < _ELEMENT.size:
            raise Malformed("a command set ends within an element")
        group, element, length = _ELEMENT.unpack_from(encoded, at)
        at += _ELEMENT.size
        if group != 0 or length > end - at:
            raise Malformed("a command set holds what is no command element")
        found[element] = encoded[at : at + length]
        at += length
    return found


def _number(found: dict[int, bytes], element: int, keyword: str) -> int:
    value = found.get(element, b"")
    if len(value) != 2:
        raise Malformed(f"a command set without {keyword}")
    return int.from_bytes(value, "little")


def _uid(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1").rstrip("\0 ")


def encode_response(
    command: Command, context: int, status: int, comment: str, maximum: int
) -> bytes:
    """Return the whole answer to a request as P-DATA-TF PDUs.

    `maximum` is the longest PDU that the peer takes, in bytes, 0 for any (PS3.8 D.1). UIDs that
    no answer can carry are left out: they are optional there (PS3.7 9.3.1.2).
    """
    body = b"".join(
        (
            _encode_uid(0x0002, command.sop_class),
            _RESPONSE_NUMBERS.pack(
                *(0, 0x0100, 2, command.field | _RESPONSE),
                *(0, 0x0120, 2, command.message_id),
                *(0, 0x0800, 2, _NO_DATA_SET),
                *(0, 0x0900, 2, status),
            ),
            _encode(0x0902, _padded(comment[:64].encode("ascii", "replace"), b" ")),
            _encode_uid(0x1000, command.sop_instance),
        )
    )
    return encode_command(_encode(0x0000, struct.pack("<L", len(body))) + body, context, maximum)


def encode_command(body: bytes, context: int, maximum: int) -> bytes:
    """Wrap a command set into PDUs of at most `maximum` bytes."""
    size = max(2, (maximum - _PDV.size) & ~1) if maximum else len(body)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(
        _PDU.pack(_P_DATA, len(piece) + _PDV.size)
        + _PDV.pack(
            len(piece) + 2, context, _IS_COMMAND | (_IS_LAST if number == len(pieces) else 0)
        )
        + piece
        for number, piece in enumerate(pieces, 1)
    )


def _encode(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value if value else b""


def _encode_uid(element: int, uid: str | None) -> bytes:
    if uid is None or uid_problem(uid) is not None:
        return b""
    return _encode(element, _padded(uid.encode("ascii"), b"\0"))


def _padded(value: bytes, pad: bytes) -> bytes:
    return value + pad * (len(value) % 2)
