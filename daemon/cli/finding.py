"""Commands that search the index: studies, find, show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from daemon.cli.escaping import plain, shown
from daemon.cli.events import read_time
from daemon.cli.naming import LONGEST_UID, day, words_of
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.sentences import tell
from workers.completeness.role_names import Role
from workers.errors import ExportFailed
from workers.export.matching import check_columns, find_rows
from workers.index.engine import open_index
from workers.index.searching import WantedStudies, find_studies
from workers.showing import show_study

Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]


class _State(StrEnum):
    PENDING = "pending"
    READY = "ready"
    HELD = "held"
    NO_PAIR = "no_pair"


class _Level(StrEnum):
    SERIES = "series"
    INSTANCE = "instance"


_WIDE = 120
"""Columns from which on series stand beside their study."""

_OF_ONE_INSTANCE = frozenset({"instance_uid", "file_path"})
_SHOWN_ANYWAY = frozenset(
    {"patient_ID", "study", "series", "series_description", "modality", "instances", "subseries"}
)


def studies(
    patient: Annotated[
        str | None, typer.Option(metavar="ID", help="Of this PatientID; * stands for anything.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(metavar="M", help="With a series of it, e.g. PT.")
    ] = None,
    role: Annotated[
        Role | None, typer.Option(metavar="R", help="With a series in it, e.g. pet_ac.")
    ] = None,
    state: Annotated[_State | None, typer.Option(help="Whose pair is in it.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="T", help="Filed then or later: 2026-01-31, 2026-01-31T10:00, 2d."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Last filed before.")] = None,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
    limit: Limit = 100,
) -> None:
    """List the studies, newest first, with their series' roles and their pair."""
    now = datetime.now(UTC)
    wanted = WantedStudies(
        patient=patient,
        modality=modality,
        role=None if role is None else str(role),
        state=None if state is None else str(state),
        since=read_time(since, now),
        until=read_time(until, now),
    )
    with closing(open_index(settings_of(root, config))) as index:
        found = list(find_studies(index, wanted, limit))
    if as_json:
        print(json.dumps(found))
    else:
        _print_studies(found)


def find(
    asked: Annotated[
        list[str],
        typer.Argument(metavar="COLUMN=VALUE …", help="Columns of the dictionary; * for anything."),
    ],
    level: Annotated[
        _Level | None, typer.Option(help="One row a series or an instance (what is asked for).")
    ] = None,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
    limit: Limit = 100,
) -> None:
    """Find series or instances by any column of the metadata dictionary (docs/export.md)."""
    wanted = _conditions(asked)
    if level is None:
        level = _Level.INSTANCE if _OF_ONE_INSTANCE & wanted.keys() else _Level.SERIES
    with closing(open_index(settings_of(root, config))) as index:
        found = list(islice(find_rows(index, wanted, level.value), limit + 1))
    rows, more = found[:limit], len(found) > limit
    if as_json:
        print(json.dumps(rows))
        return
    _print_rows(rows, level, [name for name in wanted if name not in _SHOWN_ANYWAY])
    if more:
        _console().print(f"the first {limit}; --limit N shows more", style="dim")


