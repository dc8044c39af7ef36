"""Which hosts share the index and when each was seen, for people, in plain SQL (glance.py)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from workers.index.counting import Ask

THERE_SECONDS = 60.0
"""A host that told something so lately is there."""


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host with a name."""

    name: str
    seen_seconds: float
    """How long ago it told something, by the database's clock."""
    stopped: bool
    """It ended in peace."""
    entries: int
    """How many waited in its spool."""
    oldest_seconds: float | None
    """How long the oldest had waited then; None where none did."""

    @property
    def is_there(self) -> bool:
        return not self.stopped and self.seen_seconds < THERE_SECONDS

    @property
    def state(self) -> str:
        """What a person wants to know of it, in words."""
        seen = "seen" if self.is_there else "stopped" if self.stopped else "not seen for"
        ago = "" if self.stopped else f" {age(self.seen_seconds)}"
        ago += " ago" if self.is_there else ""
        entries = "1 entry waits" if self.entries == 1 else f"{self.entries:,} entries wait"
        return f"{seen}{ago}" + (f", {entries} there" if self.entries else "")


def list_hosts(ask: Ask) -> list[HostSeen]:
    """List the hosts with names, by name."""
    rows = ask(
        "SELECT name, last_seen, CAST(CURRENT_TIMESTAMP AS TEXT), stopped, entries, oldest_seconds"
        " FROM host ORDER BY name"
    )
    return [
        HostSeen(name, max(0.0, (_time(now) - _time(seen)).total_seconds()), bool(stopped),
                 entries, oldest)
        for name, seen, now, stopped, entries, oldest in rows
    ]  # fmt: skip


def age(seconds: float) -> str:
    """Say how long something is ago, in one number."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _time(text: str) -> datetime:
    """Read a time of the database's, which tells its zone; SQLite's is UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
