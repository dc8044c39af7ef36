"""Read a secret from its file, anew each time: one that was changed counts at once."""

from __future__ import annotations

from pathlib import Path

from daemon.errors import Undelivered

_MOST_BYTES = 4096


def read_secret(root: Path, file: Path | None, setting: str) -> str:
    """Return what a file holds. Raises Undelivered; the path stays unsaid, the setting is named."""
    try:
        with open(root / (file or ""), "rb") as opened:
            found = opened.read(_MOST_BYTES).decode().strip()
    except OSError as error:
        raise Undelivered(f"{setting} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Undelivered(f"{setting} is no text") from error
    if not found:
        raise Undelivered(f"{setting} is empty")
    return found
