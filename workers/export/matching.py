"""Rows of the metadata dictionary that have asked-for values: narrowed in SQL, decided in Python.

SQL finds the series that may have such a row; whether one has is decided by the row as the export
writes it, since references are resolved and instances counted only there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from workers.errors import ExportFailed
from workers.export.dictionary import COLUMNS, REFERENCES, Level, dictionary_rows
from workers.filing.rows import DEFAULT_SUBSERIES
from workers.index.engine import MetadataIndex
from workers.index.searching import matches
from workers.index.tables import folder, instance, series, study

_OF_STUDY = ("patient_ID", "study", "study_description")
_OF_SERIES = ("series", "series_description", "modality")


def check_columns(asked: Mapping[str, str]) -> None:
    """Raise ExportFailed for a name that is no column, with the nearest that is."""
    for name in asked:
        if name not in COLUMNS:
            folded = {one.lower(): one for one in COLUMNS}
            near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.0)[0]
            raise ExportFailed(f"no column {name!r}; the nearest is {folded[near]}")


def find_rows(
    index: MetadataIndex, asked: Mapping[str, str], level: Level = "series"
) -> Iterator[dict[str, Any]]:
    """Yield the rows whose columns have these values, ordered as the export is.

    A value is exact but for `*`, which stands for anything; "" asks for a blank. Numbers are
    compared as numbers.
    """
    check_columns(asked)
    wanted = {name: _predicate(value) for name, value in asked.items()}
    studies = sa.and_(sa.true(), *_of_studies(asked))
    for row in dictionary_rows(index, level, only=_may_match(asked), of_studies=studies):
        if all(fits(row[name]) for name, fits in wanted.items()):
            yield row


def _predicate(asked: str) -> Callable[[object], bool]:
    """Return what tells whether the value of a row is the one that was asked for."""
    pattern = re.compile(".*".join(map(re.escape, asked.split("*"))), re.DOTALL)

    def fits(value: object) -> bool:
        if isinstance(value, int | float) and "*" not in asked:
            return _number(asked) == value
        return pattern.fullmatch("" if value is None else str(value)) is not None

    return fits


def _may_match(asked: Mapping[str, str]) -> sa.ColumnElement[bool]:
    """Ask of a row of series joined with its study whether it may give such a row."""
    own = _of_studies(asked)
    own += [matches(series.c[name], asked[name]) for name in _OF_SERIES if name in asked]
    if (least := _number(asked.get("instances", ""))) is not None:
        own.append(series.c.instances >= least)
    told = (*_OF_STUDY, *_OF_SERIES, "instances")
    members = [_of_instance(name, value) for name, value in asked.items() if name not in told]
    if members:
        found = sa.select(instance.c.id).join(folder, folder.c.id == instance.c.folder_id)
        same = instance.c.series_id == series.c.id
        own.append(sa.exists(found.where(same, *members).correlate(series, study)))
    return sa.and_(sa.true(), *own)


def _of_studies(asked: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    return [matches(study.c[name], asked[name]) for name in _OF_STUDY if name in asked]


def _of_instance(name: str, value: str) -> sa.ColumnElement[bool]:
    if name == "folder":
        return matches(_folder_path(), value)
    if name == "file_path":
        return matches(_folder_path() + "/" + instance.c.file_name, value)
    column = instance.c[name]
    if value == "" or (name == "subseries" and value == DEFAULT_SUBSERIES):
        return sa.or_(column.is_(None), sa.cast(column, sa.Text).in_(("", value)))
    if isinstance(column.type, sa.Float):
        return column.is_not(None) if "*" in value else column == _number(value)
    if name in REFERENCES:
        other, target = instance.alias(), series.alias()
        resolved = (
            sa.select(other.c.instance_uid)
            .join(target, target.c.id == other.c.series_id)
            .where(matches(target.c.series, value))
        )
        return sa.or_(matches(column, value), column.in_(resolved))
    return matches(column, value)


def _folder_path() -> sa.ColumnElement[str]:
    return folder.c.home + "/studies/" + folder.c.digits


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
