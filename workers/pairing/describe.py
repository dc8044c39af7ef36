"""Say what a pair is: the parts of pair.json, the warnings, and the words beside the picture."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workers.pairing.geometry import VolumeGeometry
from workers.pairing.grid import Canonical, Grid
from workers.pairing.outputs import Written
from workers.pairing.pair_json import OriginalGeometry, PairMeta, SuvMeta, VolumeMeta
from workers.pairing.picture import Legend
from workers.pairing.suv import SuvVerdict
from workers.pairing.volume import SeriesInput
from workers.pairing.weights import Smoothing

SUV_UNITS = {"suvbw": "SUVbw [g/ml]", "suvbw_adapted": "SUVbw [g/ml], adapted"}
_SOFTWARE = ("petct-ingest", "pydicom", "SimpleITK", "numpy")


@dataclass(frozen=True)
class Source:
    """One series, planned and ready to be read."""

    name: str
    """PET or CT, for people."""
    series: SeriesInput
    volume: VolumeGeometry
    layout: Canonical
    warnings: tuple[str, ...]

    @property
    def frame_of_reference(self) -> str | None:
        """Return FrameOfReferenceUID."""
        return self.series.facts[0].frame_of_reference_uid


@dataclass(frozen=True)
class ArrayPlan:
    """How one array is to be written."""

    file: str
    dtype: str
    units: str
    fill: float
    floor: float | None = None


def describe_volume(
    source: Source,
    plan: ArrayPlan,
    written: Written,
    *,
    on_own_grid: bool,
    sigma: Smoothing,
    inputs: dict[str, str],
    padded_slices: int,
) -> VolumeMeta:
    """Describe one array and the series that it came from."""
    volume, layout = source.volume, source.layout
    resampled = not (on_own_grid and volume.uniform)
    return VolumeMeta(
        file=plan.file,
        dtype=plan.dtype,
        units=plan.units,
        series=source.series.series_uid,
        frame_of_reference=source.frame_of_reference,
        original=OriginalGeometry(
            size=volume.size,
            spacing=volume.spacing,
            origin=volume.origin,
            direction=volume.direction,
            axes=layout.axes,
            flipped=layout.flipped,
            uniform=volume.uniform,
            deviation_mm=volume.deviation_mm,
            patient_position=source.series.facts[0].patient_position,
        ),
        resampled=resampled,
        interpolator="linear" if resampled else "none",
        sigma=sigma,
        fill=plan.fill,
        floor=plan.floor,
        padded_slices=padded_slices,
        minimum=written.minimum,
        maximum=written.maximum,
        mean=written.mean,
        sha256=written.sha256,
        inputs=inputs,
    )


def describe_suv(suv: SuvVerdict, order: Sequence[int]) -> SuvMeta:
    """Describe the SUV verdict; `order` lists the given frames from the feet to the head."""

    def turned(value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        return tuple(value[k] for k in order) if isinstance(value, tuple) else value

    return SuvMeta(
        status=suv.status.value,
        label=suv.label,
        factor=turned(suv.factor),
        method=suv.method,
        reference_time=suv.reference_time,
        reasons=suv.reasons,
        candidates=tuple(asdict(candidate) for candidate in suv.candidates),
        dt_seconds=turned(suv.dt_seconds),
        weight_kg=suv.weight_kg,
        dose_bq=suv.dose_bq,
        half_life_s=suv.half_life_s,
        adaptations=suv.adaptations,
    )


def pair_warnings(pet: Source, ct: Source, suv: SuvVerdict, covered: float) -> tuple[str, ...]:
    """Say what of this pair deserves a second look, beside what was met while reading."""
    found = []
    if suv.label not in SUV_UNITS:
        why = suv.reasons[0] if suv.reasons else "no reason given"
        found.append(f"no SUV ({why}): the PET is in {suv.label or 'unknown units'}")
    found += [f"SUV adapted: {words}" for words in suv.adaptations]
    if covered < 1:
        found.append(f"the CT covers {covered:.1%} of the PET's length; outside it is air")
    frames = pet.frame_of_reference, ct.frame_of_reference
    if None in frames:
        found.append("a series without FrameOfReferenceUID: alignment is not vouched for")
    elif frames[0] != frames[1]:
        found.append("different frames of reference: alignment is not vouched for")
    types = {f.rescale_type for f in ct.series.facts if f.rescale_type} - {"HU"}
    if types:
        found.append(f"RescaleType of the CT is {', '.join(sorted(types))}, not HU")
    return tuple(found)


def software_versions() -> dict[str, str]:
    """Return the versions of what makes a pair."""
    return {name: importlib.metadata.version(name) for name in _SOFTWARE}


def affine_rows(grid: Grid) -> Any:
    """Return the affine of a grid as four rows."""
    return tuple(tuple(float(value) for value in row) for row in grid.affine)


def legend_of(meta: PairMeta) -> Legend:
    """Choose the facts that a person checks first; no identifiers, no dates."""
    suv, length = meta.suv, meta.shape[0] * meta.spacing[2]
    facts = [
        ("PET", f"{SUV_UNITS.get(meta.pet.units, meta.pet.units)}"),
        ("range", f"{meta.pet.minimum:.4g} to {meta.pet.maximum:.4g}"),
        ("hottest", "at {:.0f}, {:.0f}, {:.0f} mm LPS".format(*meta.qc.hottest_mm)),
        ("body mean", "not found" if meta.qc.body_mean is None else f"{meta.qc.body_mean:.3g}"),
        ("SUV", f"{suv.status}: {suv.method}"),
    ]
    if suv.factor is not None:
        facts.append(("factor", _spread(suv.factor)))
    if suv.dt_seconds is not None:
        minutes = np.atleast_1d(np.array(suv.dt_seconds)) / 60
        facts.append(("uptake", f"{minutes.min():.1f} min after injection"))
    if suv.dose_bq is not None and suv.weight_kg is not None:
        facts.append(("dose", f"{suv.dose_bq / 1e6:.1f} MBq, {suv.weight_kg:g} kg"))
    facts += [
        ("grid", f"{meta.grid}, {' x '.join(str(n) for n in meta.shape)} (C, H, W)"),
        ("voxel", f"{' x '.join(f'{step:.3g}' for step in meta.spacing)} mm, {length:.0f} mm long"),
        ("CT", f"{meta.ct.minimum:.0f} to {meta.ct.maximum:.0f} HU, {_origin(meta.ct)}"),
        ("PET from", _origin(meta.pet)),
        ("coverage", f"{meta.covered_fraction:.1%} of the PET's length"),
        ("frame", "shared" if meta.same_frame_of_reference else "NOT shared"),
    ]
    facts += [("check", c.words) for c in meta.qc.checks if not c.flagged]
    flagged = tuple(check.words for check in meta.qc.checks if check.flagged)
    return Legend(
        title=f"CT and PET, revision {meta.revision}",
        units=SUV_UNITS.get(meta.pet.units, meta.pet.units or "unknown units"),
        facts=tuple(facts),
        warnings=(*flagged, *meta.warnings),
    )


def _spread(factor: float | tuple[float, ...]) -> str:
    if isinstance(factor, tuple):
        return f"{min(factor):.5g} to {max(factor):.5g}, by slice"
    return f"{factor:.6g}"


def _origin(volume: VolumeMeta) -> str:
    x, y, z = volume.original.size
    how = "linear" if volume.resampled else "unresampled"
    return f"{x}x{y}x{z}, {how}"
