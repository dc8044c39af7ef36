"""Pair any DICOM folder, without a daemon, an index or a tree."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from config.tables.work import PairingSettings
from workers import clock
from workers.completeness.judging import policy_of
from workers.errors import DataError, PairingRefused, WorkersError
from workers.inspecting import InspectedSeries, InspectedStudy, Inspection, inspect_path
from workers.pairing.build import PairContext, PairSummary, build_pair
from workers.pairing.evidence import Override, PairState
from workers.pairing.exchanging import exchange_folder
from workers.pairing.making import options_of
from workers.pairing.suv import judge_suv
from workers.pairing.volume import SeriesInput
from workers.pairing.volume_input import volume_input

PAIR_FILES = frozenset({"ct.npy", "pet.npy", "pair.json", "qc.png", "ct.nii.gz", "pet.nii.gz"})
"""What a pair's folder holds, and nothing else."""
_NAMED = 5
"""So many studies are named in a message."""


class NotOneStudy(WorkersError):
    """The folder holds no study with a PET, or several."""


class FolderInUse(WorkersError):
    """The folder to write into holds something that is no pair."""


@dataclass(frozen=True, slots=True)
class OfflinePair:
    """What came of pairing a folder."""

    study: str
    state: str
    """"ready" or "held"."""
    reasons: tuple[str, ...]
    pet: str | None
    ct: str | None
    summary: PairSummary | None

    def to_json_object(self) -> dict[str, Any]:
        """Return what `pair --json` prints."""
        return asdict(self)


def pair_folder(
    path: Path,
    out: Path,
    settings: PairingSettings,
    override: Override | None = None,
    study: str | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> OfflinePair:
    """Pair the CT and PET under `path` into `out`, which is replaced whole if it holds a pair.

    Raises NotOneStudy and FolderInUse; a study that cannot be paired comes back as held, with
    reasons.
    """
    _check_target(out)
    found = inspect_path(path, progress=progress, policy=policy_of(settings), override=override)
    one = _the_study(found, study)
    decision = one.pair
    held = OfflinePair(one.study_uid, "held", decision.reasons, decision.pet, decision.ct, None)
    if decision.state is not PairState.READY:
        return held
    everything = {s.series_uid: s for each in found.studies for s in each.series}
    pet = volume_input(_input(everything[decision.pet or ""]))
    ct = volume_input(_input(everything[decision.ct or ""]))
    said = override or Override()
    suv = judge_suv(
        pet.facts,
        strict=settings.strict_suv,
        weight_kg=said.weight_kg,
        dose_bq=said.dose_bq,
    )
    words = {**asdict(decision), "override": asdict(override) if override else None}
    context = PairContext(one.study_uid, 1, words, (), clock.utc_now())
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    building.mkdir()
    try:
        summary = build_pair(pet, ct, suv, context, options_of(settings, override), building)
        exchange_folder(building, out)
    except (PairingRefused, DataError) as error:
        return OfflinePair(one.study_uid, "held", (str(error),), decision.pet, decision.ct, None)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return OfflinePair(one.study_uid, "ready", decision.reasons, decision.pet, decision.ct, summary)


def _the_study(found: Inspection, wanted: str | None) -> InspectedStudy:
    """Return the one study that is meant."""
    with_pet = [one for one in found.studies if any(s.suv is not None for s in one.series)]
    chosen = [one for one in with_pet if wanted in (None, one.study_uid)]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        rejected = f" ({len(found.rejected)} files could not be read)" if found.rejected else ""
        raise NotOneStudy(f"no study with a PET under that path{rejected}")
    listed = ", ".join(one.study_uid for one in chosen[:_NAMED])
    more = "" if len(chosen) <= _NAMED else f" and {len(chosen) - _NAMED} more"
    raise NotOneStudy(f"{len(chosen)} studies with a PET: choose one with --study: {listed}{more}")


def _check_target(out: Path) -> None:
    """Refuse to replace a folder that holds anything but a pair."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FolderInUse(f"{out} is no folder")
    others = sorted(set(os.listdir(out)) - PAIR_FILES)
    if others:
        raise FolderInUse(f"{out} holds more than a pair ({others[0]}): give another folder")


def _input(series: InspectedSeries) -> SeriesInput:
    return SeriesInput(
        series_uid=series.series_uid,
        files=tuple(Path(file) for file in series.files),
        facts=series.facts,
        digests=("",) * len(series.files),
    )
