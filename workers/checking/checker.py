"""Compare tree, index, spool, quarantine, queues, pairs and journal; mend what can be mended.

It may run beside a daemon at any time. Nothing is locked for longer than a look, the index is read
in short pages, and whatever looks wrong is looked at again: what is on its way at that moment is no
drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from config.layout import Layout
from workers import clock, durable
from workers.checking.codes import Code
from workers.checking.columns import compare_columns, examine_database
from workers.checking.findings import Report
from workers.checking.journaled import compare_journal
from workers.checking.lost import settle_lost
from workers.checking.modes import ModeCheck
from workers.checking.paired import compare_pairs
from workers.checking.quarantined import compare_quarantine
from workers.checking.queued import compare_queues
from workers.checking.scene import Scene
from workers.checking.spooled import compare_spool
from workers.checking.strays import settle_strays
from workers.checking.suspects import Suspects
from workers.checking.tree import compare_tree
from workers.errors import StoreUnavailable
from workers.filing.rows import insert_event
from workers.identity import check_archive, check_identity, check_writable


def check(scene: Scene) -> Report:
    """Run every comparison.

    Raises
    ------
    StoreUnavailable
        Archive or spool is missing or another one; with `repair` also: it is read-only, or another
        check repairs. Nothing was touched.
    """
    _check_stores(scene)
    if not scene.repair:
        _compare(scene)
        return scene.report
    with _alone(scene.layout):
        _compare(scene)
        _record(scene)
    return scene.report


def _compare(scene: Scene) -> None:
    ModeCheck(scene).look_at_stores()
    examine_database(scene)
    with Suspects() as suspects:
        compare_tree(scene, suspects)
        settle_strays(scene, suspects)
        settle_lost(scene, suspects)
        compare_pairs(scene, suspects)
    compare_spool(scene)  # after the tree: an entry goes once its file is surely there
    compare_columns(scene)
    compare_quarantine(scene)
    compare_journal(scene)
    compare_queues(scene)


def _check_stores(scene: Scene) -> None:
    layout, identities = scene.layout, scene.index.identities()
    check_archive(layout, identities.archive)
    check_identity(layout.spool, identities.spool, "spool")
    for store, what in (
        (layout.archive, "archive"),
        (layout.spool, "spool"),
        (layout.quarantine, "quarantine"),
    ):
        try:
            check_writable(store, what)
        except StoreUnavailable:
            if scene.repair:
                raise
            if store == layout.archive and layout.is_read_only:
                continue  # as it was adopted
            scene.tell(Code.STORE_READ_ONLY, what)


def _record(scene: Scene) -> None:
    """Tell the audit how many of what were mended."""
    mended = {str(code): count for code, count in scene.report.mended().items() if count}
    if mended:
        with scene.index.write() as connection:
            insert_event(connection, "check-repaired", clock.utc_now(), mended=mended)


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Let one check repair at a time."""
    with open(layout.locks / "check", "ab") as lock:
        if not durable.try_lock(lock.fileno()):
            raise StoreUnavailable("another check repairs here already. Nothing was touched.")
        yield
