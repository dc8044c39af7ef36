"""Whether the installation can take what is sent to it now: each check with its words.

The words may name folders: they are for whoever runs the installation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from config.layout import Layout
from config.settings import Settings
from daemon.room import measure, refusals, reserve_of
from workers.errors import IndexUnusable, StoreUnavailable
from workers.identity import check_archive, check_identity, check_takes_instances, check_writable
from workers.index.engine import MetadataIndex
from workers.measuring import is_counting
from workers.watermark import judge_room


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be well, and what was found."""

    name: str
    ok: bool
    words: str


class _NotWell(Exception):
    """The message says what is wrong."""


def check_readiness(settings: Settings, index_of: Callable[[], MetadataIndex]) -> list[Check]:
    """Check receiver, index, spool, archive and disks; `index_of` opens the index."""
    layout = settings.layout
    known: dict[str, str] = {}

    def index() -> str:
        opened = index_of()
        stores = opened.identities()
        known.update(archive=stores.archive, spool=stores.spool)
        return opened.engine.dialect.name

    def spool() -> str:
        _compare(layout, known, "spool")
        check_writable(layout.spool, "spool")
        return "it is ours"

    def archive() -> str:
        _compare(layout, known, "archive")
        check_takes_instances(layout)
        return "it is ours"

    return [
        _checked("receiver", lambda: _receiver(layout)),
        _checked("index", index),
        _checked("spool", spool),
        _checked("archive", archive),
        _checked("disk", lambda: _disk(settings)),
    ]


def _checked(name: str, check: Callable[[], str]) -> Check:
    """Run a check; what it raises becomes its words."""
    try:
        return Check(name, True, check())
    except (StoreUnavailable, IndexUnusable, _NotWell) as error:
        return Check(name, False, str(error))
    except OSError as error:
        return Check(name, False, f"cannot be looked at: {error.strerror}")
    except sa.exc.DBAPIError as error:
        return Check(name, False, f"the index cannot be read: {type(error.orig).__name__}")


def _receiver(layout: Layout) -> str:
    """A receiver that listens holds a place in run/metrics and says its port in run/."""
    if not is_counting(layout, "receive"):
        raise _NotWell("no receiver runs on this machine: start `petct-ingest run`")
    try:
        port = (layout.run / "receiver.port").read_text("ascii").strip()
    except FileNotFoundError:
        raise _NotWell("the receiver does not listen; its log says why") from None
    return f"listens on port {port}"


def _compare(layout: Layout, known: Mapping[str, str], what: str) -> None:
    if not known:
        raise _NotWell("not known to be ours, because the index cannot be read")
    if what == "archive":
        check_archive(layout, known[what])
    else:
        check_identity(layout.spool, known[what], what)


def _disk(settings: Settings) -> str:
    """Both stores have their reserve, and no intake refuses anything."""
    layout = settings.layout
    rooms = [measure("spool", layout.spool)[0], measure("archive", layout.archive)[0]]
    short = judge_room(rooms, reserve_of(settings.spool), low=False).reason
    if short:
        raise _NotWell(short)
    for who, reason in refusals(layout).items():
        raise _NotWell(f"the {who} takes nothing: {reason}")
    return ", ".join(f"{room.name} {room.free.bytes_free >> 20} MiB free" for room in rooms)
