"""Commands that write what the index and the tree hold for others: `export csv|parquet|…`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from config.settings import Settings
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.progress import progress
from workers.export.bundled import bundled
from workers.export.datalist import ready_pairs, split_by_patient, write_datalist
from workers.export.dictionary import (
    COLUMNS,
    count_instances,
    count_series,
    dictionary_rows,
)
from workers.export.omidb import export_omidb
from workers.export.sample import export_sample
from workers.export.writing import write_csv, write_csv_to, write_parquet
from workers.identity import check_archive
from workers.index.engine import MetadataIndex, open_index

export = typer.Typer(no_args_is_help=True, help="Write tables, samples and lists for others.")


class _Level(StrEnum):
    SERIES = "series"
    INSTANCE = "instance"


Out = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")]
LevelOption = Annotated[_Level, typer.Option("--level", help="One row a series, or an instance.")]


@export.command()
def csv(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; - for stdout.")],
    level: LevelOption = _Level.SERIES,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the metadata dictionary as CSV."""
    if as_json and str(out) == "-":
        raise typer.BadParameter("stdout takes the table or JSON: give OUT a name")
    with _index(settings_of(root, config)) as index, _rows(index, level, quiet=as_json) as rows:
        if str(out) == "-":
            write_csv_to(sys.stdout, COLUMNS, rows)
            return
        count = write_csv(out, COLUMNS, rows)
    _tell(as_json, {"out": str(out), "rows": count}, f"{count:,} rows in {out}")


@export.command()
def parquet(
    out: Out,
    level: LevelOption = _Level.SERIES,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write the metadata dictionary as Parquet (needs pyarrow)."""
    with _index(settings_of(root, config)) as index, _rows(index, level, quiet=as_json) as rows:
        count = write_parquet(out, COLUMNS, rows)
    _tell(as_json, {"out": str(out), "rows": count}, f"{count:,} rows in {out}")


@export.command()
def datalist(
    out: Out,
    validation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the patients that validate.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    relative: Annotated[
        bool, typer.Option("--relative", help="Paths relative to the file's folder.")
    ] = False,
    any_units: Annotated[
        bool, typer.Option("--any-units", help="Also pairs whose PET is not in SUV.")
    ] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write which pairs a training script loads, split by patient."""
    settings = settings_of(root, config)
    with _index(settings, of_tree=True) as index:
        pairs = ready_pairs(index, settings.layout.output)
        found = split_by_patient(pairs, validation=validation, seed=seed, any_units=any_units)
    write_datalist(out, found, relative=relative)
    training, validating = len(found.training), len(found.validation)
    words = [f"{training} pairs for training, {validating} for validation: {out}"]
    if found.other_units:
        words.append(f"{found.other_units} pairs are not in SUV and left out; --any-units takes"
                     " them too")  # fmt: skip
    if training and not validating and validation:
        words.append("no patient fell into validation: with few patients choose another --seed")
    parts = {"training": training, "validation": validating, "other_units": found.other_units}
    _tell(as_json, {"out": str(out), **parts}, *words)


@export.command()
def sample(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The StudyInstanceUID.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write one study's pair, DICOM files and notebooks into a folder that can be given away."""
    settings = settings_of(root, config)
    with _index(settings, of_tree=True) as index, progress(quiet=as_json) as step:
        count = export_sample(
            index, settings.layout, study, out, bundled("notebooks"), partial(step, "copying")
        )
    words = f"{out}: the pair, {count} DICOM files, two notebooks"
    _tell(as_json, {"out": str(out), "study": study, "files": count}, words)


@export.command()
def omidb(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write or refresh.")],
    prefix: Annotated[str, typer.Option(help="Four letters before a client's number.")] = "optm",
    nbss: Annotated[
        Path | None, typer.Option(metavar="DIR", help="One JSON of episodes for a PatientID.")
    ] = None,
    hard_links: Annotated[
        bool, typer.Option("--hard-links", help="Share the archive's files; no copies.")
    ] = False,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write or refresh an OMI-DB: images, headers, clients and episodes."""
    settings = settings_of(root, config)
    with _index(settings, of_tree=True) as index, progress(quiet=as_json) as step:
        total = count_instances(index)
        report = export_omidb(
            index,
            settings.layout,
            out,
            prefix=prefix,
            nbss=nbss,
            hard_links=hard_links,
            advance=lambda images: step("images", images, total),
        )
    words = [f"{out}: {report.clients} clients, {report.images:,} images, {report.written:,} new"]
    if report.undated:
        count = len(report.undated)
        words.append(f"{count} studies have no StudyDate: the omidb reader passes them over")
    if report.unlinked:
        words.append(f"{len(report.unlinked)} studies are of no episode of their NBSS record")
    _tell(as_json, {"out": str(out), **asdict(report)}, *words)


@contextmanager
def _rows(
    index: MetadataIndex, level: _Level, *, quiet: bool
) -> Iterator[Iterator[Mapping[str, Any]]]:
    """Give the rows of the dictionary, with a bar that counts series."""
    total = count_series(index)
    with progress(quiet=quiet) as step:

        def counted() -> Iterator[Mapping[str, Any]]:
            last, done = None, 0
            for row in dictionary_rows(index, level.value):
                if (row["study"], row["series"]) != last:
                    last, done = (row["study"], row["series"]), done + 1
                    step("series", done, total)
                yield row

        yield counted()


@contextmanager
def _index(settings: Settings, *, of_tree: bool = False) -> Iterator[MetadataIndex]:
    """Open the index; `of_tree` also asks whether its archive is there."""
    index = open_index(settings)
    try:
        if of_tree:  # else its pairs and files would only seem to be missing
            check_archive(settings.layout, index.identities().archive)
        yield index
    finally:
        index.close()


def _tell(as_json: bool, found: Mapping[str, object], *words: str) -> None:
    if as_json:
        print(json.dumps(found))
        return
    console = Console(soft_wrap=True, highlight=False)
    for one in words:
        console.print(one, markup=False)
