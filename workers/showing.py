"""All that is known of one study: the index's rows, the pair's SUV, what lies in quarantine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from config.layout import Layout
from workers.errors import PairDamaged
from workers.filing.quarantine import read_reason
from workers.index.engine import MetadataIndex
from workers.index.searching import MOST_SET_ASIDE, files_of, read_study, set_aside_rows
from workers.pairing.pair_json import from_json


def show_study(
    index: MetadataIndex,
    layout: Layout,
    uid: str,
    *,
    files: bool = False,
    most_set_aside: int = MOST_SET_ASIDE,
) -> dict[str, Any] | None:
    """Return a study as `petct-ingest show --json` prints it, or None where the index has none.

    `files` lists every file of it too; of what lies in quarantine the newest `most_set_aside` are
    looked at. Paths are relative to the archive, the pair's to where pairs are kept.
    """
    with index.read() as connection:
        known = read_study(connection, uid)
        if known is None:
            return None
        known["quarantine"] = list(_set_aside(connection, layout, uid, most_set_aside))
        if files:
            known["files"] = list(files_of(connection, uid))
    if known["pair"]:
        place = known["pair"]["folder"]
        known["pair"]["suv"] = _suv_of(layout.output / place) if place else None
    return known


def _suv_of(folder: Path) -> dict[str, Any] | None:
    """Return how the PET of a pair became SUV; None where no pair can be read there."""
    try:
        return asdict(from_json((folder / "pair.json").read_bytes()).suv)
    except (OSError, PairDamaged):
        return None


def _set_aside(
    connection: Connection, layout: Layout, uid: str, most: int
) -> Iterator[dict[str, Any]]:
    for row, own in set_aside_rows(connection, uid, most):
        if own or _study_of(layout, row.entry) == uid:
            yield {
                "entry": row.entry,
                "outcome": row.outcome,
                "code": row.code,
                "reason": row.reason,
                "instance_uid": row.instance_uid,
                "at": row.at,
            }


def _study_of(layout: Layout, entry: str) -> str | None:
    try:
        return str(read_reason(layout.quarantine, entry).get("study"))
    except (OSError, ValueError):
        return None
