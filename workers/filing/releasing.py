"""Act on the quarantine: give an entry back to the spool, or drop it for good. Both are audited."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from config.layout import Layout
from config.logs import get_logger
from workers import clock, durable
from workers.deidentify.notes import keep_note
from workers.errors import WorkersError
from workers.filing import quarantine
from workers.filing.rows import insert_event
from workers.index.engine import MetadataIndex
from workers.index.queries import SET_ASIDE, lies_here, list_set_aside
from workers.index.tables import arrival
from workers.spool.batches import BatchSource, BatchWriter, EntryName

_A_PAGE = 500

log = get_logger(__name__)


class NotInQuarantine(WorkersError):
    """No such entry lies in quarantine."""


def retry_entry(
    index: MetadataIndex, layout: Layout, entry: str, by: str | None = None
) -> EntryName:
    """Give an entry back to the spool as a new one; its old arrival counts no more.

    `by` is who wants it, for the audit.

    Killed in between, the file is in the spool and in quarantine: then it comes back as a
    duplicate.
    """
    reason = quarantine.read_reason(layout.quarantine, _checked(index, entry))
    known = BatchSource.__dataclass_fields__
    source = BatchSource(**{key: value for key, value in reason["source"].items() if key in known})
    temporary = layout.incoming / f"retry-{secrets.token_hex(8)}"
    durable.copy_new(quarantine.file_of(layout.quarantine, entry), temporary, layout.file_mode)
    path = _path(str(reason["original_path"]))
    with BatchWriter(layout, source) as batch:
        if reason.get("received"):
            again = EntryName(batch.name, path).identifier
            keep_note(layout, again, durable.sha256_of(temporary), str(reason["received"]))
        name = batch.adopt(temporary, path)
    _settle(index, layout, entry, "retried", by=by, again=name.identifier)
    return name


def count_set_aside(index: MetadataIndex) -> int:
    """Count what lies in this host's quarantine."""
    with index.read() as connection:
        return connection.execute(
            sa.select(sa.func.count()).where(
                arrival.c.outcome.in_(SET_ASIDE), lies_here(index.spool)
            )
        ).scalar_one()


def retry_all(
    index: MetadataIndex, layout: Layout, by: str | None = None
) -> Iterator[EntryName | None]:
    """Give back what lies in quarantine now, one after the other, the newest first.

    Yields the new name of each, or None for one that stays: it cannot be read, or somebody else
    acted on it. What comes into quarantine meanwhile is left there.
    """
    behind = None
    while True:
        with index.read() as connection:
            found = list_set_aside(
                connection, limit=_A_PAGE, behind=behind, where=lies_here(index.spool)
            )
        for one in found:
            behind = str(one["entry"])
            try:
                yield retry_entry(index, layout, behind, by)
            except (NotInQuarantine, OSError, ValueError, LookupError) as error:
                log.warning("retry-failed", entry=behind, error=type(error).__name__)
                yield None
        if len(found) < _A_PAGE:
            return


def drop_entry(index: MetadataIndex, layout: Layout, entry: str, by: str | None = None) -> None:
    """Delete an entry and its reason for good; `by` is who wants it, for the audit."""
    _checked(index, entry)
    _settle(index, layout, entry, "dropped", by=by)


def _path(original: str) -> str:
    """Return the path of an entry; what the tree called it where it came from there."""
    return original if original and not original.startswith("/") else os.path.basename(original)


def _checked(index: MetadataIndex, entry: str) -> str:
    with index.read() as connection:
        found = connection.execute(
            sa.select(arrival.c.entry, arrival.c.host).where(
                arrival.c.entry == entry, arrival.c.outcome.in_(SET_ASIDE)
            )
        ).first()
    if found is None:
        raise NotInQuarantine(f"no entry {entry!r} in quarantine: `petct-ingest quarantine` lists")
    if (found.host or "") != index.spool:
        where = f"of host {found.host!r}" if found.host else "of a host without a name"
        raise NotInQuarantine(f"entry {entry!r} lies in the quarantine {where}: do it there")
    return str(found.entry)


def _settle(index: MetadataIndex, layout: Layout, entry: str, outcome: str, **details: Any) -> None:
    with index.write() as connection:
        source = connection.execute(
            arrival.update()
            .where(arrival.c.entry == entry)
            .values(outcome=outcome)
            .returning(arrival.c.source)
        ).scalar_one()
        insert_event(connection, outcome, clock.utc_now(), source=source, entry=entry, **details)
    quarantine.remove(layout.quarantine, entry)
