"""What the index has of an archive, laid beside what the archive holds: new, known or missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from workers.adopting.walking import Finding, FindingCode, FoundFile, Leaf, walk_home
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance

_Facts = tuple[int, int | None]
"""Size and mtime_ns."""


class KnownFiles:
    """The index beside a walk, one home (<PatientID>/<AccessionNumber>) at a time, in its order.

    Without an index nothing is known.
    """

    def __init__(self, index: MetadataIndex | None) -> None:
        self._index = index
        self._home = ""
        self._left: dict[str, dict[str, _Facts]] = {}
        """Of this home what the walk has not come by yet: digits, file name."""
        self._walked: set[str] = set()
        self._with_gaps: set[str] = set()

    def new_of(self, leaf: Leaf) -> list[FoundFile]:
        """Return the files of a folder that the index does not have as they are now."""
        if leaf.home != self._home:
            self._turn_to(leaf.home)
        known = self._left.get(leaf.digits, {})
        return [one for one in leaf.files if known.pop(one.name, None) != (one.size, one.mtime_ns)]

    def missing(self, archive: Path) -> Iterator[Finding]:
        """Name what the index has and the archive has not, when everything is walked.

        What was found in another place by then is not missing any more.
        """
        self._turn_to("")
        for home in self._homes():
            if home in self._walked and home not in self._with_gaps:
                continue
            there = set()
            if home in self._walked:
                leaves = (one for one in walk_home(archive, home) if isinstance(one, Leaf))
                there = {(one.digits, file.name) for one in leaves for file in one.files}
            for digits, files in self._files_in(home).items():
                for name in files:
                    if (digits, name) not in there:
                        words = "the index has it, the archive has not"
                        path = f"{Leaf(home, digits, ()).path}/{name}"
                        yield Finding(FindingCode.MISSING, path, words)

    def _turn_to(self, home: str) -> None:
        if any(self._left.values()):
            self._with_gaps.add(self._home)
        self._walked.add(home)
        self._home, self._left = home, self._files_in(home) if home else {}

    def _files_in(self, home: str) -> dict[str, dict[str, _Facts]]:
        if self._index is None:
            return {}
        found: dict[str, dict[str, _Facts]] = {}
        with self._index.read() as connection:
            rows = connection.execute(
                sa.select(folder.c.digits, instance.c.file_name, instance.c.size,
                          instance.c.mtime_ns)
                .join(instance, instance.c.folder_id == folder.c.id)
                .where(folder.c.home == home)
                .order_by(instance.c.folder_id, instance.c.id)
            )  # fmt: skip
            for digits, name, size, mtime_ns in rows:
                found.setdefault(digits, {})[name] = (size, mtime_ns)
        return found

    def _homes(self) -> list[str]:
        if self._index is None:
            return []
        with self._index.read() as connection:
            chosen = sa.select(folder.c.home).distinct().order_by(folder.c.home)
            return list(connection.execute(chosen).scalars())
