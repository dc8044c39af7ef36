"""The subject and session that a dropped file's path names. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_LONGEST = 128


@dataclass(frozen=True, slots=True)
class Labels:
    """What a path says of its series; empty where it says nothing."""

    subject: str = ""
    session: str = ""


def labels_of(path: str, pattern: str) -> Labels:
    """Read the labels of a path relative to its watched folder (settings: labels.pattern)."""
    found = _compiled(pattern).search(path[:4096])
    if found is None:
        return Labels()
    groups = {name: value or "" for name, value in found.groupdict().items()}
    return Labels(_plain(groups.get("subject", "")), _plain(groups.get("session", "")))


def _plain(label: str) -> str:
    """Keep what can stand in a table: no control characters, no undecodable bytes."""
    text = label.encode("utf-8", "replace").decode()
    return "".join(one for one in text if one.isprintable())[:_LONGEST]


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
