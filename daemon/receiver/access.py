"""Decide who may associate: pure, on what an A-ASSOCIATE-RQ says and where it comes from.

An address that is not allowed is not even listened to. Whoever else asks for an association gets
an answer, and a rejection carries the result, source and reason of PS3.8 9.3.4, table 9-21.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from config.tables.intake import ReceiverSettings

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""The only one there is (PS3.7 A.2.1)."""

_PERMANENT, _TRANSIENT = 1, 2
_USER, _ACSE, _PRESENTATION = 1, 2, 3
_ITEMS_BEGIN = 74
_APPLICATION_CONTEXT_ITEM = 0x10


@dataclass(frozen=True, slots=True)
class Asked:
    """What an A-ASSOCIATE-RQ says (PS3.8 9.3.2), and where it comes from."""

    calling_ae: str
    called_ae: str
    address: str
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """How many associations there are now, without the one that is asked for."""

    overall: int = 0
    of_peer: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request; a result of 0 is acceptance."""

    words: str
    result: int = 0
    source: int = 0
    reason: int = 0

    @property
    def accepted(self) -> bool:
        return self.result == 0

    @property
    def code(self) -> str:
        """Result, source and reason as the tables of PS3.8 number them."""
        return f"{self.result}/{self.source}/{self.reason}"

    @property
    def pdu(self) -> bytes:
        """The A-ASSOCIATE-RJ that says it (PS3.8 9.3.4)."""
        return struct.pack(">BxLxBBB", 0x03, 4, self.result, self.source, self.reason)


ACCEPTED = Verdict("accepted")
NO_REASON = Verdict("address-not-allowed", _PERMANENT, _USER, 1)
CONTEXT_NOT_SUPPORTED = Verdict("application-context-not-supported", _PERMANENT, _USER, 2)
CALLING_NOT_RECOGNIZED = Verdict("calling-AE-title-not-recognized", _PERMANENT, _USER, 3)
CALLED_NOT_RECOGNIZED = Verdict("called-AE-title-not-recognized", _PERMANENT, _USER, 7)
VERSION_NOT_SUPPORTED = Verdict("protocol-version-not-supported", _PERMANENT, _ACSE, 2)
LIMIT_EXCEEDED = Verdict("local-limit-exceeded", _TRANSIENT, _PRESENTATION, 2)
PEER_LIMIT_EXCEEDED = Verdict("local-limit-exceeded-by-peer", _TRANSIENT, _PRESENTATION, 2)


def judge_request(asked: Asked, rules: ReceiverSettings, counts: Counts) -> Verdict:
    """Accept or reject a request: what it is first, then who asks, then whether there is room."""
    if not asked.protocol_version & 1:  # one bit a version, and bit 0 is ours (PS3.8 9.3.2)
        return VERSION_NOT_SUPPORTED
    if asked.application_context != APPLICATION_CONTEXT:
        return CONTEXT_NOT_SUPPORTED
    if not address_allowed(asked.address, rules.allow_addresses):
        return NO_REASON
    if not _title_allowed(asked.called_ae, rules.allow_called_ae):
        return CALLED_NOT_RECOGNIZED
    if not _title_allowed(asked.calling_ae, rules.allow_calling_ae):
        return CALLING_NOT_RECOGNIZED
    if counts.overall >= rules.maximum_associations:
        return LIMIT_EXCEEDED
    if counts.of_peer >= rules.maximum_associations_per_peer:
        return PEER_LIMIT_EXCEEDED
    return ACCEPTED


def address_allowed(address: str, allowed: Sequence[str]) -> bool:
    """Tell whether an address is one of these, or in one of these networks; no list: any is.

    IPv4 addresses and those that IPv6 maps them to (RFC 4291 2.5.5.2) are the same.
    """
    if not allowed:
        return True
    try:
        plain = ip_address(plain_address(address).partition("%")[0])
    except ValueError:
        return False
    both: tuple[IPv4Address | IPv6Address, ...] = (plain,)
    if isinstance(plain, IPv4Address):
        both = (plain, IPv6Address(f"::ffff:{plain}"))
    return any(one in ip_network(network) for network in allowed for one in both)


def plain_address(address: str) -> str:
    """Return an IPv4 peer as such, also where an IPv6 socket took it."""
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return str(mapped) if mapped else address


def read_request(pdu: bytes | bytearray, address: str) -> Asked | None:
    """Read of an A-ASSOCIATE-RQ what is judged; None where it is none (PS3.8 9.3.2).

    Its presentation contexts are left to pynetdicom, which looks at them in a thread of their own:
    a request made to be slow to read holds up nobody else.
    """
    if len(pdu) < _ITEMS_BEGIN:
        return None
    return Asked(
        calling_ae=_text(pdu[26:42]),
        called_ae=_text(pdu[10:26]),
        address=address,
        application_context=_text(_first_item(pdu, _APPLICATION_CONTEXT_ITEM)),
        protocol_version=int.from_bytes(pdu[6:8], "big"),
    )


def whom_to_send_away(waiting: Iterable[tuple[str, float]]) -> int:
    """Choose of those who wait (address, since when) one that makes room for another.

    It is the oldest of the address with the most: whoever opens many connections and asks for
    nothing pushes out its own, and those who ask at once are gone before it is their turn.
    """
    everybody = list(waiting)
    most = Counter(address for address, _ in everybody)
    return min(
        range(len(everybody)),
        key=lambda number: (-most[everybody[number][0]], everybody[number][1]),
    )


def _title_allowed(title: str, allowed: Sequence[str]) -> bool:
    """Tell whether an AE title is one at all (PS3.5 6.2) and on the list, if there is one."""
    if not title or not title.isascii() or not title.isprintable() or "\\" in title:
        return False
    return not allowed or title in allowed


def _first_item(pdu: bytes | bytearray, wanted: int) -> bytes | bytearray:
    """Return the first item of a type among the variable items of a request; empty: there is none.

    The application context comes first, so only a few items are looked at.
    """
    begin = _ITEMS_BEGIN
    for _ in range(4):
        if begin + 4 > len(pdu):
            break
        size = int.from_bytes(pdu[begin + 2 : begin + 4], "big")
        if pdu[begin] == wanted:
            return pdu[begin + 4 : begin + 4 + size]
        begin += 4 + size
    return b""


def _text(value: bytes | bytearray) -> str:
    """Decode a title or UID without its padding; what is no ASCII can be told, not matched."""
    return value.decode("ascii", "backslashreplace").strip(" \0")
