"""The secret seed of de-identification: whoever has it can tell who is who again.

One file, 0600, made on first use. The same seed gives the same replacements on every machine and
after every restart; it is nowhere else: not in the index, the logs or the queues.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from config.layout import Layout
from workers import durable
from workers.errors import StoreUnavailable

_SEED_BYTES = 32
_MARK = "seed.check"


def throw_away_seed() -> str:
    """Return a seed that is kept nowhere, to try the rules without giving anybody a name."""
    return secrets.token_hex(_SEED_BYTES)


def seed_of_archive(layout: Layout, path: Path) -> str:
    """Return the seed that an archive's data were de-identified with; at first, make one.

    The archive keeps a mark of it (HMAC of a constant), from which nobody learns the seed. Raises
    StoreUnavailable where it is missing now or another one: patients would get second names.
    """
    mark = layout.archive_private / _MARK
    known = _read_mark(mark)
    if known and not path.exists():
        raise StoreUnavailable(
            f"the seed of de-identification at {path} is missing: put it back from a copy. "
            f"To begin with another one, and with other names for known patients, remove {mark}"
        )
    seed = read_seed(path)
    own = hmac.new(seed.encode(), _MARK.encode(), hashlib.sha256).hexdigest()
    if not known:
        durable.replace_file(mark, own.encode(), 0o600)
    elif known != own:
        raise StoreUnavailable(
            f"the seed of de-identification in {path} is not the one of this archive. "
            f"To begin with another one, and with other names for known patients, remove {mark}"
        )
    return seed


def _read_mark(mark: Path) -> str:
    try:
        return mark.read_text("ascii").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise StoreUnavailable(f"{mark} cannot be read: {type(error).__name__}") from error


def read_seed(path: Path) -> str:
    """Return the seed; make one where there is none, durable before it is used.

    Raises StoreUnavailable where the file is empty, cannot be read, or is open to others.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        durable.write_new(temporary, (throw_away_seed().encode() + b"\n",), 0o600)
        try:
            os.link(temporary, path)  # never over another's: the first one counts for everybody
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        durable.fsync_folder(path.parent)
    except OSError as error:
        raise StoreUnavailable(
            f"the seed of de-identification cannot be made: {error.strerror}"
        ) from error
    return _read(path)


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnavailable(
            f"the seed of de-identification cannot be read: {error.strerror}"
        ) from error
    with open(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise StoreUnavailable(
                f"the seed of de-identification is open to others: chmod 600 {path}"
            )
        seed = file.read(4096).decode("ascii", "replace").strip()
    if len(seed) < 2 * 16:
        raise StoreUnavailable(f"the seed of de-identification in {path} is too short")
    return seed
