"""Stop gracefully: what is being sent is finished and answered, then the associations end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from pynetdicom.association import Association

from daemon.receiver.associations import GOODBYE_SECONDS, Associations, say_goodbye

_LOOK_SECONDS = 0.005
_CUT_OFF_SECONDS = 1.0


def drain(associations: Associations, seconds: float) -> int:
    """Let each C-STORE in progress be answered, and say goodbye; return how many were cut short.

    An association on which nothing is in progress is aborted at once, one that is answering right
    behind its answer: a storage SCP has no right to release (PS3.8 7.2.1 leaves that to the
    requestor), and a sender that goes on would never come to an end.
    """
    # hanging up takes its part of the time
    deadline = time.monotonic() + max(seconds / 2, seconds - GOODBYE_SECONDS - _CUT_OFF_SECONDS)
    associations.draining = True
    while time.monotonic() < deadline:
        for conversation in associations.running:
            if not conversation.in_progress:
                say_goodbye(conversation.association)
        if not associations.running:
            return 0
        time.sleep(_LOOK_SECONDS)
    late = associations.running
    for conversation in late:
        say_goodbye(conversation.association)
    return len(late)


def hang_up(still_connected: Callable[[], Sequence[Association]]) -> None:
    """Wait until the peers have closed their connections, then close those that are left."""
    _wait_until_gone(still_connected, GOODBYE_SECONDS)
    for association in still_connected():
        connection = getattr(association.dul.socket, "socket", None)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
    _wait_until_gone(still_connected, _CUT_OFF_SECONDS)


def _wait_until_gone(still: Callable[[], Sequence[Association]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while still() and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
