"""Commands that look at a system and act on it: held, quarantine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from config.settings import Settings
from daemon.cli.escaping import plain, shown
from daemon.cli.naming import day
from daemon.cli.options import Config, Json, Root, acting_user, settings_of
from daemon.cli.progress import progress
from daemon.cli.sentences import tell
from daemon.web.reading import Installation
from workers.completeness.judging import PairWish
from workers.completeness.overriding import forget_override, override_pair, wait_longer
from workers.filing.quarantine import original_path
from workers.filing.releasing import count_set_aside, drop_entry, retry_all, retry_entry
from workers.index.engine import MetadataIndex, open_index
from workers.index.queries import list_set_aside, list_studies
from workers.index.tables import study as study_table
from workers.jobs import ask_for_pairs
from workers.pairing.evidence import Override

Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="The StudyInstanceUID.")]
Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="The entry, as the list names it.")]

held = typer.Typer(invoke_without_command=True, help="List and resolve what needs a person.")
quarantine = typer.Typer(invoke_without_command=True, help="List, retry or drop set-aside files.")


@held.callback()
def list_held(
    context: typer.Context, root: Root = None, config: Config = None, as_json: Json = False
) -> None:
    """List each held study in plain words, with what would resolve it."""
    context.obj = (root, config)
    if context.invoked_subcommand is not None:
        return
    with closing(open_index(settings_of(root, config))) as index, index.read() as connection:
        found = list_studies(connection, state="held")
    if as_json:
        print(json.dumps([{**one["pair"], "study": one["study"]} for one in found]))
        return
    console = _console()
    for one in found:
        who = (one["patient_ID"], day(one["study_date"]), one["study_description"])
        console.print(f"[bold]{one['study']}[/bold]")
        tell(console, "  ", ", ".join(shown(part) for part in who if part))
        for reason in one["pair"]["reasons"]:
            tell(console, "  - ", shown(reason))
    if found:
        console.print("then: petct-ingest held force|choose|forget|wait STUDY", style="dim")
    if not found:
        console.print("Nothing is held.")


@held.command()
def force(
    context: typer.Context,
    study: Study,
    pet: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the PET.")] = None,
    ct: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the CT.")] = None,
    weight_kg: Annotated[float | None, typer.Option(min=0.1, help="The patient's weight.")] = None,
    dose_bq: Annotated[float | None, typer.Option(min=1.0, help="The injected dose.")] = None,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Pair a study now, whatever speaks against it; recorded, and said in pair.json."""
    given = Override(pet=pet, ct=ct, forced=True, weight_kg=weight_kg, dose_bq=dose_bq)
    _override(_settings(context, root, config), study, given, as_json)


