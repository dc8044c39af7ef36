"""Find the fragments of a data set that lie whole in a buffer, many at a time (PS3.8 9.3.5.1).

Most senders cut a data set into PDUs of 16 KB with one PDV each. Read one by one, they cost more
than the disk. Whatever looks any different is left to whoever reads PDU by PDU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MOST_FRAGMENTS = 512
"""Half of what one writev(2) takes (IOV_MAX)."""

_P_DATA = 0x04
_IS_COMMAND, _IS_LAST = 1, 2
_HEADS = struct.Struct(">BxLLBB")  # of a PDU and of its PDV
_PDU_BYTES, _PDV_LENGTH_BYTES, _CONTROL_BYTES = 6, 4, 2


@dataclass(frozen=True, slots=True)
class Fragments:
    """Values of consecutive PDVs, the bytes that they take with their heads, and how they end."""

    pieces: tuple[memoryview, ...]
    bytes_read: int
    has_last: bool


def whole_fragments(view: memoryview, context: int, most_bytes: int) -> Fragments:
    """Return the values of P-DATA-TF PDUs with which `view` begins, up to the data set's end.

    Taken are PDUs of one PDV each, of the data set of the message in `context`. `most_bytes` is the
    longest PDU that was announced to the peer, 0 for any. The values are parts of `view`.
    """
    pieces: list[memoryview] = []
    at, last = 0, 0
    while not last and len(pieces) < MOST_FRAGMENTS and len(view) - at >= _HEADS.size:
        kind, length, pdv_length, its_context, control = _HEADS.unpack_from(view, at)
        end = at + _PDU_BYTES + length
        if (
            kind != _P_DATA
            or (most_bytes and length > most_bytes)
            or end > len(view)
            or pdv_length != length - _PDV_LENGTH_BYTES
            or pdv_length < _CONTROL_BYTES
            or its_context != context
            or control & _IS_COMMAND
        ):
            break
        pieces.append(view[at + _HEADS.size : end])
        at, last = end, control & _IS_LAST
    return Fragments(tuple(pieces), at, bool(last))
