"""Make a pair: two series in, ct.npy, pet.npy, qc.png and pair.json out.

Who calls it decides which series, and exchanges the finished folder; here only files are read and
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from config.logs import get_logger, short
from workers.durable import fsync_folder
from workers.errors import DataError, PairingRefused
from workers.pairing.describe import (
    ArrayPlan,
    Source,
    affine_rows,
    describe_suv,
    describe_volume,
    legend_of,
    pair_warnings,
    software_versions,
)
from workers.pairing.geometry import plan_volume
from workers.pairing.grid import Grid, canonical, check_size, isotropic
from workers.pairing.outputs import write_bytes, write_nifti, write_npy
from workers.pairing.pair_json import PairMeta, VolumeMeta, to_json
from workers.pairing.picture import draw_pair
from workers.pairing.planes import planes_of
from workers.pairing.qc import Checked, Volume, check_pair
from workers.pairing.resample import covered_fraction, onto_grid, reach
from workers.pairing.suv import SuvStatus, SuvVerdict
from workers.pairing.volume import SeriesInput as SeriesInput
from workers.pairing.volume import VolumeReader, without_repeats
from workers.pairing.weights import smoothing_sigmas

AIR_HU = -1024.0
"""What a CT holds outside its field of view; nothing below it is kept."""
NO_ACTIVITY = 0.0

log = get_logger(__name__)


@dataclass(frozen=True)
class PairOptions:
    """How a pair is made."""

    grid: str = "pet"
    """pet, ct, or isotropic:<mm>."""
    ct_dtype: str = "int16"
    """int16 or float32."""
    nifti: bool = False
    threads: int = 0
    """Threads that decode; 0 for one a core."""
    bridge_gaps: bool = False
    """Interpolate where slices are missing in the middle: only where a person forced the pair."""


@dataclass(frozen=True)
class PairContext:
    """What pair.json says of why and when; copied, not judged."""

    study_uid: str
    revision: int
    decision: dict[str, Any]
    """Reasons, candidates, completeness evidence: anything JSON can say."""
    warnings: tuple[str, ...]
    made_at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class PairSummary:
    """What was made, for the index and the event log."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    pet_units: str
    pet_maximum: float
    pet_mean: float
    body_mean: float | None
    hottest_mm: tuple[float, float, float]
    covered_fraction: float
    warnings: tuple[str, ...]
    qc_flags: tuple[str, ...]
    """The words of each check that was flagged."""
    outputs: dict[str, str]
    """SHA-256 by file name, pair.json included."""


def build_pair(
    pet: SeriesInput,
    ct: SeriesInput,
    suv: SuvVerdict,
    context: PairContext,
    options: PairOptions,
    out: Path,
) -> PairSummary:
    """Write a pair into the existing empty folder `out`; every file is fsynced, pair.json last.

    `suv.factor`, where it is one a slice, runs parallel to the frames of `pet.facts` in their
    order. Where SUV was refused the PET is written in its DICOM Units and says so. Raises
    PairingRefused (the reason in words), PixelError or Truncated; what `out` then holds is to be
    thrown away.
    """
    with threadpool_limits(1, user_api="blas"):  # slices run parallel already; nested they fight
        return _build(pet, ct, suv, context, options, out)


def _build(
    pet: SeriesInput,
    ct: SeriesInput,
    suv: SuvVerdict,
    context: PairContext,
    options: PairOptions,
    out: Path,
) -> PairSummary:
    pet_source, ct_source = _source(pet, "PET", options), _source(ct, "CT", options)
    target = target_grid(options.grid, pet_source.layout.grid, ct_source.layout.grid)
    numbers = _slice_numbers(pet, pet_source)
    factors = _factors(suv, numbers)
    pet_reader = _reader(
        pet_source, options, outside=NO_ACTIVITY, factors=factors, real_world=factors is None
    )
    ct_reader = _reader(ct_source, options, outside=AIR_HU, floor=AIR_HU)
    pet_plan = ArrayPlan("pet.npy", "float32", suv.label, NO_ACTIVITY)
    ct_plan = ArrayPlan("ct.npy", options.ct_dtype, "HU", AIR_HU, AIR_HU)
    pet_meta = _write(pet_source, pet_reader, target, pet_plan, out)
    ct_meta = _write(ct_source, ct_reader, target, ct_plan, out)
    arrays = np.load(out / "ct.npy", mmap_mode="r"), np.load(out / "pet.npy", mmap_mode="r")
    checked = check_pair(
        *arrays,
        target,
        is_suv=suv.status is not SuvStatus.REFUSED,
        outside_hu=AIR_HU,
        ct_box=reach(ct_source.layout.grid, target),
    )
    covered = covered_fraction(ct_source.layout.grid, pet_source.layout.grid)
    meta = PairMeta(
        study=context.study_uid,
        revision=context.revision,
        made_at=context.made_at,
        grid=options.grid,
        shape=target.shape,
        spacing=target.spacing,
        origin=target.origin,
        direction=target.direction,
        affine=affine_rows(target),
        same_frame_of_reference=_same(pet_meta.frame_of_reference, ct_meta.frame_of_reference),
        covered_fraction=covered,
        ct=ct_meta,
        pet=pet_meta,
        suv=describe_suv(suv, [numbers[k] for k in pet_source.layout.slice_order()]),
        qc=checked.meta,
        decision=context.decision,
        warnings=(
            *context.warnings,
            *(f"PET: {words}" for words in (*pet_source.warnings, *pet_reader.warnings)),
            *(f"CT: {words}" for words in (*ct_source.warnings, *ct_reader.warnings)),
            *pair_warnings(pet_source, ct_source, suv, covered),
        ),
        outputs=_also_nifti(arrays, target, out) if options.nifti else {},
        software=software_versions(),
    )
    return _finish(meta, arrays, target, checked, out)


