"""Compare the index with itself: counts, columns, rows that nothing leads to, its own integrity."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from workers.checking.codes import Code
from workers.checking.rows import (
    ColumnsRow,
    CountRow,
    columns_of_instances,
    differing_columns,
    paged,
    series_counts,
)
from workers.checking.scene import Scene
from workers.filing.rows import header_columns
from workers.header.facts import InstanceFacts
from workers.index.tables import arrival, folder, instance, series

_DAMAGES_TOLD = 100
_IN_TREE = ("filed", "duplicate")


def compare_columns(scene: Scene) -> None:
    """Compare what rows say of each other; with checksums every header's columns too."""
    for row in series_counts(scene.index):
        scene.report.compare("series")
        if row.said != row.counted:
            _settle_count(scene, row)
    for odd in columns_of_instances(scene.index, with_facts=scene.checksums):
        _settle_columns(scene, odd)
    _tell_orphans(scene)


def examine_database(scene: Scene) -> None:
    """Ask SQLite whether it is whole: quickly, with checksums thoroughly (every index too)."""
    if scene.index.engine.dialect.name != "sqlite":
        return  # PostgreSQL looks after its own pages (data checksums, amcheck)
    pragma = "integrity_check" if scene.checksums else "quick_check"
    with scene.index.read() as connection:
        for (words,) in connection.exec_driver_sql(f"PRAGMA {pragma}({_DAMAGES_TOLD})"):
            if words != "ok":
                scene.tell(Code.INDEX_DAMAGED, "index.sqlite", str(words))
    with scene.index.read() as connection:
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(_DAMAGES_TOLD):
            detail = f"row {row[1]} points to a row of {row[2]} that is not there"
            scene.tell(Code.INDEX_DAMAGED, str(row[0]), detail)


def _settle_count(scene: Scene, row: CountRow) -> None:
    def mend() -> None:
        counted = sa.select(sa.func.count()).where(instance.c.series_id == row.id)
        with scene.index.write() as connection:
            connection.execute(
                series.update()
                .where(series.c.id == row.id)
                .values(instances=counted.scalar_subquery())
            )

    detail = f"says {row.said}, has {row.counted}"
    scene.settle(Code.COUNT_DIFFERS, f"series {row.series}", detail, mend)


def _settle_columns(scene: Scene, odd: ColumnsRow) -> None:
    where = f"instance {odd.uid}"
    if not odd.same_series:
        scene.tell(Code.COLUMNS_DIFFER, where, "its folder is one of another series")
    if not odd.named_well:
        scene.tell(Code.COLUMNS_DIFFER, where, f"its file is called {odd.file_name}")
    if odd.wrong == ("facts",):
        scene.tell(Code.COLUMNS_DIFFER, where, "its facts cannot be read")
    elif odd.wrong:
        scene.settle(Code.COLUMNS_DIFFER, where, ", ".join(odd.wrong), lambda: _rewrite(scene, odd))


def _rewrite(scene: Scene, odd: ColumnsRow) -> None:
    with scene.index.write() as connection:
        row: Any = connection.execute(sa.select(instance).where(instance.c.id == odd.id)).one()
        wanted = header_columns(InstanceFacts.from_json(row.facts))
        changes = {name: wanted[name] for name in differing_columns(row)}
        if changes:
            connection.execute(instance.update().where(instance.c.id == odd.id).values(changes))


def _tell_orphans(scene: Scene) -> None:
    filed = sa.select(arrival.c.id, arrival.c.entry, arrival.c.instance_uid).where(
        arrival.c.outcome.in_(_IN_TREE),
        arrival.c.instance_uid.is_not(None),
        ~sa.exists().where(instance.c.instance_uid == arrival.c.instance_uid),
    )
    for row in paged(scene.index, filed, arrival.c.id):
        where = f"instance {row.instance_uid}"
        scene.tell(Code.ARRIVAL_WITHOUT_INSTANCE, where, f"entry {row.entry}")
    empty = sa.select(folder.c.id, folder.c.home, folder.c.digits).where(
        ~sa.exists().where(instance.c.folder_id == folder.c.id)
    )
    for row in paged(scene.index, empty, folder.c.id):
        scene.tell(Code.EMPTY_ROWS, f"folder {row.home}/studies/{row.digits}")
    bare = sa.select(series.c.id, series.c.series).where(
        ~sa.exists().where(instance.c.series_id == series.c.id),
        ~sa.exists().where(folder.c.series_id == series.c.id),
    )
    for row in paged(scene.index, bare, series.c.id):
        scene.tell(Code.EMPTY_ROWS, f"series {row.series}")
