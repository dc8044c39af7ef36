"""Inspect any DICOM file or folder: roles, completeness, SUV and the pair, with reasons.

Nothing is changed and no index is needed. Series count as quiet, since nothing more is on its way.
Every file under the path is accounted for: read into a series, or rejected with its reason.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workers.completeness.roles import RoleVerdict, judge_role
from workers.completeness.series import Completeness, judge_completeness
from workers.completeness.stacks import volume_instances
from workers.errors import DataError
from workers.filing.examining import is_litter
from workers.header.facts import InstanceFacts
from workers.header.read import MediaDirectory, read_header
from workers.pairing.selection import (
    Override,
    PairDecision,
    PairingPolicy,
    SeriesEvidence,
    decide_pair,
)
from workers.pairing.suv import SuvVerdict, judge_suv

Progress = Callable[[int], None]
"""Called with the number of files looked at so far."""


@dataclass(frozen=True)
class Rejected:
    """A file that is in no series, and why."""

    path: str
    reason: str

    def to_json_object(self) -> dict[str, Any]:
        return {"path": self.path, "reason": self.reason}


@dataclass(frozen=True)
class InspectedSeries:
    """The verdicts on one series; `suv` only where it says it is PET.

    `facts` and `files` are parallel: what was judged, and where it lies.
    """

    series_uid: str
    modality: str
    description: str
    instances: int
    role: RoleVerdict
    completeness: Completeness
    suv: SuvVerdict | None
    facts: tuple[InstanceFacts, ...]
    files: tuple[str, ...]

    def to_json_object(self) -> dict[str, Any]:
        return {
            "series": self.series_uid,
            "modality": self.modality,
            "series_description": self.description,
            "instances": self.instances,
            "role": str(self.role.role),
            "role_reasons": list(self.role.reasons),
            "completeness": {
                "state": str(self.completeness.state),
                "expected": self.completeness.expected,
                "received": self.completeness.received,
                "reasons": list(self.completeness.reasons),
            },
            "suv": _suv_object(self.suv) if self.suv is not None else None,
        }


@dataclass(frozen=True)
class InspectedStudy:
    """One study and the pair that it would give."""

    study_uid: str
    patient_id: str
    series: tuple[InspectedSeries, ...]
    pair: PairDecision

    def to_json_object(self) -> dict[str, Any]:
        return {
            "study": self.study_uid,
            "patient_ID": self.patient_id,
            "series": [one.to_json_object() for one in self.series],
            "pair": {
                "pet": self.pair.pet,
                "ct": self.pair.ct,
                "state": str(self.pair.state),
                "reasons": list(self.pair.reasons),
            },
        }


@dataclass(frozen=True)
class Inspection:
    """All that lies under a path."""

    studies: tuple[InspectedStudy, ...]
    rejected: tuple[Rejected, ...]

    def to_json_object(self) -> dict[str, Any]:
        """Return the object that `inspect --json` prints."""
        return {
            "studies": [one.to_json_object() for one in self.studies],
            "rejected": [one.to_json_object() for one in self.rejected],
        }


def inspect_path(
    path: Path,
    *,
    progress: Progress | None = None,
    quiet: bool = True,
    policy: PairingPolicy | None = None,
    override: Override | None = None,
) -> Inspection:
    """Read every file under a path and judge what it finds; an override counts for every study.

    Raises OSError only for the path itself; a file that cannot be read is rejected with the reason.
    """
    read = _Reading()
    for count, file in enumerate(_files(path, read.reject), start=1):
        read.take(file)
        if progress is not None:
            progress(count)
    policy = policy or PairingPolicy()
    evidence = {
        uid: _evidence(uid, tuple(instances), quiet) for uid, instances in read.series.items()
    }
    studies: dict[str, list[SeriesEvidence]] = {}
    for one in evidence.values():
        studies.setdefault(one.study_uid, []).append(one)
    return Inspection(
        tuple(
            _inspect_study(uid, members, evidence.values(), policy, quiet, override, read.files)
            for uid, members in studies.items()
        ),
        tuple(read.rejected),
    )


class _Reading:
    """Collect the facts of files by series, and what was rejected."""

    def __init__(self) -> None:
        self.series: dict[str, list[InstanceFacts]] = {}
        self.files: dict[str, list[str]] = {}
        self.rejected: list[Rejected] = []
        self._seen: dict[str, tuple[InstanceFacts, str]] = {}

    def reject(self, path: str, reason: str) -> None:
        self.rejected.append(Rejected(_shown(path), reason))

    def take(self, path: str) -> None:
        """Read one file into its series, or reject it."""
        try:
            facts = read_header(path).facts
        except MediaDirectory as error:
            self.reject(path, f"skipped: {error}")
        except DataError as error:
            if is_litter(os.path.basename(path)):
                self.reject(path, "skipped: a file of the system, not an instance")
            else:
                self.reject(path, f"{error.code}: {error}")
        except OSError as error:
            self.reject(path, f"cannot be read: {error.strerror or error}")
        else:
            self._keep(path, facts)

    def _keep(self, path: str, facts: InstanceFacts) -> None:
        known = self._seen.get(facts.sop_instance_uid)
        if known is None:
            self._seen[facts.sop_instance_uid] = (facts, path)
            self.series.setdefault(facts.series_instance_uid, []).append(facts)
            self.files.setdefault(facts.series_instance_uid, []).append(path)
        elif known[0] == facts:
            self.reject(path, f"duplicate: the same header as {_shown(known[1])}")
        elif known[0] == replace(facts, transfer_syntax_uid=known[0].transfer_syntax_uid):
            self.reject(path, f"duplicate: {_shown(known[1])} in another transfer syntax")
        else:
            self.reject(path, f"conflict: the SOPInstanceUID of {_shown(known[1])}, another header")


def _files(path: Path, reject: Callable[[str, str], None]) -> Iterator[str]:
    """Yield the regular files under a path in a stable order; the rest is rejected."""
    top = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)
    if not stat.S_ISDIR(os.stat(top).st_mode):
        yield top
        return

    def unreadable(error: OSError) -> None:
        reject(str(error.filename), f"cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(top, onerror=unreadable):
        folders.sort()
        for name in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            reject(os.path.join(folder, name), "skipped: a symbolic link")
        for name in sorted(names):
            file = os.path.join(folder, name)
            try:
                mode = os.lstat(file).st_mode
            except OSError as error:
                reject(file, f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISREG(mode):
                yield file
            else:
                link = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
                reject(file, f"skipped: {link}")


def _evidence(uid: str, instances: tuple[InstanceFacts, ...], quiet: bool) -> SeriesEvidence:
    role = judge_role(instances)
    completeness = judge_completeness(instances, role.role, quiet=quiet)
    study = instances[0].study_instance_uid
    return SeriesEvidence(uid, study, instances, role, completeness, quiet)


def _inspect_study(
    uid: str,
    members: list[SeriesEvidence],
    everything: Iterable[SeriesEvidence],
    policy: PairingPolicy,
    quiet: bool,
    override: Override | None,
    files: Mapping[str, list[str]],
) -> InspectedStudy:
    patients = dict.fromkeys(facts.patient_id for one in members for facts in one.instances)
    patient = next(iter(patients))
    borrowed = [
        replace(one, same_study=False)
        for one in everything
        if one.study_uid != uid and patient and one.instances[0].patient_id == patient
    ]
    decision = decide_pair(
        [*members, *borrowed],
        override,
        policy,
        study_quiet=quiet,
        capped=False,
        conflicting_patients=len(patients) > 1,
    )
    return InspectedStudy(
        uid, patient, tuple(_inspect_series(one, files) for one in members), decision
    )


def _inspect_series(one: SeriesEvidence, files: Mapping[str, list[str]]) -> InspectedSeries:
    first = one.instances[0]
    suv = judge_suv(volume_instances(one.instances)) if one.role.role.is_pet else None
    return InspectedSeries(
        one.series_uid,
        first.modality,
        first.series_description,
        len(one.instances),
        one.role,
        one.completeness,
        suv,
        one.instances,
        tuple(files[one.series_uid]),
    )


def _suv_object(suv: SuvVerdict) -> dict[str, Any]:
    factor = list(suv.factor) if isinstance(suv.factor, tuple) else suv.factor
    return {
        "status": str(suv.status),
        "factor": factor,
        "method": suv.method,
        "reference_time": suv.reference_time,
        "reasons": list(suv.reasons),
    }


def _shown(path: str) -> str:
    """Return a path that any terminal and JSON reader can take."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
