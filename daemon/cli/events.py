"""The command `events`: what the audit holds, as it was learned, the newest last."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Annotated, Any

import typer

from daemon.cli.escaping import shown
from daemon.cli.options import Config, Root, settings_of
from workers import clock
from workers.errors import WorkersError
from workers.index.engine import MetadataIndex, open_index
from workers.index.history import Wanted, events_after, life_of, newest_events

_LOOK_SECONDS = 1.0
_WIDTH = 58
_COLUMNS = ("study", "series", "source", "entry")
_LINES = (*_COLUMNS, "pet", "ct")
"""What is long enough for a line of its own."""

_FOR_PROGRAMS = ("last_instance",)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class NothingKnown(WorkersError):
    """The audit knows nothing of what was asked for."""


def events(
    root: Root = None,
    config: Config = None,
    study: Annotated[
        str | None, typer.Option(metavar="UID", help="Of this study (StudyInstanceUID).")
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(metavar="UID", help="The whole life of one instance (SOPInstanceUID)."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="S", help="Whose source contains S, e.g. an AE title.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="K", help="Of this kind; may be repeated.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="From then on: 2026-01-31, 2026-01-31T10:00 (UTC), 90m, 2d."
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Before then.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on; Ctrl+C ends it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the audit: what came from where and when, what became of it, who was refused."""
    settings = settings_of(root, config)
    now = datetime.now(UTC)
    wanted = Wanted(study, source, tuple(kind or ()), read_time(since, now), read_time(until, now))
    index = open_index(settings)
    try:
        if instance is not None:
            _print(_life(index, instance), as_json)
            return
        last = _print(newest_events(index, wanted, limit), as_json)
        if not (last or as_json or follow):
            print("No such event.")
        with suppress(KeyboardInterrupt):
            while follow:
                time.sleep(_LOOK_SECONDS)
                last = _print(events_after(index, wanted, last), as_json) or last
    finally:
        index.close()


def read_time(text: str | None, now: datetime) -> str | None:
    """Read a time as the index writes it: ISO 8601, UTC where no zone is said, or an age.

    Raises typer.BadParameter for anything else.
    """
    if text is None:
        return None
    try:
        if text[-1:] in _UNITS and text[:-1].isdecimal():
            when = now - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
        else:
            when = datetime.fromisoformat(text)
        when = when.replace(tzinfo=when.tzinfo or UTC)
        return clock.utc_of(when.timestamp())
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"no time: {text!r}; write 2026-01-31, 2026-01-31T10:00 or an age such as 90m, 12h, 2d"
        ) from None


def _life(index: MetadataIndex, instance: str) -> list[dict[str, Any]]:
    with index.read() as connection:
        found = life_of(connection, instance)
    if not found:
        raise NothingKnown(
            f"nothing of instance {instance!r} ever left the spool: see `petct-ingest status`"
        )
    return found


def _print(found: Iterable[dict[str, Any]], as_json: bool) -> int:
    """Print events, each as soon as it is read; return the id of the last, 0 without any."""
    last = 0
    for one in found:
        last = one["id"] or last
        print(json.dumps(one) if as_json else in_words(one), flush=True)
    return last


def in_words(one: dict[str, Any]) -> str:
    """Show one event in 80 columns: time and kind, and beside them all that is known."""
    left = [str(one["at"]).replace("T", " ")[:19], shown(one["kind"])]
    facts = {key: one[key] for key in _COLUMNS} | one["details"]
    told = {key: f"{key} {shown(value)}" for key, value in facts.items()
            if key not in _FOR_PROGRAMS and value not in (None, "", [])}  # fmt: skip
    right = [told.pop(key) for key in _LINES if key in told]
    right += textwrap.wrap(", ".join(told.values()), _WIDTH)
    lines = zip_longest(left, right, fillvalue="")
    return "\n".join(f"{first:<21}{rest}".rstrip() for first, rest in lines)
