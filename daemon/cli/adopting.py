"""The command `reindex`: adopt a delivery where it lies, or rebuild a lost index."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from config.layout import Layout
from config.logs import configure_logging
from config.settings import Settings
from daemon.cli.escaping import shown
from daemon.cli.options import Config, Json, Root, settings_of
from daemon.cli.progress import progress
from daemon.errors import DaemonError
from workers.adopting.finishing import (
    judge_adopted,
    restore_overrides,
    take_over_pairs,
    wished_pairs,
)
from workers.adopting.helpers import open_helpers
from workers.adopting.reindexing import ReindexReport, reindex, survey
from workers.adopting.walking import count_files
from workers.completeness.judging import PairWish
from workers.durable import try_lock
from workers.errors import IndexUnusable
from workers.identity import check_archive
from workers.index.engine import open_index, prepare_index

_FINDINGS_SHOWN = 20


def run_reindex(
    archive: Annotated[
        Path | None,
        typer.Option("--archive", metavar="DELIVERY", help="Adopt this tree where it lies."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only look: open and write nothing.")
    ] = False,
    no_pair: Annotated[bool, typer.Option("--no-pair", help="Judge, but make no pairs.")] = False,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="How many read at once (the CPUs).")
    ] = os.cpu_count() or 1,
    root: Root = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Adopt a delivery where it lies, or rebuild a lost index; nothing is copied or moved.

    Run it again at any time: what is unchanged is not opened, and what was interrupted goes on.
    """
    settings = settings_of(root, config, logs=False)
    if settings.logging.level == "INFO":  # a line for each series would hide the bar
        quiet = settings.logging.model_copy(update={"level": "WARNING"})
        settings = settings.model_copy(update={"logging": quiet})
    configure_logging(settings.logging)
    if archive is not None:
        paths = settings.paths.model_copy(update={"archive": archive.absolute()})
        settings = settings.model_copy(update={"paths": paths})
    if not settings.layout.archive.is_dir():
        raise DaemonError(f"no archive at {settings.layout.archive}")
    if dry_run:
        _look(settings, as_json=as_json)
        return
    with _alone(settings):
        _run(settings, processes, pair=not no_pair, as_json=as_json)


def _look(settings: Settings, *, as_json: bool) -> None:
    try:
        index = open_index(settings)
    except IndexUnusable:  # none yet: everything is new
        index = None
    try:
        if index is not None:
            check_archive(settings.layout, index.identities().archive)
        report = survey(index, settings.layout)
    finally:
        if index is not None:
            index.close()
    found = report.to_json_object() | {"new": report.new}
    _tell(as_json, found, f"{_files(report)}: {report.new:,} to read, {_rest(report)}", report)


def _run(settings: Settings, processes: int, *, pair: bool, as_json: bool) -> None:
    index = prepare_index(settings)
    try:
        with _alone_in(settings.layout), progress() as step:
            total = count_files(settings.layout.archive) if sys.stderr.isatty() else 0
            report = reindex(
                index,
                settings,
                processes=processes,
                advance=lambda so_far: step("files", so_far.files, total),
            )
            judge_adopted(index, settings, lambda done, of: step("studies judged", done, of))
            restore_overrides(index, settings)
            taken = take_over_pairs(index, settings)
            wishes = wished_pairs(index) if settings.pairing.enabled else []
            made: dict[str, int] = {}
            if pair and wishes:
                index.close()
                made = _make_pairs(settings, wishes, processes, step)
    finally:
        index.close()
    found = report.to_json_object() | {"pairs_taken_over": taken, "pairs": made}
    if not pair:
        found["pairs_wanted"] = len(wishes)
    _tell(as_json, found, _words(report, taken, made), report)


def _make_pairs(
    settings: Settings,
    wishes: Sequence[PairWish],
    processes: int,
    step: Callable[[str, int, int], None],
) -> dict[str, int]:
    """Make pairs in processes of their own, whose memory goes with them."""
    outcomes: dict[str, int] = {}
    workers = max(1, min(processes, settings.pairing.workers, len(wishes)))
    with open_helpers(workers, "workers.pairing.making") as pool:
        begun = [pool.submit(_make_one, settings, one.pair_id, one.generation) for one in wishes]
        for number, future in enumerate(as_completed(begun), 1):
            outcome = future.result()
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            step("pairs", number, len(wishes))
    return outcomes


def _make_one(settings: Settings, pair_id: int, generation: int) -> str:
    from workers.pairing.making import make_pair

    index = open_index(settings)
    try:
        return make_pair(index, settings, pair_id, generation)
    finally:
        index.close()


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Let one reindex of a root run at a time."""
    settings.layout.make_private()
    with open(settings.layout.locks / "reindex", "ab") as lock:
        if not try_lock(lock.fileno()):
            raise DaemonError("another reindex of this root is running")
        yield


@contextmanager
def _alone_in(layout: Layout) -> Iterator[None]:
    """Let one reindex of an archive run at a time, of whatever root: both would write pairs."""
    with ExitStack() as stack:
        with suppress(OSError):  # where it cannot be written, no pair is
            identity = stack.enter_context(open(layout.archive_private / "id", "r+b"))
            if not try_lock(identity.fileno()):
                raise DaemonError(f"a reindex of another root is at work in {layout.archive}")
        yield


def _words(report: ReindexReport, taken: int, made: dict[str, int]) -> str:
    rate = report.files / max(report.seconds, 1e-3)
    pairs = "".join(f", {count:,} {outcome}" for outcome, count in sorted(made.items()))
    return (
        f"{_files(report)}, {rate:,.0f} a second: {report.adopted:,} new, {_rest(report)}\n"
        f"pairs: {taken:,} taken over{pairs}"
    )


def _files(report: ReindexReport) -> str:
    return f"{report.files:,} files in {report.folders:,} folders"


def _rest(report: ReindexReport) -> str:
    return f"{report.unchanged:,} known, {len(report.findings):,} to look at"


def _tell(as_json: bool, found: dict[str, object], words: str, report: ReindexReport) -> None:
    if as_json:
        print(json.dumps(found))
        return
    print(words)
    for one in report.findings[:_FINDINGS_SHOWN]:
        print(shown(f"{one.code}: {one.path}: {one.words}"))
    more = len(report.findings) - _FINDINGS_SHOWN
    if more > 0:
        print(f"and {more:,} more (--json names them all)")
