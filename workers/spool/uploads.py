"""What came in one upload, so that its page can tell what became of it.

    run/uploads/<batch>      the identifiers of its entries, one a line

A hint: written beside the spool without a sync, forgotten after a week. Whoever expands an uploaded
archive adds its members.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from config.layout import Layout
from workers.spool.batches import EntryName, is_batch_name

KEEP_SECONDS = 7 * 86_400.0
MOST_BYTES = 64 << 20
"""Of one upload: two million entries; those behind are not told."""

_LINE_BYTES = 33


def begin_list(layout: Layout, batch: str, now: float) -> None:
    """Begin the list of an upload, and forget old ones; `now` is of the wall clock."""
    folder = _folder(layout)
    folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(OSError):
        for item in list(os.scandir(folder)):
            if now - item.stat(follow_symlinks=False).st_mtime > KEEP_SECONDS:
                os.unlink(item.path)
    (folder / batch).touch(mode=0o600)


def add_entries(layout: Layout, batch: str, entries: Iterable[EntryName]) -> None:
    """Add entries to the list of an upload; nothing where there is none."""
    lines = "".join(f"{entry.identifier}\n" for entry in entries)
    with suppress(OSError):  # only a page knows less
        descriptor = os.open(
            _folder(layout) / batch, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        try:
            if os.fstat(descriptor).st_size < MOST_BYTES:
                os.write(descriptor, lines.encode("ascii"))
        finally:
            os.close(descriptor)


def read_list(layout: Layout, batch: str) -> list[str] | None:
    """Return the identifiers of an upload's entries in order, each once; None of an unknown one."""
    if not is_batch_name(batch):
        return None
    try:
        with open(_folder(layout) / batch, encoding="ascii", errors="replace") as file:
            lines = file.read(MOST_BYTES + (1 << 20)).splitlines()
    except OSError:
        return None
    return list(dict.fromkeys(line for line in lines if len(line) == _LINE_BYTES - 1))


def _folder(layout: Layout) -> Path:
    return layout.run / "uploads"
