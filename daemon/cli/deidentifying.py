"""The command `deid-report`: what de-identification would change, without changing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from config.tables.work import LabelsSettings
from daemon.cli.escaping import plain
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.progress import progress
from daemon.errors import DaemonError
from workers.deidentify.reporting import DeidReport, Outcome, report_path
from workers.deidentify.secret import read_seed, throw_away_seed

_FILES_SHOWN = 20


def deid_report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A DICOM file or a folder.")],
    subject: Annotated[
        bool, typer.Option("--subject", help='As with patient_id = "subject" in the settings.')
    ] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Tell what de-identification would replace, remove, empty or hold; writes nothing.

    Attributes are named, values never. Without --root or --config the rules run with a seed that
    is thrown away; a seed that exists is read, none is made.
    """
    seed, pattern = throw_away_seed(), LabelsSettings().pattern
    if root is not None or config is not None:
        settings = settings_of(root, config)
        pattern = settings.labels.pattern
        if settings.seed_file.exists():
            seed = read_seed(settings.seed_file)
    found = DeidReport()
    try:
        with progress(quiet=as_json) as step:
            for one in report_path(path, seed, pattern if subject else None):
                found.add(one)
                step("reading", len(found.files), 0)
    except OSError as error:
        raise DaemonError(f"{path} cannot be read: {error.strerror}") from error
    if as_json:
        print(json.dumps(found.to_json_object()))
    else:
        _print(Console(soft_wrap=True, highlight=False), found)


def _print(console: Console, found: DeidReport) -> None:
    for name, counts in found.attributes.items():
        table = Table("Attribute", "Files", title=f"would be {name}")
        for keyword, count in sorted(counts.items()):
            table.add_row(plain(keyword), f"{count:,}")
        if counts:
            console.print(table)
    for one in found.files[:_FILES_SHOWN]:
        if one.outcome is Outcome.DEIDENTIFIED:
            done = one.changes
            words = (
                f"{len(done.replaced)} replaced, {len(done.removed)} removed, "
                f"{len(done.emptied)} emptied"
            )
        else:
            words = f"{one.outcome}: {one.code}" + (f": {one.reason}" if one.reason else "")
        console.print(f"{plain(one.path)}: {plain(words)}")
    if len(found.files) > _FILES_SHOWN:
        more = len(found.files) - _FILES_SHOWN
        console.print(f"and {more:,} more files (--json names them all)", style="dim")
    for outcome in Outcome:
        if count := found.count(outcome):
            console.print(f"{count:,} {outcome}")
