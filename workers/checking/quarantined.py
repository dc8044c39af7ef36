"""Compare quarantine and arrivals: each file with its row, its reason and nothing beside."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from config.settings import Settings
from workers import clock, durable
from workers.checking.codes import Code
from workers.checking.merging import merge
from workers.checking.reading import digest_of, is_file, is_left_over
from workers.checking.rows import PAGE, paged
from workers.checking.scene import Scene
from workers.filing import quarantine
from workers.filing.rows import ArrivalRow, insert_arrivals
from workers.index.queries import SET_ASIDE, lies_here
from workers.index.tables import arrival
from workers.spool.batches import BatchSource, waiting_entries

_ENTRY = re.compile(r"[0-9a-f]{32}")
_REASON_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies in quarantine under the name of one entry."""

    entry: str
    has_file: bool
    has_reason: bool


def compare_quarantine(scene: Scene) -> None:
    """Walk this host's quarantine and its arrivals side by side."""
    chosen = sa.select(arrival).where(
        arrival.c.outcome.in_(SET_ASIDE), lies_here(scene.index.spool)
    )
    rows = paged(scene.index, chosen, arrival.c.entry)
    unknown: list[Kept] = []
    for row, kept in merge(rows, _kept(scene), lambda row: row.entry, lambda kept: kept.entry):
        if row is None and kept is not None:
            unknown.append(kept)
        elif row is not None:
            scene.report.compare("quarantined")
            scene.progress("quarantine", scene.report.compared["quarantined"], 0)
            if kept is None or not (kept.has_file and kept.has_reason):
                _settle_known(scene, row)
    _settle_unknown(scene, unknown)


def _kept(scene: Scene) -> Iterator[Kept]:
    """Yield what lies in quarantine, by entry; strangers are told on the way."""
    place = scene.layout.quarantine
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return
    found: dict[str, set[str]] = {}
    now = time.time()
    for name in names:
        stem, _, suffix = name.partition(".")
        if name.startswith(".") and name.endswith(".tmp"):
            if is_left_over(place / name, now):
                scene.tell(Code.TEMPORARY_LEFT_OVER, f"quarantine/{name}")
        elif not _ENTRY.fullmatch(stem) or suffix not in ("dcm", "json"):
            scene.tell(Code.STRANGER, f"quarantine/{name}")
        elif not is_file(place / name):
            if os.path.lexists(place / name):
                scene.tell(Code.NOT_REGULAR, f"quarantine/{name}")
                found.setdefault(stem, set()).add(suffix)  # told once
        else:
            found.setdefault(stem, set()).add(suffix)
    for entry in sorted(found):
        yield Kept(entry, "dcm" in found[entry], "json" in found[entry])


def _settle_known(scene: Scene, row: Any) -> None:
    """Look again at an arrival whose file or reason was not seen; it may be given back just now."""
    place = scene.layout.quarantine
    has_file = os.path.lexists(quarantine.file_of(place, row.entry))
    has_reason = os.path.lexists(quarantine.reason_of(place, row.entry))
    with scene.index.read() as connection:
        outcome = connection.execute(
            sa.select(arrival.c.outcome).where(arrival.c.id == row.id)
        ).scalar()
    if outcome not in SET_ASIDE:
        return
    if not has_file:
        scene.tell(Code.QUARANTINE_WITHOUT_FILE, f"entry {row.entry}", row.outcome)
    elif not has_reason:
        scene.settle(Code.QUARANTINE_WITHOUT_REASON, f"entry {row.entry}", row.outcome,
                     lambda: _write_reason(scene, row))  # fmt: skip


def _write_reason(scene: Scene, row: Any) -> str | None:
    """Write the reason that the index knows; the path that the file came under is lost."""
    place = scene.layout.quarantine
    source = source_of(scene.settings, row.source)
    if source is None:
        return "where it came from is not known, so a retry could not tell what its source asks"
    file = quarantine.file_of(place, row.entry)
    reason = quarantine.Reason(
        entry=row.entry,
        outcome=row.outcome,
        code=row.code or row.outcome,
        reason=row.reason or row.outcome,
        at=row.at,
        source=asdict(source),
        original_path=file.name,
        size=os.lstat(file).st_size,
        sha256=digest_of(file),
        dataset_sha256=row.dataset_sha256 or "",
        instance_uid=row.instance_uid or "",
    )
    words = json.dumps({"schema": quarantine.SCHEMA, **asdict(reason)}, indent=1)
    durable.replace_file(quarantine.reason_of(place, row.entry), words.encode("ascii"))
    return None


