"""Where the embedded queue server listens."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from config.layout import Layout

_SOCKET_PATH_BYTES = 100


def socket_path(layout: Layout) -> Path:
    """Return where the embedded server listens: `run/valkey.sock`, or a short path in its place.

    A socket's path holds 107 bytes (unix(7)).
    """
    path = layout.run / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    digits = hashlib.blake2b(os.fsencode(layout.run), digest_size=8).hexdigest()
    # not TMPDIR or XDG_RUNTIME_DIR: every process of an installation must find the same place
    return Path(f"/tmp/petct-ingest-{digits}/valkey.sock")  # noqa: S108 - made 0700, checked
