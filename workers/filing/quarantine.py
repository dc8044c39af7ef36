"""The quarantine: what could not be filed is kept here, each file with its reason beside it.

<quarantine>/<entry>.dcm    the bytes as they came
<quarantine>/<entry>.json   why, from where, and what to do; written first, durable
<quarantine>/.<entry>.tmp   being written, by the one process that holds the entry
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workers import durable

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a file was set aside."""

    entry: str
    outcome: str
    """quarantined, variant or conflict."""
    code: str
    reason: str
    at: str
    source: dict[str, Any]
    original_path: str
    size: int
    sha256: str = ""
    dataset_sha256: str = ""
    instance_uid: str = ""
    series: str = ""
    study: str = ""
    kept: dict[str, Any] = field(default_factory=dict)
    """The instance in the tree that it was compared with: digests, path."""
    changed: tuple[str, ...] = ()
    received: str = ""
    """Keyed digest of what was received, where the kept bytes are de-identified already."""


def file_of(quarantine: Path, entry: str) -> Path:
    return quarantine / f"{entry}.dcm"


def reason_of(quarantine: Path, entry: str) -> Path:
    return quarantine / f"{entry}.json"


def has(quarantine: Path, entry: str) -> bool:
    """Tell whether an entry was set aside; asked of each that is filed."""
    return os.path.lexists(f"{quarantine}/{entry}.json")


def set_aside(quarantine: Path, file: Path, reason: Reason) -> Path:
    """Keep a file in quarantine, durable, its reason first; doing it again changes nothing.

    The file itself stays where it is: the caller unlinks it once the index knows.
    """
    words = json.dumps({"schema": SCHEMA, **asdict(reason)}, indent=1, ensure_ascii=True)
    temporary = quarantine / f".{reason.entry}.tmp"
    temporary.unlink(missing_ok=True)  # of a run that was killed
    durable.write_new(temporary, (words.encode("ascii"),))
    os.replace(temporary, reason_of(quarantine, reason.entry))
    target = file_of(quarantine, reason.entry)
    try:
        os.link(file, target, follow_symlinks=False)
    except FileExistsError:  # a run that was killed came so far
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise
    except OSError as error:
        if error.errno not in durable.NO_LINK_ERRORS:
            raise
        durable.copy_new(file, temporary)
        os.replace(temporary, target)
    durable.fsync_folder(quarantine)
    return target


def read_reason(quarantine: Path, entry: str) -> dict[str, Any]:
    """Read why an entry was set aside."""
    with open(reason_of(quarantine, entry), "rb", opener=durable.no_follow) as file:
        raw: dict[str, Any] = json.load(file)
    return raw


def original_path(quarantine: Path, entry: str) -> str:
    """Return the path that an entry came under, or "" where that cannot be read just now."""
    try:
        return str(read_reason(quarantine, entry)["original_path"])
    except (OSError, ValueError, LookupError):  # retried or dropped this moment
        return ""


def remove(quarantine: Path, entry: str) -> None:
    """Remove a file and its reason, the file first."""
    file_of(quarantine, entry).unlink(missing_ok=True)
    reason_of(quarantine, entry).unlink(missing_ok=True)
    durable.fsync_folder(quarantine)
