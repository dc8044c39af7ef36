"""The hosts that share an index: whose spool is whose, and when each was seen.

Hosts have names (`spool.name`) as soon as there are several; one alone needs none. A name belongs
to one spool, by the spool's identity: two hosts that say they are the same would file each other's
work. Every few seconds the sweeper of each host tells what waits in its spool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers import clock
from workers.errors import HostUnknown, SpoolNameTaken
from workers.index.counting import SET_ASIDE
from workers.index.seen import list_hosts
from workers.index.tables import arrival, host, meta

_LONGEST_SECONDS = 1e8
"""An age beyond it says no more: three years."""

_MARK = "spool_id"
"""In `meta`: the spool of a host without a name."""


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a host last told."""

    name: str
    boot: str
    """The boot that its monotonic times count from."""
    beat: int
    """One more each time it tells something."""
    stopped: bool
    """It ended in peace: nothing comes in there until it beats again."""
    entries: int
    """How many wait in its spool."""
    oldest_seconds: float | None
    """How long the oldest of them had waited then; None where none did."""


def claim_spool(connection: Connection, name: str, identity: str) -> None:
    """Let the index know which spool a name stands for, in a writing transaction.

    A host that gets its name now takes over what it did without one.

    Raises
    ------
    SpoolNameTaken
        The name is another spool's, or this spool has another name, or a host without a name uses
        this index.
    """
    unnamed = connection.execute(sa.select(meta.c.value).where(meta.c.key == _MARK)).scalar()
    if unnamed not in (None, identity):
        raise SpoolNameTaken(
            "a host without a name uses this index: give it a spool.name first, and start it once"
        )
    rows = connection.execute(
        sa.select(host.c.name, host.c.spool_id).where(
            sa.or_(host.c.name == name, host.c.spool_id == identity)
        )
    )
    for row in rows:
        if row.name != name:
            raise SpoolNameTaken(
                f'this spool is known as "{row.name}": give spool.name = "{row.name}", or let'
                f" `petct-ingest hosts forget {row.name}` forget that name"
            )
        if row.spool_id != identity:
            raise SpoolNameTaken(
                f'spool.name = "{name}" is the name of another spool: give this host a name of its'
                f" own. Where that spool is gone for good: `petct-ingest hosts forget {name}`"
            )
        return
    connection.execute(  # nothing came in yet: it is there with its first beat
        host.insert().values(name=name, spool_id=identity, boot="", stopped=True, last_seen=_now())
    )
    if unnamed is not None:
        connection.execute(meta.delete().where(meta.c.key == _MARK))
        connection.execute(
            arrival.update()
            .where(arrival.c.outcome.in_(SET_ASIDE), arrival.c.host.is_(None))
            .values(host=name)
        )


def has_hosts(connection: Connection) -> bool:
    """Tell whether hosts with names use this index."""
    return connection.execute(sa.select(host.c.name).limit(1)).first() is not None


def beat(
    connection: Connection,
    name: str,
    entries: int,
    oldest_seconds: float | None,
    *,
    stopped: bool = False,
) -> bool:
    """Tell that a host lives and what waits in its spool, in a writing transaction.

    Returns False where nobody knows the host (any more).
    """
    if oldest_seconds is not None:
        oldest_seconds = min(max(0.0, oldest_seconds), _LONGEST_SECONDS)
    told = connection.execute(
        host.update()
        .where(host.c.name == name)
        .values(
            boot=clock.boot_id(), beat=host.c.beat + 1, stopped=stopped, entries=entries,
            oldest_seconds=oldest_seconds, last_seen=_now(),
        )
    )  # fmt: skip
    return bool(told.rowcount)


def read_reports(connection: Connection) -> list[HostReport]:
    """Read what every host last told."""
    columns = [host.c[name] for name in HostReport.__dataclass_fields__]
    return [HostReport(*row) for row in connection.execute(sa.select(*columns))]


def forget_host(connection: Connection, name: str) -> None:
    """Forget a host that is not there: nothing waits for it any more, in a writing transaction.

    Should it come back, it is known again, and what waits in its spool is filed. Raises
    HostUnknown, also where it is there.
    """

    def ask(statement: str, /, **values: Any) -> Sequence[Any]:
        return connection.execute(sa.text(statement), values).all()

    found = next((one for one in list_hosts(ask) if one.name == name), None)
    if found is None:
        raise HostUnknown(f"no host is called {name!r}: `petct-ingest hosts` lists them")
    if found.is_there:
        raise HostUnknown(
            f"host {name!r} was there {found.seen_seconds:.0f} s ago: stop it, or wait a minute"
        )
    connection.execute(host.delete().where(host.c.name == name))


def _now() -> sa.ColumnElement[Any]:
    """The database's clock, in words of its own: every host's is compared with no other."""
    return sa.cast(sa.func.current_timestamp(), sa.Text)
