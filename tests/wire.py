"""A peer that speaks DICOM's upper layer byte by byte: what no toolkit would ever send."""

import socket
import struct
from dataclasses import dataclass, field

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
COMMAND, LAST = 1, 2
STORE, ECHO, FIND, CANCEL = 0x0001, 0x0030, 0x0020, 0x0FFF
STORAGE_CONTEXT, ECHO_CONTEXT = 1, 3


def pdu(kind, body=b""):
    return struct.pack(">BBL", kind, 0, len(body)) + body


def pdv(control, value=b"", context=STORAGE_CONTEXT):
    return struct.pack(">LBB", len(value) + 2, context, control) + value


def p_data(*pdvs):
    return pdu(0x04, b"".join(pdvs))


def element(number, value, group=0):
    value = value.encode() if isinstance(value, str) else value
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", group, number, len(value)) + value


def number(value):
    return struct.pack("<H", value)


def command_set(*elements):
    body = b"".join(elements)
    return element(0, struct.pack("<L", len(body))) + body


def store_command(message_id=1, uid="1.2.3.4.1", sop_class=CT, has_data=True, priority=True):
    return command_set(
        element(0x0002, sop_class),
        element(0x0100, number(STORE)),
        element(0x0110, number(message_id)),
        *([element(0x0700, number(0))] if priority else []),
        element(0x0800, number(0x0001 if has_data else 0x0101)),
        element(0x1000, uid),
    )


def echo_command(message_id=1, has_data=False):
    return request_command(ECHO, message_id, VERIFICATION, has_data)


def request_command(kind, message_id=1, sop_class=CT, has_data=False):
    return command_set(
        element(0x0002, sop_class),
        element(0x0100, number(kind)),
        element(0x0110, number(message_id)),
        element(0x0700, number(0)),
        element(0x0800, number(0x0001 if has_data else 0x0101)),
    )


def data_set(uid="1.2.3.4.1", size=64):
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return (
        b"\x08\0\x18\0UI" + struct.pack("<H", len(value)) + value
        + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", size) + b"\x07" * size
    )  # fmt: skip


def store(message_id=1, data=None, context=STORAGE_CONTEXT, size=16378, **options):
    """Return the PDUs of a C-STORE as most senders cut them."""
    data = data_set() if data is None else data
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    return p_data(pdv(COMMAND | LAST, store_command(message_id, **options), context)) + b"".join(
        p_data(pdv(LAST if at == len(pieces) - 1 else 0, piece, context))
        for at, piece in enumerate(pieces)
    )


def release():
    return pdu(0x05, bytes(4))


def abort(source=0):
    return pdu(0x07, bytes((0, 0, source, 0)))


def associate_rq(contexts=((STORAGE_CONTEXT, CT), (ECHO_CONTEXT, VERIFICATION)), maximum=16384):
    def item(kind, value):
        return struct.pack(">BBH", kind, 0, len(value)) + value

    def context(identifier, abstract_syntax):
        syntaxes = item(0x40, EXPLICIT.encode()) + item(0x40, IMPLICIT.encode())
        names = item(0x30, abstract_syntax.encode()) + syntaxes
        return item(0x20, struct.pack(">BBBB", identifier, 0, 0, 0) + names)

    user = item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3.4")
    return pdu(
        0x01,
        struct.pack(">HH16s16s32s", 1, 0, b"PETCT_INGEST".ljust(16), b"ODD_PEER".ljust(16), b"")
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + b"".join(context(*one) for one in contexts)
        + item(0x50, user),
    )


@dataclass
class Said:
    """What the receiver said: the kind of its PDU, and what we look at of it."""

    kind: str
    source: int | None = None
    command: dict[int, bytes] = field(default_factory=dict)
    context: int | None = None

    @property
    def status(self):
        return int.from_bytes(self.command[0x0900], "little")

    @property
    def message_id(self):
        return int.from_bytes(self.command[0x0120], "little")

    @property
    def field(self):
        return int.from_bytes(self.command[0x0100], "little")

    @property
    def comment(self):
        return self.command.get(0x0902, b"").decode().strip()


class Peer:
    """A raw connection to a receiver."""

    def __init__(self, port, seconds=10.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *pieces):
        for piece in pieces:
            self.socket.sendall(piece)

    def associate(self, **options):
        self.send(associate_rq(**options))
        said = self.hear()
        assert said.kind == "accepted", said
        return self

    def hear(self):
        """Read what the receiver says next; a whole message where it answers one."""
        command = b""
        while True:
            try:
                kind, _, length = struct.unpack(">BBL", self._exactly(6))
                body = self._exactly(length)
            except (EOFError, ConnectionError):
                return Said("closed")
            if kind == 0x07:
                return Said("abort", source=body[2])
            if kind != 0x04:
                return Said({0x02: "accepted", 0x03: "rejected", 0x06: "released"}[kind])
            size, context, control = struct.unpack_from(">LBB", body)
            assert size == length - 4, "one PDV a PDU"
            command += body[6:]
            if control & LAST:
                return Said("answer", command=_elements(command), context=context)

    def _exactly(self, size):
        found = b""
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found


def _elements(encoded):
    found = {}
    while encoded:
        group, name, length = struct.unpack_from("<HHL", encoded)
        assert group == 0
        found[name] = encoded[8 : 8 + length]
        encoded = encoded[8 + length :]
    return found
