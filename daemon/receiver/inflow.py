"""Read and write the connection of one association, with one buffer and bounded patience."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

BUFFER_BYTES = 256 << 10
"""What one association holds in memory of what it was sent."""

PROGRESS_BYTES = 64 << 10
"""What a peer must at least send of a message within each `dimse_timeout_seconds`."""


class ConnectionLost(Exception):
    """The peer has closed the connection, or it broke."""


class Hopeless(Exception):
    """The peer is to be cut off; the message says why."""


class Interrupted(Exception):
    """Somebody here wants the association to end."""


class Inflow:
    """The bytes of one connection; for one thread.

    Time counts against the peer only while we wait for it. Between two messages it has
    `idle_seconds`. Of a PDU or message that has begun, the rest or `PROGRESS_BYTES` of it must come
    within `message_seconds`, again and again: dripping bytes do not keep an association alive.

    Parameters
    ----------
    connection : socket.socket
        Plain or TLS, with a timeout.
    interrupted : callable
        Asked every `look_seconds` while we wait, and after every read.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        idle_seconds: float,
        message_seconds: float,
        look_seconds: float,
        interrupted: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._idle_seconds = idle_seconds
        self._message_seconds = message_seconds
        self._interrupted = interrupted
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0
        self._patience, self._left = "", 0.0
        self._gained = 0
        self._look_seconds = look_seconds
        self._usual_timeout = connection.gettimeout()
        self.rest()

    @property
    def buffered(self) -> int:
        """How many bytes were read and not taken yet."""
        return self._end - self._begin

    def wait_briefly(self) -> None:
        """Look up from waiting from now on: what is read and sent, is read and sent here.

        Raises ConnectionLost.
        """
        try:
            self._connection.settimeout(self._look_seconds)
        except OSError as error:
            raise ConnectionLost(error.strerror) from error

    def wait_long(self) -> None:
        """Let others use the connection."""
        with contextlib.suppress(OSError):  # it was closed meanwhile
            self._connection.settimeout(self._usual_timeout)

    def rest(self) -> None:
        """A message has ended: the peer may be silent for a while."""
        self._patience, self._left = "silent", self._idle_seconds

    def begin_message(self) -> None:
        """A PDU has begun: its message is to go on."""
        if self._patience == "silent":
            self._patience = "too slow within a message"
            self._go_on()

    def _go_on(self) -> None:
        self._left, self._gained = self._message_seconds, 0

    def need(self, size: int) -> None:
        """Have at least `size` bytes buffered, a few: a header.

        Raises ConnectionLost, Hopeless, Interrupted.
        """
        while self.buffered < size:
            if self.buffered:
                self.begin_message()
            if BUFFER_BYTES - self._begin < size:
                rest = bytes(self._view[self._begin : self._end])
                self._view[: len(rest)] = rest
                self._begin, self._end = 0, len(rest)
            self._read()

    def peek(self, size: int) -> memoryview:
        """Return `size` bytes that `need` made sure of; they stay where they are."""
        return self._view[self._begin : self._begin + size]

    def skip(self, size: int) -> None:
        self._begin += size

    def some(self, most: int) -> memoryview:
        """Take what there is, at least one and at most `most` bytes; valid until the next call."""
        if self._begin == self._end:
            self._read()
        begin = self._begin
        self._begin += min(most, self.buffered)
        return self._view[begin : self._begin]

    def take(self, size: int) -> bytes:
        """Take exactly `size` bytes; for sizes that are bounded already."""
        pieces = []
        while size:
            piece = bytes(self.some(size))
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Send all of it; a peer that does not read has `idle_seconds`.

        Raises ConnectionLost, Hopeless, Interrupted.
        """
        view = memoryview(data)
        deadline = time.monotonic() + self._idle_seconds
        while view:
            try:
                view = view[self._connection.send(view) :]
            except TimeoutError:
                if self._interrupted():
                    raise Interrupted from None
            except OSError as error:
                raise ConnectionLost(error.strerror) from error
            if view and time.monotonic() >= deadline:
                raise Hopeless("does not read our answers")

    def _acknowledge(self) -> None:
        """Let TCP acknowledge what came, before we wait for the rest of a message.

        A peer under Nagle's algorithm holds the rest back until then (RFC 1122 4.2.3.4), and a
        delayed ACK takes 40 ms. The option does not last: it is set for what has come so far.
        """
        with contextlib.suppress(OSError):  # no TCP, in tests; or gone, as the read will tell
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _read(self) -> None:
        while not self.comes():
            pass

    def comes(self) -> bool:
        """Wait for a look's time; tell whether bytes came.

        Raises ConnectionLost, Hopeless, Interrupted.
        """
        if self._begin == self._end:
            self._begin = self._end = 0
        if self._patience != "silent":
            self._acknowledge()
        since = time.monotonic()
        count = None
        try:
            count = self._connection.recv_into(self._view[self._end :])
        except TimeoutError:
            pass
        except OSError as error:
            raise ConnectionLost(error.strerror) from error
        if count == 0:
            raise ConnectionLost("closed")
        if self._interrupted():
            raise Interrupted
        self._left -= time.monotonic() - since
        if self._left <= 0:
            raise Hopeless(self._patience)
        if count is None:
            return False
        self._end += count
        self._gained += count
        if self._gained >= PROGRESS_BYTES and self._patience != "silent":
            self._go_on()
        return True
