"""Give entries their place in the tree: a folder in the index, a name in it, both durable.

Steps 2 to 4 of the filing protocol (protocol.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import sqlalchemy as sa

from config.settings import Settings
from workers import clock, durable, rooted
from workers.errors import BadIdentity, DataError
from workers.filing.journal import append_facts
from workers.filing.linking import Linker, OpenFolders, same_bytes, same_file
from workers.filing.meeting import Homes, Meeting
from workers.filing.placing import Place, find_place, place_instance
from workers.filing.poison import Hand
from workers.filing.rows import KnownInstance, folders_in_use, known_instances
from workers.filing.work import Work, quarantine_work
from workers.index.engine import MetadataIndex


class Entrance:
    """Where the entries of one worker come into the tree."""

    def __init__(
        self, index: MetadataIndex, settings: Settings, linker: Linker, meeting: Meeting
    ) -> None:
        self._index = index
        self._layout = settings.layout
        self._linker = linker
        self._meeting = meeting

    # 2. study, series, folder ---------------------------------------------------------------------

    def place(self, works: Sequence[Work]) -> dict[str, KnownInstance]:
        """Find the folder of each new instance, made where there is none; return what is known.

        Of a growing series nothing is written here.
        """
        found = [work for work in works if work.found is not None]
        places: dict[tuple[str, ...], Place | None] = {}
        with self._index.read() as connection:
            known = known_instances(connection, {work.uid for work in found})
            for work in found:
                if work.uid in known:
                    continue
                if work.home not in places:
                    prefix = work.policy.patient_id_prefix
                    places[work.home] = find_place(connection, work.instance.facts, prefix=prefix)
                work.place = places[work.home]
        homeless = [work for work in found if work.uid not in known and work.place is None]
        return known | self._make_places(homeless) if homeless else known

    def _make_places(self, works: Sequence[Work]) -> dict[str, KnownInstance]:
        """Make what is missing, all in one transaction; return what came to be known meanwhile."""
        fresh: list[dict[str, object]] = []
        places: dict[tuple[str, ...], Place | DataError] = {}
        with self._index.write() as connection:
            known = known_instances(connection, {work.uid for work in works})
            for work in works:
                if work.uid in known:
                    continue
                if work.home not in places:
                    places[work.home] = self._place_of(connection, work, fresh)
                place = places[work.home]
                if isinstance(place, Place):
                    work.place = place
            append_facts(self._layout.output, fresh, self._layout.file_mode)
        for work in works:
            refused = places.get(work.home)
            if isinstance(refused, DataError) and work.uid not in known:
                self._refuse(work, refused.code, str(refused))
        return known

    def _place_of(
        self, connection: sa.Connection, work: Work, fresh: list[dict[str, object]]
    ) -> Place | DataError:
        """Find or make the place of an entry; a new series' source is noted in `fresh`."""
        facts, source = work.instance.facts, work.source
        try:
            place, new = place_instance(
                connection,
                facts,
                prefix=work.policy.patient_id_prefix,
                source=source.key,
                at=clock.utc_now(),
                labels=work.labels,
            )
        except DataError as error:
            return error
        if new:
            fresh.append(
                {
                    "kind": "source",
                    "study": facts.study_instance_uid,
                    "series": facts.series_instance_uid,
                    "source": source.key,
                    **{key: text for key, text in asdict(work.labels).items() if text},
                }
            )
        return place

    # 3. and 4. link, and make the folders durable -------------------------------------------------

    def known(self, works: Sequence[Work]) -> dict[str, KnownInstance]:
        """Return which of these the index knows by now."""
        wanted = {work.uid for work in works if work.found and work.row is None}
        with self._index.read() as connection:
            return known_instances(connection, wanted)

    def link(
        self, works: Sequence[Work], known: Mapping[str, KnownInstance], hand: Hand
    ) -> list[Work]:
        """Link what is new, compare what is known; return what must be looked at again."""
        again = []
        homes: Homes = {}
        seen: set[str] = set()
        with OpenFolders(self._layout.archive, self._layout.folder_mode) as folders:
            with hand.holding() as hold:
                for work in works:
                    if work.found is None or work.row is not None:
                        continue
                    hold(work.identifier)
                    if work.uid in known:
                        self._meeting.meet_known(work, known[work.uid], homes)
                    elif work.uid in seen or work.place is None:
                        again.append(work)  # twice in a batch: the second after the first's commit
                    else:
                        seen.add(work.uid)
                        self._link_new(work, work.place, folders)
            self._make_durable(works, folders)
        return again

    def _make_durable(self, works: Sequence[Work], folders: OpenFolders) -> None:
        """Make the names of linked entries durable; those of folders without a row yet too.

        A folder that exists was perhaps made by a run that was killed before it was durable.
        """
        linked = {work.place.folder: work.place.folder_id for work in works
                  if work.place is not None and work.target is not None}  # fmt: skip
        if not linked:
            return
        with self._index.read() as connection:
            used = folders_in_use(connection, list(linked.values()))
        parents: set[Path] = set()
        for folder, folder_id in linked.items():
            os.fsync(folders.open(folder))
            if folder_id not in used:
                above = (self._layout.archive / folder).parents
                inside = len(self._layout.archive.parts)
                parents.update(one for one in above if len(one.parts) >= inside)
        for parent in parents:
            durable.fsync_folder(parent)

    def _link_new(self, work: Work, place: Place, folders: OpenFolders) -> None:
        """Link an entry that no row knows to its final name."""
        target = self._layout.archive / f"{place.folder}/{work.uid}.dcm"
        if not os.path.normpath(target).startswith(f"{os.path.normpath(self._layout.archive)}/"):
            self._refuse(work, BadIdentity.code, "its folder would lie outside the archive")
            return
        try:
            self._linker.link_into(folders.open(place.folder), work, target.name)
        except FileExistsError:
            rooted.is_file(self._layout.archive, target.relative_to(self._layout.archive))
            if not same_file(work, target):
                if not same_bytes(work, target):
                    self._meeting.meet_unknown(work, target)
                    return
                durable.fsync_file(target)  # who wrote it may not have: the entry goes
        work.target = target

    def _refuse(self, work: Work, code: str, reason: str) -> None:
        quarantine_work(self._layout.quarantine, work, "quarantined", code, reason)
