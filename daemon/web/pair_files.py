"""Read a file of a pair: by the pair's row, through no link, below where pairs are kept."""

from __future__ import annotations

import os
import stat
import time
from pathlib import PurePosixPath

from config.layout import Layout
from workers.errors import PairDamaged
from workers.pairing.pair_json import PairMeta, from_json
from workers.rooted import folder_below

PICTURE, PROVENANCE = "qc.png", "pair.json"
_MOST_BYTES = 64 << 20
_ATTEMPTS, _PAUSE_SECONDS = 3, 0.02
"""A folder that is being exchanged (two renames on NFS) may be gone for a moment."""


def read_pair_file(layout: Layout, place: str | None, name: str) -> bytes | None:
    """Return a file of the pair in a folder below `layout.output`; None where it is not there."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            return _read(layout, place, name) if place else None
        except FileNotFoundError:
            continue
        except (OSError, ValueError):  # a link, no permission, a broken disk: nothing to show
            return None
    return None


def read_provenance(layout: Layout, place: str | None) -> PairMeta | None:
    """Return what pair.json says, or None where it cannot be read."""
    found = read_pair_file(layout, place, PROVENANCE)
    try:
        return from_json(found) if found is not None else None
    except PairDamaged:
        return None


def _read(layout: Layout, place: str, name: str) -> bytes | None:
    with folder_below(layout.output, PurePosixPath(place)) as folder:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
                         dir_fd=folder)  # fmt: skip
    with open(opened, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            return None
        return file.read()
