"""Find the fragments of a data set that lie in a buffer, many at a time (PS3.8 9.3.5.1).

Most senders cut a data set into PDUs of one PDV each. Read one by one, those of 16 KB cost more
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
_HEADS_BYTES = _HEADS.size
_PDV_LENGTH_BYTES, _CONTROL_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class Fragments:
    """Values of consecutive PDVs, the bytes that they take with their heads, and how they end."""

    pieces: tuple[memoryview, ...] = ()
    bytes_read: int = 0
    missing: int = 0
    """How many bytes of the last fragment are still to come."""
    is_last: bool = False
    """Whether the last fragment ends the data set."""


NO_FRAGMENTS = Fragments()


def next_fragments(
    view: memoryview, context: int, most_bytes: int, before: Fragments = NO_FRAGMENTS
) -> Fragments:
    """Return the values of P-DATA-TF PDUs with which `view` begins, up to the data set's end.

    Taken are PDUs of one PDV each, of the data set of the message in `context`, and first what is
    missing of the fragment with which `before` ended. `most_bytes` is the longest PDU that was
    announced to the peer, 0 for any. The values are parts of `view`.
    """
    size = len(view)
    missing, last = before.missing, before.is_last
    pieces: list[memoryview] = []
    at = 0
    if missing:
        at = min(missing, size)
        pieces.append(view[:at])
        missing -= at
    while not missing and not last and len(pieces) < MOST_FRAGMENTS and size - at >= _HEADS_BYTES:
        kind, length, pdv_length, its_context, control = _HEADS.unpack_from(view, at)
        if (
            kind != _P_DATA
            or (most_bytes and length > most_bytes)
            or pdv_length != length - _PDV_LENGTH_BYTES
            or pdv_length < _CONTROL_BYTES
            or its_context != context
            or control & _IS_COMMAND
        ):
            break
        begin = at + _HEADS_BYTES
        end = begin + pdv_length - _CONTROL_BYTES
        at = min(end, size)
        missing, last = end - at, bool(control & _IS_LAST)
        pieces.append(view[begin:at])
    return Fragments(tuple(pieces), at, missing, last)