@held.command()
def choose(
    context: typer.Context,
    study: Study,
    pet: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the PET.")] = None,
    ct: Annotated[str | None, typer.Option(help="SeriesInstanceUID of the CT.")] = None,
    weight_kg: Annotated[float | None, typer.Option(min=0.1, help="The patient's weight.")] = None,
    dose_bq: Annotated[float | None, typer.Option(min=1.0, help="The injected dose.")] = None,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Choose the PET or the CT, or give a weight or dose; every check still applies."""
    given = Override(pet=pet, ct=ct, weight_kg=weight_kg, dose_bq=dose_bq)
    _override(_settings(context, root, config), study, given, as_json)


@held.command()
def forget(
    context: typer.Context,
    study: Study,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take back what was forced, chosen or given: the study is judged by its evidence alone."""
    settings = _settings(context, root, config)
    with closing(open_index(settings)) as index:
        wishes = forget_override(index, settings, study, acting_user())
        _tell_pair(settings, index, study, wishes, as_json)


@held.command()
def wait(
    context: typer.Context,
    study: Study,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Wait for the rest of a study: its hard cap starts anew."""
    settings = _settings(context, root, config)
    with closing(open_index(settings)) as index:
        wishes = wait_longer(index, settings, study, acting_user())
        _tell_pair(settings, index, study, wishes, as_json, "the study waits again")


@quarantine.callback()
def list_quarantine(
    context: typer.Context,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
    limit: Limit = 100,
) -> None:
    """List what was set aside and why; each file lies in quarantine with its JSON."""
    context.obj = (root, config)
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(root, config)
    with closing(open_index(settings)) as index, index.read() as connection:
        found = list_set_aside(connection, limit=limit)
    if as_json:
        print(json.dumps(found))
        return
    console = _console()
    if not found:
        console.print(f"Nothing is in quarantine ({settings.layout.quarantine}).")
        return
    table = Table(
        Column("Entry, when", no_wrap=True), Column("What", no_wrap=True),
        Column("File, why, from", overflow="fold"),
    )  # fmt: skip
    called = Installation(settings).called
    for one in found:
        place = f" on {one['host']}" if "host" in one else ""
        path = original_path(settings.layout.quarantine, one["entry"])
        lines = (path, one["reason"] or "", f"from {called(one['source'])}")
        table.add_row(f"{one['entry']}{place}\n{one['at']}", one["code"] or one["outcome"],
                      "\n".join(plain(line) for line in lines if line))  # fmt: skip
    console.print(table)
    console.print(f"{len(found)} in {settings.layout.quarantine}", style="dim")


@quarantine.command()
def retry(
    context: typer.Context,
    entry: Annotated[str | None, typer.Argument(metavar="ENTRY")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give an entry back to the spool, to be filed again."""
    if everything == (entry is not None):
        raise typer.BadParameter("give ENTRY or --all")
    settings = _settings(context, root, config)
    with closing(open_index(settings)) as index:
        if entry is None:
            given, left = _retry_all(settings, index)
        else:
            retry_entry(index, settings.layout, entry, acting_user())
            given, left = 1, 0
    if as_json:
        print(json.dumps({"given_back": given, "left": left}))
        return
    what = entry or f"{given:,}"
    _console().print(f"{what} {'waits' if entry else 'wait'} to be filed again")
    if left:
        _console().print(f"{left:,} stay: they could not be read; the log names them")


@quarantine.command()
def drop(
    context: typer.Context,
    entry: Entry,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete an entry for good."""
    settings = _settings(context, root, config)
    if not yes:
        typer.confirm(f"Delete {entry} for good?", abort=True, err=True)
    with closing(open_index(settings)) as index:
        drop_entry(index, settings.layout, entry, acting_user())
    if as_json:
        print(json.dumps({"dropped": entry}))
    else:
        _console().print(f"{entry} is deleted")


def _retry_all(settings: Settings, index: MetadataIndex) -> tuple[int, int]:
    """Give every entry back; return how many were, and how many stay."""
    total, given, left = count_set_aside(index), 0, 0
    with progress() as step:
        for name in retry_all(index, settings.layout, acting_user()):
            given, left = (given + 1, left) if name else (given, left + 1)
            step("given back", given + left, total)
    return given, left


def _override(settings: Settings, study: str, given: Override, as_json: bool) -> None:
    with closing(open_index(settings)) as index:
        wishes = override_pair(index, settings, study, given, acting_user())
        _tell_pair(settings, index, study, wishes, as_json)


def _tell_pair(
    settings: Settings,
    index: MetadataIndex,
    uid: str,
    wishes: Sequence[PairWish],
    as_json: bool,
    done: str = "recorded",
) -> None:
    """Ask for the pairs that are wanted now, and tell what a study's pair has become."""
    ask_for_pairs(settings, wishes)
    with index.read() as connection:
        found = list_studies(connection, limit=1, where=[study_table.c.study == uid])
    pair: dict[str, Any] = found[0]["pair"] if found else {}
    if as_json:
        print(json.dumps({**pair, "study": uid}))
        return
    console = _console()
    console.print(f"{done}; the pair is now {pair.get('state')}")
    for reason in pair.get("reasons", ()):
        tell(console, "  ", shown(reason))


def _settings(context: typer.Context, root: Any, config: Any) -> Settings:
    """Take --root and --config from before or behind the subcommand."""
    before_root, before_config = context.obj or (None, None)
    return settings_of(root or before_root, config or before_config)


def _console() -> Console:
    return Console(soft_wrap=True)
