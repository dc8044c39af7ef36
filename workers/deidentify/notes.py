"""Notes beside the spool: which bytes of an entry are the de-identified ones already.

Nothing of dicognito or pydicom is needed to keep, read or forget one.
"""

from __future__ import annotations

import json
from pathlib import Path

from config.layout import Layout
from workers import durable


def keep_note(layout: Layout, identifier: str, sha256: str, received: str) -> None:
    """Say, durable, that the bytes of an entry with this digest are de-identified already."""
    durable.make_folders(_notes(layout))
    words = json.dumps({"sha256": sha256, "received": received})
    durable.replace_file(_note(layout, identifier), words.encode(), 0o600)


def read_note(layout: Layout, identifier: str) -> dict[str, object] | None:
    """Return the note of an entry; None where there is none, or none that says anything."""
    try:
        note = json.loads(_note(layout, identifier).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    known = isinstance(note, dict) and {"sha256", "received"} <= note.keys()
    return note if known else None


def forget_note(layout: Layout, identifier: str) -> None:
    """Remove the note of an entry that has left the spool."""
    _note(layout, identifier).unlink(missing_ok=True)


def _note(layout: Layout, identifier: str) -> Path:
    return _notes(layout) / f"{identifier}.json"


def _notes(layout: Layout) -> Path:
    return layout.spool_private / "deidentified"
