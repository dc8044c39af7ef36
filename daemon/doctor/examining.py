"""Examine one installation: everything that the doctor looks at, in one list."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from config.settings import Settings
from daemon.doctor.findings import Finding, Level
from daemon.doctor.machine import examine_machine
from daemon.doctor.network import examine_network
from daemon.doctor.stores import examine_stores
from daemon.observing.readiness import check_readiness
from workers.index.engine import MetadataIndex, open_index

_ADVICE = {
    "index": "petct-ingest check says more; docs/operations.md on restoring it",
    "spool": "is its disk mounted? docs/operations.md on stores that are missing",
    "archive": "is its disk mounted? docs/operations.md on stores that are missing",
    "disk": "make room, or set [spool] minimum_free_mb and minimum_free_inodes",
}


def examine(settings: Settings) -> list[Finding]:
    """Look at machine, folders, ports and servers; changes nothing but a moment's trial files."""
    found = [*examine_machine(settings), *examine_stores(settings.layout)]
    found += examine_network(settings)
    return found + _readiness(settings)


def _readiness(settings: Settings) -> list[Finding]:
    """Tell whether stores and index are ours, and have room; nothing where nothing ran yet."""
    if not settings.index.url and not Path(settings.layout.index).exists():
        words = "nothing ran here yet"
        return [Finding("installation", Level.WARN, words, "petct-ingest run --root DIR")]
    with ExitStack() as stack:

        def index_of() -> MetadataIndex:
            index = open_index(settings)
            stack.callback(index.close)
            return index

        checks = [one for one in check_readiness(settings, index_of) if one.name != "receiver"]
    return [
        Finding(
            one.name,
            Level.OK if one.ok else Level.FAIL,
            one.words,
            "" if one.ok else _ADVICE[one.name],
        )
        for one in checks
    ]
