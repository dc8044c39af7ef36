"""Make events of the notes that intakes left in the spool, each once."""

from __future__ import annotations

import json

from config.layout import Layout
from workers.index.engine import MetadataIndex
from workers.index.inserting import insert_new_rows
from workers.index.tables import event
from workers.spool.notes import Note, remove_notes, take_notes


def record_notes(index: MetadataIndex, layout: Layout) -> int:
    """Write every waiting note as an event, then remove it; return how many were new.

    A note's identifier is unique among events: who is killed between commit and removal, or works
    beside another, writes none twice.
    """
    notes = list(take_notes(layout))
    if not notes:
        return 0
    with index.write() as connection:
        new = insert_new_rows(connection, event, [_row(note) for note in notes], event.c.note)
    remove_notes(layout, notes)
    return len(new)


def _row(note: Note) -> dict[str, object]:
    details = dict(note.details)
    if note.count > 1:
        details |= {"count": note.count, "last_at": note.last_at}
    return {
        "at": note.at,
        "kind": note.kind,
        "source": note.source or None,
        "details": json.dumps(details),
        "note": note.identifier,
    }
