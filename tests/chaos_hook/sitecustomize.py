"""Say that the disk is full while a certain file exists: for tests without a disk of their own.

Python imports this at its start where the folder stands in PYTHONPATH.
"""

import errno
import os
import stat

_flag = os.environ["CHAOS_FULL"]
_write = os.write


def _full_write(descriptor: int, data: bytes) -> int:
    if os.path.exists(_flag) and stat.S_ISREG(os.fstat(descriptor).st_mode):
        if len(data) > 4096:
            return _write(descriptor, data[:1024])  # first a part, as a real disk does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _write(descriptor, data)


os.write = _full_write
