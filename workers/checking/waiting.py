"""What waits in the spool, and so is on its way: whose file stands in the tree without a row."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from config.layout import Layout
from workers.errors import DataError
from workers.filing.rows import known_arrivals
from workers.header.read import read_header
from workers.index.engine import MetadataIndex
from workers.spool.batches import EntryName, waiting_entries


def waiting_like(
    index: MetadataIndex,
    layout: Layout,
    files: Mapping[str, os.stat_result],
    uids: Mapping[str, str],
) -> dict[str, EntryName]:
    """Find the entries that wait for what these files of the tree are.

    Filing unlinks an entry after its commit: what is not found here is committed by now, or is on
    nobody's way. `files` holds the lstat of each file by path, `uids` its SOPInstanceUID: where
    spool and tree lie on two file systems an entry is no link of its file, and then every header
    in the spool is read.
    """
    by_inode = {(facts.st_dev, facts.st_ino): path for path, facts in files.items()}
    by_uid = {uid: path for path, uid in uids.items()}
    found: dict[str, EntryName] = {}
    for entry in waiting_entries(layout):
        path = entry.where(layout)
        try:
            facts = os.lstat(path)
            if not stat.S_ISREG(facts.st_mode):
                continue
            like = by_inode.get((facts.st_dev, facts.st_ino))
            if like is None and by_uid:
                like = by_uid.get(read_header(path).facts.sop_instance_uid)
        except (OSError, DataError):
            continue
        if like is not None:
            found[like] = entry
    with index.read() as connection:  # what is done already waits for nothing
        done = known_arrivals(connection, [entry.identifier for entry in found.values()])
    return {path: entry for path, entry in found.items() if entry.identifier not in done}