def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The StudyInstanceUID.")],
    files: Annotated[bool, typer.Option("--files", help="Every file, not the folders.")] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show all of one study: series, roles and why, labels, folders, pair, what was set aside."""
    settings = settings_of(root, config)
    with closing(open_index(settings)) as index:
        known = show_study(index, settings.layout, study, files=files)
    if known is None:
        raise ExportFailed(f"no study {shown(study)}: `petct-ingest studies` lists them")
    if as_json:
        print(json.dumps(known))
    else:
        _print_study(known)


def _conditions(asked: Iterable[str]) -> dict[str, str]:
    """Read COLUMN=VALUE. Raises ExportFailed for an unknown column."""
    found: dict[str, str] = {}
    for one in asked:
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"write COLUMN=VALUE, not {one!r}")
        if name in found:
            raise typer.BadParameter(f"{name} is asked for twice")
        found[name] = value
    check_columns(found)
    return found


def _print_studies(found: list[dict[str, Any]]) -> None:
    console = _console()
    # in a narrow terminal the series stand below: a UID of 64 characters must not be folded
    wide = console.width >= _WIDE
    table = Table(
        Column("Study" if wide else "Study, series", min_width=LONGEST_UID, overflow="fold"),
        *([Column("Series", no_wrap=True)] if wide else []),
        Column("Pair", min_width=7),
        show_lines=not wide,
    )
    for one in found:
        pair = one["pair"]
        words = pair["state"] if pair else "-"
        if pair and pair["revision"]:
            words += f", revision {pair['revision']}" if wide else f"\nrev. {pair['revision']}"
        who = (one["patient_ID"], day(one["study_date"]), one["study_description"])
        name = f"{plain(one['study'])}\n{', '.join(plain(part) for part in who if part)}"
        series = [plain(words_of(member)) for member in one["series"]]
        if wide:
            table.add_row(name, "\n".join(series), words)
        else:
            table.add_row(f"{name}\n{', '.join(series)}", words)
    console.print(table)


def _print_rows(found: list[dict[str, Any]], level: _Level, more: list[str]) -> None:
    console = _console()
    if not found:
        console.print("Nothing is like that.")
        return
    what = "Series" if level is _Level.SERIES else "Instance"
    columns = [Column(what, overflow="fold"), Column("What", overflow="fold", max_width=20)]
    if more:
        columns.append(Column(", ".join(more), overflow="fold"))
    table = Table(*columns)
    for row in found:
        uid = row["series" if level is _Level.SERIES else "instance_uid"]
        where = f"{uid}\nof {row['study']}\nof {plain(row['patient_ID'])}"
        kind = f"{plain(row['modality'])}, {row['instances']}"
        if row["subseries"] != "1":
            kind += f", subseries {plain(row['subseries'])}"
        cells = [where, f"{kind}\n{plain(row['series_description'])}"]
        if more:
            cells.append("\n".join(plain(row[name]) for name in more))
        table.add_row(*cells)
    console.print(table)


def _print_study(known: dict[str, Any]) -> None:
    console = _console()
    console.print(f"[bold]{plain(known['study'])}[/bold]  {plain(known['study_description'])}")
    _say(console, "patient", known["patient_ID"])
    _say(console, "study date", known["study_date"])
    _say(console, "filed", f"{known['first_at']} to {known['last_at']}")
    if known["two_patients"]:
        _say(console, "note", "it arrived under two PatientIDs")
    for one in known["series"]:
        _print_series(console, one)
    _print_pair(console, known["pair"])
    for one in known["quarantine"]:
        console.print(f"\nset aside {one['entry']}: {plain(one['code'] or one['outcome'])}")
        _say(console, "reason", one["reason"])
    for path in known.get("files", ()):
        console.print(plain(path))


def _print_series(console: Console, one: dict[str, Any]) -> None:
    expected = f" of {one['expected']}" if one["expected"] else ""
    console.print(
        f"\n[bold]{plain(one['role'] or one['modality'])}[/bold]  "
        f"{plain(one['series_description'])}: {one['instances']}{expected}, {one['state']}"
    )
    _say(console, "series", one["series"])
    _say(console, "role", one["role_reasons"])
    _say(console, "state", one["reasons"])
    _say(console, "source", one["source"])
    _say(console, "subject", one["subject"])
    _say(console, "session", one["session"])
    for place in one["folders"]:
        _say(console, "folder", f"{place['folder']} ({place['files']} files)")


def _print_pair(console: Console, pair: dict[str, Any] | None) -> None:
    if pair is None:
        console.print("\nNo pair: the study has no PET.")
        return
    revision = f", revision {pair['revision']}" if pair["revision"] else ""
    console.print(f"\n[bold]pair[/bold]  {pair['state']}{revision}")
    for name in ("pet", "ct", "folder", "ready_at", "reasons"):
        _say(console, name.replace("_at", ""), pair[name])
    suv = pair["suv"]
    if suv is not None:
        _say(console, "SUV", f"{suv['status']}: {suv['label']} by {suv['method']}")
        factor = suv["factor"]
        _say(console, "factor", "one a slice" if isinstance(factor, list | tuple) else factor)
        _say(console, "reference", suv["reference_time"])
        _say(console, "why", suv["reasons"])


def _say(console: Console, name: str, value: Any) -> None:
    """Print one fact, a list a line each; nothing where it is absent."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if one not in (None, ""):
            tell(console, f"  {name:<10} ", shown(one))


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