def target_grid(name: str, pet: Grid, ct: Grid) -> Grid:
    """Return the grid of a pair: the PET's, the CT's, or cubes over the PET ("isotropic:2.5")."""
    kind, _, size = name.partition(":")
    if name == "pet":
        return pet
    if name == "ct":
        return ct
    if kind == "isotropic":
        return isotropic(pet, float(size))
    raise ValueError(f"unknown grid {name!r}: pet, ct or isotropic:<mm>")


def _source(series: SeriesInput, name: str, options: PairOptions) -> Source:
    try:
        kept, repeats = without_repeats(series)
        volume = plan_volume(kept.facts, bridge_gaps=options.bridge_gaps)
        check_size(volume.size)
    except (PairingRefused, DataError) as error:
        raise type(error)(f"{name}: {error}") from error
    warnings = volume.warnings
    if repeats:
        warnings += (f"{repeats} slices repeat another one pixel by pixel and were left out",)
    return Source(name, kept, volume, canonical(volume), warnings)


def _reader(source: Source, options: PairOptions, **how: Any) -> VolumeReader:
    try:
        return VolumeReader(
            source.series, source.volume, source.layout, threads=options.threads, **how
        )
    except PairingRefused as error:
        raise PairingRefused(f"{source.name}: {error}") from error


def _slice_numbers(given: SeriesInput, source: Source) -> list[int]:
    """Return for each slice of the volume its number among all frames of the series as given."""
    planes = planes_of(given.facts)
    number = {(plane.sop_instance_uid, plane.frame): k for k, plane in enumerate(planes)}
    uids = [facts.sop_instance_uid for facts in source.series.facts]
    return [number[uids[placed.instance], placed.frame] for placed in source.volume.slices]


def _factors(suv: SuvVerdict, numbers: Sequence[int]) -> list[float] | None:
    """Return the SUV factor of each slice of the volume, in its order; None where SUV is
    refused.
    """
    if suv.status is SuvStatus.REFUSED or suv.factor is None:
        return None
    if not isinstance(suv.factor, tuple):
        return [suv.factor] * len(numbers)
    if len(suv.factor) <= max(numbers):
        raise PairingRefused(f"PET: {len(suv.factor)} SUV factors for {max(numbers) + 1} slices")
    return [suv.factor[number] for number in numbers]


def _write(
    source: Source, reader: VolumeReader, target: Grid, plan: ArrayPlan, out: Path
) -> VolumeMeta:
    """Stream one series onto the grid and into its file."""
    try:
        with closing(onto_grid(reader.slices, source.layout, target, plan.fill)) as planes:
            written = write_npy(out / plan.file, planes, target.shape, plan.dtype)
    except DataError as error:
        raise type(error)(f"{source.name}: {error}") from error
    return describe_volume(
        source,
        plan,
        written,
        on_own_grid=target == source.layout.grid,
        sigma=smoothing_sigmas(source.layout.grid, target),
        inputs=reader.inputs,
        padded_slices=reader.padded_slices,
    )


def _also_nifti(arrays: Sequence[Volume], target: Grid, out: Path) -> dict[str, str]:
    names = ("ct.nii.gz", "pet.nii.gz")
    return {n: write_nifti(out / n, array, target) for n, array in zip(names, arrays, strict=True)}


def _finish(
    meta: PairMeta, arrays: Sequence[Volume], target: Grid, checked: Checked, out: Path
) -> PairSummary:
    """Draw the picture, write pair.json last, and sum up."""
    picture = draw_pair(arrays[0], arrays[1], target, checked, legend_of(meta))
    outputs = {"ct.npy": meta.ct.sha256, "pet.npy": meta.pet.sha256, **meta.outputs}
    outputs["qc.png"] = write_bytes(out / "qc.png", picture)
    text = to_json(replace(meta, outputs=dict(outputs))).encode()
    outputs["pair.json"] = write_bytes(out / "pair.json", text)
    fsync_folder(out)
    flags = tuple(check.words for check in meta.qc.checks if check.flagged)
    log.info("pair-built", study=short(meta.study), shape=list(meta.shape), flagged=len(flags))
    return PairSummary(
        shape=meta.shape,
        spacing=meta.spacing,
        pet_units=meta.pet.units,
        pet_maximum=meta.pet.maximum,
        pet_mean=meta.pet.mean,
        body_mean=meta.qc.body_mean,
        hottest_mm=meta.qc.hottest_mm,
        covered_fraction=meta.covered_fraction,
        warnings=meta.warnings,
        qc_flags=flags,
        outputs=outputs,
    )


def _same(one: str | None, other: str | None) -> bool:
    return one is not None and one == other
