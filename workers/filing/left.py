"""Entries that an error of the system keeps in the spool: noted, so that `status` can name them.

Such an entry keeps the series of its study from being found quiet, so a person must see it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from config.layout import Layout
from workers import clock
from workers.spool.batches import EntryName

MOST_NAMED = 1000
"""Entries that are noted at once; where more are left, their disk is at fault and not they."""


@dataclass(frozen=True, slots=True)
class LeftEntry:
    """An entry that could not be filed, and why; it is tried again."""

    batch: str
    path: str
    reason: str
    since: str
    tries: int = 1

    @property
    def name(self) -> EntryName:
        return EntryName(self.batch, self.path)


def why_left(error: BaseException) -> str:
    """Say in words what kept an entry; no path is in them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def note_left(layout: Layout, name: EntryName, reason: str) -> None:
    """Note a try that failed; what cannot be noted is in the log all the same."""
    folder = _folder(layout)
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        before = _read(folder / name.identifier)
        if before is None and len(os.listdir(folder)) >= MOST_NAMED:
            return
        now = LeftEntry(name.batch, name.path, reason, clock.utc_now())
        if before is not None:
            now = replace(now, since=before.since, tries=before.tries + 1)
        temporary = folder / f".{name.identifier}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(now)), encoding="ascii")
        os.replace(temporary, folder / name.identifier)  # a hint: it need not outlive a power cut


def noted(layout: Layout) -> frozenset[str]:
    """Return the identifiers of the entries that were noted."""
    try:
        return frozenset(os.listdir(_folder(layout)))
    except FileNotFoundError:
        return frozenset()


def forget_left(layout: Layout, identifier: str) -> None:
    """Forget an entry that is filed."""
    with suppress(OSError):
        (_folder(layout) / identifier).unlink(missing_ok=True)


def left_entries(layout: Layout) -> list[LeftEntry]:
    """List the entries that could not be filed and still wait, longest first."""
    try:
        names = sorted(os.listdir(_folder(layout)))
    except OSError:
        return []
    found = [one for name in names if (one := _read(_folder(layout) / name)) is not None]
    return sorted(
        (one for one in found if os.path.lexists(one.name.where(layout))), key=lambda one: one.since
    )


def forget_gone(layout: Layout) -> None:
    """Forget the entries that a person took away, and what a kill left half-written."""
    kept = {one.name.identifier for one in left_entries(layout)}
    with suppress(OSError):
        for name in set(os.listdir(_folder(layout))) - kept:
            forget_left(layout, name)


def _folder(layout: Layout) -> Path:
    return layout.spool_private / "left"


def _read(path: Path) -> LeftEntry | None:
    if path.name.startswith("."):
        return None
    try:
        return LeftEntry(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
