"""What the name of a file or folder in a watched folder says about it.

Copying tools write under a name of their own and rename when they are done; whoever takes a file
under such a name takes half of it. Everything else is taken, system litter too: the filing worker
counts that as skipped.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum

from workers.spool.batches import DESCRIPTION

TEMPORARY_ENDINGS = (
    ".tmp",
    ".temp",
    ".part",  # Firefox, KDE
    ".partial",
    ".filepart",  # WinSCP
    ".crdownload",  # Chromium
    ".opdownload",
    ".download",  # Safari
    ".aria2",
    "~",  # editors' backups
)
"""How the names end under which tools write what is not yet whole; case does not matter."""

_CLAIM = re.compile(r"\.petct-claim\.(f[0-9]{13}-[0-9a-f]{8,16})\.(.+)", re.DOTALL)
_RSYNC_TEMPORARY = re.compile(r"\..+\.[A-Za-z0-9]{6}", re.DOTALL)
_LONGEST_NAME_BYTES = 255
_LONGEST_PATH_BYTES = 3000  # PATH_MAX is 4096, and the spool's own path stands before it


class NameKind(StrEnum):
    """What becomes of a file because of its name."""

    TAKE = "take"
    LATER = "later"  # litter by its first two letters, but rsync may be writing it: wait longer
    CLAIM = "claim"  # claimed by us, not yet finished
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim's private name tells: the batch it goes into and the name it had."""

    batch: str
    name: str


def kind_of_file(name: str) -> NameKind:
    """Decide by its name whether a file is taken."""
    if name.startswith("."):
        if name.startswith("._"):  # AppleDouble litter, or rsync's temporary of a file "_…"
            return NameKind.LATER if _RSYNC_TEMPORARY.fullmatch(name) else NameKind.TAKE
        if name == ".DS_Store":
            return NameKind.TAKE
        return NameKind.CLAIM if _CLAIM.fullmatch(name) else NameKind.LEAVE
    return NameKind.LEAVE if _is_temporary(name) else NameKind.TAKE


def enters_folder(name: str) -> bool:
    """Decide by its name whether a folder is looked into."""
    return not name.startswith(".") and not _is_temporary(name)


def claim_name(batch: str, name: str) -> str:
    """Return the private name under which a source waits to be copied.

    A name too long for that is cut, with a hash; the entry is then called by the cut name, now and
    after a restart alike (`read_claim`).
    """
    head = f".petct-claim.{batch}."
    room = _LONGEST_NAME_BYTES - len(head)
    raw = os.fsencode(name)
    if len(raw) > room:
        tail = "~" + hashlib.blake2b(raw, digest_size=8).hexdigest()
        name = raw[: room - len(tail)].decode("utf-8", "ignore") + tail
    return head + name


def read_claim(name: str) -> Claim | None:
    """Read a private name back; None where it is none."""
    match = _CLAIM.fullmatch(name)
    return Claim(match[1], match[2]) if match else None


def entry_path(path: str) -> str:
    """Return the path inside its batch of what lies at `path` in the watched folder.

    The same path, but for three cases that keep it unambiguous: a top-level batch.json, which is
    the batch's own; a path longer than the spool can hold; and what begins with the "_" that marks
    these.
    """
    if path == DESCRIPTION or path.startswith("_/"):
        return f"_/{path}"
    raw = os.fsencode(path)
    if len(raw) > _LONGEST_PATH_BYTES:
        return f"_/~{hashlib.blake2b(raw, digest_size=16).hexdigest()}/{os.path.basename(path)}"
    return path


def _is_temporary(name: str) -> bool:
    return name.startswith("~$") or name.lower().endswith(TEMPORARY_ENDINGS)
