"""Does somebody have this file open for writing?

A read lease (fcntl(2), F_SETLEASE) is refused while a file is open for writing anywhere on this
machine; it is granted to the owner and to root. While we hold it, who wants to write waits until we
let go, and we can tell that somebody waits. Where leases are not permitted or not known (NFS, SMB,
another's file), size and mtime must do.
"""

from __future__ import annotations

import errno
import fcntl
import signal
from enum import StrEnum


class LeaseState(StrEnum):
    HELD = "held"  # nobody writes, and nobody begins before the descriptor is closed
    BUSY = "busy"  # a writer has it open
    UNKNOWN = "unknown"  # leases are not permitted or not supported here


def take_lease(descriptor: int) -> LeaseState:
    """Take a read lease on a file opened for reading; closing the descriptor gives it back."""
    try:
        # of a waiting writer the kernel tells us by SIGIO, which would end us; SIGURG does nothing
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return LeaseState.BUSY
        return LeaseState.UNKNOWN
    return LeaseState.HELD


def nobody_waits(descriptor: int, state: LeaseState) -> bool:
    """Tell whether the lease that we hold is still undisturbed; True where there is none."""
    if state is not LeaseState.HELD:
        return True
    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
