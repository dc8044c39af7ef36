"""Compare the archive's journal with the index: what DICOM cannot tell must stand in both."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from workers import clock
from workers.adopting.origins import ADOPTED
from workers.checking.codes import Code
from workers.checking.rows import paged
from workers.checking.scene import Scene
from workers.filing.journal import NAME, append_facts
from workers.index.tables import instance, pair, series, study

_LINES_TOLD = 1000


class _Journal:
    """What the journal tells: 8 bytes a line, whatever a line holds."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._path = scene.layout.archive_private / NAME
        self._offset = 0
        self._line = 0
        self._known = array("Q")
        self._fresh: set[int] = set()

    def read_on(self) -> None:
        """Read what was appended since the last time; torn lines are told."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return
        with file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)  # an appender holds it for one write
            end = os.fstat(file.fileno()).st_size
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)
            file.seek(self._offset)
            found = []
            for raw in file:
                if self._offset + len(raw) > end:
                    break
                self._offset += len(raw)
                self._line += 1
                key = self._key_of(raw)
                if key is not None:
                    found.append(key)
        if len(self._known) == 0:
            self._known = array("Q", sorted(found))
        else:
            self._fresh.update(found)

    def tells(self, *words: object) -> bool:
        key = _key(*words)
        at = bisect_left(self._known, key)
        return (at < len(self._known) and self._known[at] == key) or key in self._fresh

    def _key_of(self, raw: bytes) -> int | None:
        try:
            fact = json.loads(raw)
            if fact["kind"] == "source":
                return _key("source", fact["study"], fact["series"])
            if fact["kind"] == "override":
                return _key("override", fact["study"], _said(fact))
        except (ValueError, KeyError, TypeError, RecursionError):
            if self._line < _LINES_TOLD and raw.strip():
                self._scene.tell(Code.JOURNAL_TORN, f"line {self._line}")
        return None


def compare_journal(scene: Scene) -> None:
    """Look for the line of every series' source and of every override."""
    journal = _Journal(scene)
    journal.read_on()
    for batch in _facts(scene):
        missing = [fact for fact in batch if not _is_told(journal, fact)]
        if missing:
            journal.read_on()  # a series that came in meanwhile: its line is older than its row
        for fact in missing:
            if not _is_told(journal, fact):
                where = f"{fact['kind']} of {'series' if 'series' in fact else 'study'} "
                where += str(fact.get("series") or fact["study"])
                scene.settle(Code.JOURNAL_LINE_MISSING, where, "",
                             lambda fact=fact:  # type: ignore[misc]
                             append_facts(scene.layout.output, [fact]))  # fmt: skip


def _is_told(journal: _Journal, fact: dict[str, Any]) -> bool:
    if fact["kind"] == "source":
        return journal.tells("source", fact["study"], fact["series"])
    return journal.tells("override", fact["study"], _said(fact))


def _facts(scene: Scene) -> Iterator[list[dict[str, Any]]]:
    """Yield what the index would write into the journal, some at a time."""
    sources = (
        sa.select(series.c.id, series.c.series, series.c.source, study.c.study)
        .join(study, study.c.id == series.c.study_id)
        .where(
            series.c.source.not_in(("", ADOPTED)),  # an adopted series came from where it lies
            sa.exists().where(instance.c.series_id == series.c.id),
        )
    )
    for row in paged(scene.index, sources, series.c.id):
        scene.report.compare("journal")
        yield [{"kind": "source", "study": row.study, "series": row.series, "source": row.source}]
    overrides = (
        sa.select(pair.c.id, pair.c.override, study.c.study)
        .join(study, study.c.id == pair.c.study_id)
        .where(pair.c.override.is_not(None))
    )
    for row in paged(scene.index, overrides, pair.c.id):
        said = json.loads(row.override)
        yield [{"kind": "override", "study": row.study, "at": clock.utc_now(), **said}]


def _said(fact: dict[str, Any]) -> str:
    """Return what a person said, as one word to compare; nothing said is as not given."""
    kept = {key: value for key, value in fact.items() if key not in ("kind", "study", "at")}
    return json.dumps({key: value for key, value in kept.items() if value not in (None, False)},
                      sort_keys=True)  # fmt: skip


def _key(*words: object) -> int:
    text = "\0".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
