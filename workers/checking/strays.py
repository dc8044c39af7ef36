"""Files of the tree that no row was seen for: on their way, of ours, misplaced, or strangers."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.checking.codes import Code
from workers.checking.findings import Finding, Outcome
from workers.checking.handing import Stray, hand_to_filing
from workers.checking.mending import move_back
from workers.checking.reading import digest_of, facts_of
from workers.checking.rows import (
    InstanceRow,
    folder_exists,
    instances_by_path,
    instances_by_uid,
)
from workers.checking.scene import Scene
from workers.checking.suspects import Suspects
from workers.checking.waiting import waiting_like
from workers.checking.walking import series_folder
from workers.errors import DataError
from workers.filing import names
from workers.filing.examining import is_litter
from workers.header.facts import InstanceFacts
from workers.header.read import read_header
from workers.spool.batches import EntryName


@dataclass(frozen=True, slots=True)
class StrayFacts:
    """What is known of a file that no row was seen for."""

    litter: bool
    readable: bool
    known_elsewhere: bool = False
    """The index has its SOPInstanceUID at another path."""
    there_missing: bool = False
    """And nothing lies there."""
    same_bytes: bool = False
    """And this file is what was filed there."""
    in_place: bool = False
    """Its header says that it belongs where it lies."""


def judge_stray(facts: StrayFacts) -> Code:
    """Decide what a stray file is."""
    if facts.litter:
        return Code.LITTER
    if not facts.readable:
        return Code.STRANGER
    if facts.known_elsewhere:
        moved = facts.there_missing and facts.same_bytes
        return Code.MISPLACED if moved else Code.STRAY_COPY
    return Code.FILE_WITHOUT_ROW if facts.in_place else Code.STRANGER


def settle_strays(scene: Scene, suspects: Suspects) -> None:
    """Look at every stray file again, and tell or mend what is really wrong."""
    done = 0
    for paths in suspects.strays():
        _settle_batch(scene, suspects, paths)
        done += len(paths)
        scene.progress("files without a row", done, 0)


def _settle_batch(scene: Scene, suspects: Suspects, paths: Sequence[str]) -> None:
    there = _still_there(scene, paths)
    uids = {path: _stem(path) for path in there if names_an_instance(path)}
    _drop_committed(scene, there)
    if not there:
        return
    waiting = waiting_like(
        scene.index, scene.layout, there, {path: uids[path] for path in there if path in uids}
    )
    if waiting and scene.repair:
        _end_what_waits(scene, waiting)
    _drop_committed(scene, there)  # first the spool, then the index: nothing slips between
    handed = []
    for path in there:
        if path in waiting:
            continue
        stray = _examine(scene, path)
        code, detail, row = _judge(scene, stray)
        if code is Code.FILE_WITHOUT_ROW and scene.repair:
            handed.append(stray)
        elif code is Code.MISPLACED and row is not None:
            suspects.found(row.id)
            place, digest = row.path, row.sha256
            scene.settle(code, path, f"belongs to {place}",
                         lambda path=path, place=place, digest=digest:  # type: ignore[misc]
                         move_back(scene.layout, path, place, digest))  # fmt: skip
        else:
            scene.tell(code, path, detail)
    for stray, why_not in hand_to_filing(scene, handed):
        outcome = Outcome.LEFT if why_not else Outcome.MENDED
        scene.report.add(Finding(Code.FILE_WITHOUT_ROW, stray.path), outcome, why_not or "")


def _still_there(scene: Scene, paths: Sequence[str]) -> dict[str, os.stat_result]:
    there = {}
    for path in paths:
        facts = facts_of(scene.layout.archive / path)
        if facts is not None and stat.S_ISREG(facts.st_mode):
            there[path] = facts
    return there


def names_an_instance(path: str) -> bool:
    """Tell whether a path is one that filing could have given."""
    return series_folder(os.path.dirname(path)) is not None and path.endswith(".dcm")


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".dcm")


def _drop_committed(scene: Scene, there: dict[str, os.stat_result]) -> None:
    """Forget the files whose row has been committed by now."""
    for path in instances_by_path(scene.index, there):
        there.pop(path, None)


def _end_what_waits(scene: Scene, waiting: Mapping[str, EntryName]) -> None:
    """File the entries whose files are in the tree already: a killed worker, or a killed check."""
    from workers.jobs import Workplace, file_now  # RQ loads only where something is mended

    place = Workplace(scene.settings)
    try:
        file_now(place, list(waiting.values()))
    finally:
        place.close()


def _examine(scene: Scene, path: str) -> Stray:
    try:
        return Stray(path, read_header(scene.layout.archive / path).facts)
    except DataError as error:
        return Stray(path, None, str(error))
    except OSError as error:
        return Stray(path, None, error.strerror or type(error).__name__)


def _judge(scene: Scene, stray: Stray) -> tuple[Code, str, InstanceRow | None]:
    litter = is_litter(os.path.basename(stray.path))
    if stray.facts is None:
        return judge_stray(StrayFacts(litter, readable=False)), "" if litter else stray.why, None
    archive = scene.layout.archive
    uid = stray.facts.sop_instance_uid
    row = instances_by_uid(scene.index, [uid]).get(uid)
    if row is None:
        in_place = _stem(stray.path) == uid and lies_in_place(scene, stray.path, stray.facts)
        code = judge_stray(StrayFacts(False, readable=True, in_place=in_place))
        return code, "an instance" if code is Code.STRANGER else "", None
    missing = facts_of(archive / row.path) is None
    same = missing and _digest(scene, stray.path) == row.sha256
    code = judge_stray(StrayFacts(False, True, True, missing, same))
    words = (
        "" if same or not missing else ", which is missing; its bytes differ from what was filed"
    )
    return code, f"of {row.path}{words}", row


def _digest(scene: Scene, path: str) -> str:
    try:
        return digest_of(scene.layout.archive / path)
    except OSError:
        return ""


def lies_in_place(scene: Scene, path: str, facts: InstanceFacts) -> bool:
    """Tell whether the header of an instance says that it belongs into its folder.

    The folder is one that the index gave its series, or the one that it would get.
    """
    place = series_folder(os.path.dirname(path))
    if place is None:
        return False
    with scene.index.read() as connection:
        if folder_exists(connection, place.home, place.digits, facts.series_instance_uid):
            return True
    study, series = facts.study_instance_uid, facts.series_instance_uid
    digits = "/".join((*names.uid_digits(study), *names.uid_digits(series)))
    homes = {
        f"{names.patient_name(facts.patient_id, study, prefix).name}"
        f"/{names.accession_name(facts.accession_number, study).name}"
        for prefix in ("", *(policy.patient_id_prefix for policy in scene.settings.sources))
    }
    return digits == place.digits and place.home in homes
