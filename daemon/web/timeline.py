"""The life of one study in words, from the first byte to the pair: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workers.index.arriving import Life

KINDS = (
    "series-receiving",
    "series-complete",
    "series-inconsistent",
    "duplicate",
    "pair-pending",
    "pair-held",
    "pair-no_pair",
    "pair-ready",
    "pair-failing",
    "pair-maker-died",
    "pair-taken-over",
    "override",
    "wait",
    "adopted",
)
"""The events that a timeline tells."""

_OF_SERIES = {
    "series-receiving": "{series} goes on arriving",
    "series-complete": "{series} is complete",
    "series-inconsistent": "{series} is not whole",
}
_OF_PAIR = {
    "pair-pending": "The pair is decided and waits to be made",
    "pair-held": "The study is held: it needs a person",
    "pair-no_pair": "There is no pair to make",
    "pair-failing": "Making the pair met an error of the system; it is tried again",
    "pair-maker-died": "The process that made the pair died; it is tried again",
    "wait": "A person let it wait longer",
    "override": "A person decided",
}
_WITH_COUNT = {
    "duplicate": "Instances that were there already were dropped: {count}",
    "adopted": "Instances were found in the tree: {count}",
    "pair-ready": "The pair is ready: revision {count}",
    "pair-taken-over": "A pair in the tree was taken over: revision {count}",
}
_DECIDED = (("forced", "forced"), ("pet", "PET"), ("ct", "CT"), ("weight_kg", "weight in kg"),
            ("dose_bq", "dose in Bq"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of a study's life."""

    at: str
    after_seconds: float
    """Since the first moment."""
    what: str
    why: tuple[str, ...] = ()
    by: str = ""


def timeline(
    life: Life, events: Iterable[Mapping[str, Any]], series: Mapping[str, str]
) -> tuple[Moment, ...]:
    """Tell what happened, in order.

    `events` are those of `workers.index.history`, of `KINDS`; `series` names each series by UID.
    """
    told: list[tuple[str, str, tuple[str, ...], str]] = []
    if life.first_received and life.last_received:
        told.append((life.first_received, "The first instance is received and on disk", (), ""))
        told.append((life.last_received, "The last instance is received and on disk", (), ""))
    else:  # adopted, or of an older version
        told.append((life.first_filed, "The first instance is filed", (), ""))
    told.append((life.last_filed, "The last instance is filed", (), ""))
    told += [_words_of(one, series) for one in events]
    told.sort(key=lambda one: one[0])
    first = datetime.fromisoformat(told[0][0])
    return tuple(
        Moment(at, (datetime.fromisoformat(at) - first).total_seconds(), what, why, by)
        for at, what, why, by in told
    )


def _words_of(
    one: Mapping[str, Any], series: Mapping[str, str]
) -> tuple[str, str, tuple[str, ...], str]:
    kind, said = str(one["kind"]), one["details"]
    reasons = said.get("reasons") or ([said["reason"]] if said.get("reason") else [])
    if kind in _OF_SERIES:
        what = _OF_SERIES[kind].format(series=series.get(one["series"] or "", "A series"))
    elif kind in _WITH_COUNT:
        what = _WITH_COUNT[kind].format(count=said.get("revision") or said.get("instances") or "?")
    else:
        what = _OF_PAIR.get(kind, kind)
    if kind == "override":
        reasons = [
            label if said[key] is True else f"{label}: {series.get(str(said[key]), said[key])}"
            for key, label in _DECIDED
            if said.get(key)
        ]
    return str(one["at"]), what, tuple(map(str, reasons)), str(said.get("by") or "")