def source_of(settings: Settings, key: str) -> BatchSource | None:
    """Return the source that a key of the index stands for; None for a folder watched no more."""
    association = re.fullmatch(r"(.*)>(.*)@(.*)", key)
    if association is not None:
        calling_ae, called_ae, address = association.groups()
        return BatchSource("association", calling_ae, called_ae, address)
    folders = [watch.path for watch in settings.watched]
    folders += [path.resolve() for path in folders]
    known = [BatchSource("folder", folder=os.fspath(folder)) for folder in folders]
    return next((source for source in known if source.key == key), None)


def _settle_unknown(scene: Scene, unknown: list[Kept]) -> None:
    """Look again at what no arrival was seen for: it may be on its way from the spool."""
    if not unknown:
        return
    waiting = {entry.identifier for entry in waiting_entries(scene.layout)}
    left = [kept.entry for kept in unknown if kept.entry not in waiting]
    for start in range(0, len(left), PAGE):
        page = left[start : start + PAGE]
        with scene.index.read() as connection:  # after the spool: nothing slips between
            known = connection.execute(
                sa.select(arrival.c.entry).where(
                    arrival.c.entry.in_(page), arrival.c.outcome.in_(SET_ASIDE)
                )
            )
            done = set(known.scalars())
        for entry in page:
            if entry not in done:
                _settle_without_arrival(scene, entry)


def _settle_without_arrival(scene: Scene, entry: str) -> None:
    place, where = scene.layout.quarantine, f"entry {entry}"
    has_file = is_file(quarantine.file_of(place, entry))
    has_reason = is_file(quarantine.reason_of(place, entry))
    code = Code.QUARANTINE_WITHOUT_ARRIVAL
    if has_file and has_reason:
        scene.settle(code, where, "", lambda: _write_arrival(scene, entry))
    elif has_file:
        scene.tell(code, where, "no reason beside it")
    elif has_reason:
        scene.tell(code, where, "a reason without a file")


def _write_arrival(scene: Scene, entry: str) -> str | None:
    """Let the index know a file in quarantine again, from its reason."""
    place = scene.layout.quarantine
    file = quarantine.file_of(place, entry)
    if os.lstat(quarantine.reason_of(place, entry)).st_size > _REASON_BYTES:
        return "the reason beside it is none of ours"
    try:
        reason = quarantine.read_reason(place, entry)
        known = BatchSource.__dataclass_fields__
        said = {key: str(value) for key, value in dict(reason["source"]).items() if key in known}
        row = ArrivalRow(
            entry=entry,
            outcome=str(reason["outcome"]),
            source=BatchSource(**said).key,  # type: ignore[arg-type]
            at=str(reason.get("at") or clock.utc_now()),
            size=os.lstat(file).st_size,
            instance_uid=str(reason.get("instance_uid") or "") or None,
            dataset_sha256=str(reason.get("dataset_sha256") or "") or None,
            code=str(reason["code"]),
            reason=str(reason["reason"]),
        )
    except (ValueError, KeyError, TypeError):
        return "the reason beside it cannot be read"
    if row.outcome not in SET_ASIDE or reason.get("entry") != entry:
        return "the reason beside it is another one's"
    if reason.get("sha256") and digest_of(file) != reason["sha256"]:
        return "the file is not the one that its reason tells of"
    with scene.index.write() as connection:
        before = connection.execute(
            sa.select(arrival.c.outcome).where(arrival.c.entry == entry)
        ).scalar()
        if before is not None:
            return f"its arrival says {before}: a kill left the file, which nothing needs"
        insert_arrivals(connection, [row], scene.index.spool)
    return None
