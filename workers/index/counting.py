"""What `status` asks of the index, in plain SQL that SQLite and PostgreSQL both know.

What is counted is kept by series or found by an index: nothing here visits every instance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SET_ASIDE = ("quarantined", "variant", "conflict", "replaced")
"""Outcomes whose file lies in quarantine."""

FAILING, DIED, HELD = "pair-failing", "pair-maker-died", "pair-held"
"""Events of pairs that could not be made (pairing/failing.py)."""

_PASSED_OVER = ("duplicate", "skipped", *SET_ASIDE)
_MOST_SHOWN = 100


class Ask(Protocol):
    """Ask something in SQL, with values for its `:names`."""

    def __call__(self, statement: str, /, **values: Any) -> Sequence[Sequence[Any]]: ...


@dataclass(frozen=True, slots=True)
class Identities:
    """The stores that this index belongs to."""

    archive: str
    spool: str


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of `status`."""

    filed: int
    duplicates: int
    quarantined: int
    skipped: int
    studies: int
    series: dict[str, int]
    pairs: dict[str, int]


@dataclass(frozen=True, slots=True)
class FailingPair:
    """A pair that is wanted and could not be made yet."""

    study: str
    reason: str
    at: str


def identities(ask: Ask, spool: str = "") -> Identities:
    """Read which stores belong to the index; `spool` is the name of the spool that is meant."""
    rows = {str(key): str(value) for key, value in ask("SELECT key, value FROM meta")}
    if not spool:
        return Identities(rows.get("archive_id", ""), rows.get("spool_id", ""))
    named = ask("SELECT spool_id FROM host WHERE name = :name", name=spool)
    return Identities(rows.get("archive_id", ""), str(named[0][0]) if named else "")


def count_all(ask: Ask) -> Counts:
    """Count instances, series, studies and pairs."""
    filed, studies = ask(
        "SELECT coalesce(sum(instances), 0), count(DISTINCT study_id) FROM series"
        " WHERE instances > 0"
    )[0]
    series = ask(
        "SELECT state, count(*) FROM series WHERE instances > 0 GROUP BY state ORDER BY state"
    )
    pairs = dict(map(tuple, ask("SELECT state, count(*) FROM pair GROUP BY state")))
    # not GROUP BY: nearly all arrivals were filed, and to count those would visit each
    outcomes = {
        name: ask("SELECT count(*) FROM arrival WHERE outcome = :outcome", outcome=name)[0][0]
        for name in _PASSED_OVER
    }
    return Counts(
        filed=int(filed),
        duplicates=outcomes["duplicate"],
        quarantined=sum(outcomes[outcome] for outcome in SET_ASIDE),
        skipped=outcomes["skipped"],
        studies=studies,
        series=dict(map(tuple, series)),
        pairs={name: pairs.get(name, 0) for name in ("ready", "held", "pending")},
    )


def filed_since(ask: Ask, at: str) -> int:
    """Count the instances filed since a time (ISO 8601 UTC)."""
    found = ask("SELECT details FROM event WHERE at >= :at AND kind = 'filed'", at=at)
    return sum(int(json.loads(details).get("instances", 0)) for (details,) in found)


def failing_pairs(ask: Ask) -> list[FailingPair]:
    """List the pairs that are wanted and could not be made, with the last reason."""
    rows = ask(
        "SELECT pair.study_id, pair.generation, study.study"
        " FROM pair JOIN study ON study.id = pair.study_id"
        " WHERE pair.state = 'pending' AND pair.generation > pair.done_generation"
        " AND pair.generation > pair.failed_generation ORDER BY pair.id LIMIT :most",
        most=_MOST_SHOWN,
    )
    found = []
    for study_id, generation, uid in rows:
        events = ask(
            "SELECT details, at FROM event WHERE study_id = :study AND kind IN (:failing, :died)"
            " ORDER BY id DESC",
            study=study_id, failing=FAILING, died=DIED,
        )  # fmt: skip
        told = ((json.loads(details), at) for details, at in events)
        last = next(((one, at) for one, at in told if one.get("generation") == generation), None)
        if last is not None:
            found.append(FailingPair(uid, last[0]["reason"], last[1]))
    return found
