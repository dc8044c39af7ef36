"""Read the index page by page, each page in a short transaction of its own: nobody waits for us."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.checking.walking import HERE, STUDIES, SeriesFolder, place_key, series_folder
from workers.filing.rows import header_columns
from workers.header.facts import InstanceFacts
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, series

_FOLDERS = 20
PAGE = 500


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """What the index says of one file of the tree."""

    id: int
    uid: str
    home: str
    digits: str
    file_name: str
    size: int
    sha256: str
    adopted: bool

    @property
    def path(self) -> str:
        """Relative to the archive."""
        inner = "" if self.digits == HERE else f"{self.digits}/"
        return f"{self.home}/{STUDIES}/{inner}{self.file_name}"


_INSTANCE = (
    sa.select(instance.c.id, instance.c.instance_uid, folder.c.home, folder.c.digits,
              instance.c.file_name, instance.c.size, instance.c.sha256, folder.c.adopted)
    .join(folder, folder.c.id == instance.c.folder_id)
)  # fmt: skip


def instances_in_order(index: MetadataIndex) -> Iterator[InstanceRow]:
    """Yield every instance in the order of the walk (`place_key`); some folders' are held."""
    for home in _homes(index):
        with index.read() as connection:
            found = connection.execute(
                sa.select(folder.c.id, folder.c.digits).where(folder.c.home == home)
            )
            folders = sorted(found, key=lambda row: place_key("", row.digits, ""))
        # an adopted folder may hold several series, and then has a row for each
        same = [[row.id for row in rows] for _, rows in groupby(folders, lambda row: row.digits)]
        for start in range(0, len(same), _FOLDERS):
            ids = [one for ids in same[start : start + _FOLDERS] for one in ids]
            with index.read() as connection:
                chosen = _INSTANCE.where(instance.c.folder_id.in_(ids))
                rows = [InstanceRow(*row) for row in connection.execute(chosen)]
            rows.sort(key=lambda row: place_key(row.home, row.digits, row.file_name))
            yield from rows


def _homes(index: MetadataIndex) -> Iterator[str]:
    home = folder.c.home
    column = sa.collate(home, "C") if index.engine.dialect.name == "postgresql" else home
    last = ""
    while True:
        with index.read() as connection:
            page = connection.execute(
                sa.select(home).where(column > last).group_by(home).order_by(column).limit(PAGE)
            )
            homes = list(page.scalars())
        yield from homes
        if len(homes) < PAGE:
            return
        last = homes[-1]


def instances_by_id(index: MetadataIndex, ids: Iterable[int]) -> dict[int, InstanceRow]:
    """Read some instances afresh."""
    with index.read() as connection:
        found = connection.execute(_INSTANCE.where(instance.c.id.in_(list(ids))))
        return {row.id: InstanceRow(*row) for row in found}


def instances_by_uid(index: MetadataIndex, uids: Iterable[str]) -> dict[str, InstanceRow]:
    """Read some instances afresh, by SOPInstanceUID."""
    with index.read() as connection:
        found = connection.execute(_INSTANCE.where(instance.c.instance_uid.in_(list(uids))))
        return {row.instance_uid: InstanceRow(*row) for row in found}


def instances_by_path(index: MetadataIndex, paths: Iterable[str]) -> dict[str, InstanceRow]:
    """Read afresh what the index has at these paths of the tree."""
    names: dict[SeriesFolder, list[str]] = {}
    for path in paths:
        top, _, name = path.rpartition("/")
        place = series_folder(top)
        if place is not None and _is_text(path):
            names.setdefault(place, []).append(name)
    found = {}
    with index.read() as connection:
        for place, some in names.items():
            rows = connection.execute(
                _INSTANCE.where(
                    folder.c.home == place.home,
                    folder.c.digits == place.digits,
                    instance.c.file_name.in_(some),
                )
            )
            found.update({row.path: row for row in (InstanceRow(*row) for row in rows)})
    return found


def _is_text(path: str) -> bool:
    """Tell whether the index can know this name: it holds text, and the tree may hold any bytes."""
    return path.isprintable() or not any("\ud800" <= letter <= "\udfff" for letter in path)


def has_adopted(index: MetadataIndex) -> bool:
    """Tell whether folders of a delivery were adopted where they lie."""
    with index.read() as connection:
        found = connection.execute(sa.select(folder.c.id).where(folder.c.adopted).limit(1))
        return found.first() is not None


def count_instances(index: MetadataIndex) -> int:
    with index.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(instance)).scalar_one()


@dataclass(frozen=True, slots=True)
class ColumnsRow:
    """Columns of one instance that say what its facts or its folder say too."""

    id: int
    uid: str
    file_name: str
    named_well: bool
    same_series: bool
    wrong: tuple[str, ...]
    """Columns of the header that differ from the facts."""


def columns_of_instances(index: MetadataIndex, *, with_facts: bool) -> Iterator[ColumnsRow]:
    """Yield the instances whose columns contradict each other; `with_facts` reads every header."""
    named = instance.c.instance_uid + ".dcm"
    misnamed = sa.and_(instance.c.file_name != named, ~folder.c.adopted)
    odd = sa.or_(misnamed, folder.c.series_id != instance.c.series_id)
    chosen = sa.select(instance, folder.c.series_id.label("folder_series"), folder.c.adopted).join(
        folder, folder.c.id == instance.c.folder_id
    )
    if not with_facts:
        chosen = chosen.where(odd)
    for row in paged(index, chosen, instance.c.id):
        same = row.folder_series == row.series_id
        wrong = differing_columns(row) if with_facts else ()
        named_well = row.adopted or row.file_name == f"{row.instance_uid}.dcm"
        if wrong or not (same and named_well):
            yield ColumnsRow(row.id, row.instance_uid, row.file_name, named_well, same, wrong)


def differing_columns(row: Any) -> tuple[str, ...]:
    """Name the columns of an instance that differ from what its facts give."""
    values = dict(row._mapping)
    try:
        wanted = header_columns(InstanceFacts.from_json(values["facts"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ("facts",)
    del wanted["facts"]
    return tuple(name for name, value in wanted.items() if values[name] != value)


@dataclass(frozen=True, slots=True)
class CountRow:
    """A series and how many instances it has."""

    id: int
    series: str
    said: int
    counted: int


def series_counts(index: MetadataIndex) -> Iterator[CountRow]:
    """Yield every series with what it says and what it has, each page one snapshot."""
    counted = (
        sa.select(sa.func.count())
        .select_from(instance)
        .where(instance.c.series_id == series.c.id)
        .scalar_subquery()
    )
    chosen = sa.select(series.c.id, series.c.series, series.c.instances, counted.label("counted"))
    for row in paged(index, chosen, series.c.id):
        yield CountRow(row.id, row.series, row.instances, row.counted)


def paged(index: MetadataIndex, chosen: sa.Select[Any], key: sa.Column[Any]) -> Iterator[Any]:
    """Yield the rows of a select by a unique key, a page at a time."""
    last: Any = None
    name = key.name
    while True:
        page = chosen.order_by(key).limit(PAGE)
        if last is not None:
            page = page.where(key > last)
        with index.read() as connection:
            rows = connection.execute(page).all()
        yield from rows
        if len(rows) < PAGE:
            return
        last = rows[-1]._mapping[name]


def folder_exists(connection: Connection, home: str, digits: str, uid: str) -> bool:
    """Tell whether the index has this folder for this series."""
    found = connection.execute(
        sa.select(folder.c.id)
        .join(series, series.c.id == folder.c.series_id)
        .where(folder.c.home == home, folder.c.digits == digits, series.c.series == uid)
    )
    return found.first() is not None
