"""Decide whether the slices of a series are one volume, and where its samples lie.

Coordinates are the patient's (LPS, mm; PS3.3 C.7.6.2.1.1): ImagePositionPatient is the centre of
the first pixel, PixelSpacing is (between rows, between columns). Frames of a multi-frame instance
count as slices. No order of files or instance numbers is believed: slices are sorted by their
position along the normal.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.completeness.stacks import (
    GAP_STEPS,
    SAME_ORIENTATION,
    SAME_POSITION_MM,
    dot,
)
from workers.errors import PairingRefused
from workers.header.facts import InstanceFacts, Vector3
from workers.pairing.planes import SliceFacts, axis_name, plane_axes, planes_of, vector

UNIFORM_STEPS = 0.1
"""Centres within this part of a step from the fitted uniform grid stay untouched samples."""
SHIFT_NOTED_PIXELS = 0.1
"""Slices that sit further beside the first one are noted…"""
SHIFT_REFUSED_PIXELS = 0.5
"""…and from here on refused: a direction matrix cannot hold a shear."""
_EVEN_MM = 1e-5

Matrix3 = tuple[Vector3, Vector3, Vector3]


@dataclass(frozen=True, slots=True)
class PlacedSlice:
    """One slice of a volume: which frame of which instance, and where along the normal (mm)."""

    instance: int
    frame: int | None
    position_mm: float


@dataclass(frozen=True, slots=True)
class VolumeGeometry:
    """Where the stored samples of a volume lie; axes are x (along a row), y (down a column), z
    (normal).
    """

    slices: tuple[PlacedSlice, ...]
    """Sorted along the normal, repeated instances left out."""
    size: tuple[int, int, int]
    """Columns, rows, slices."""
    spacing: Vector3
    """mm along x, y, z; z is the step of the fitted uniform grid."""
    origin: Vector3
    """Centre of the first pixel of the first slice of the fitted grid, LPS mm."""
    direction: Matrix3
    """Rows of the matrix whose columns are the unit vectors of x, y, z."""
    uniform: bool
    """Every slice lies within a tenth of a step of the fitted grid."""
    positions_mm: tuple[float, ...]
    """Of each slice along the normal, rising."""
    deviation_mm: float
    """Largest distance of a slice from the fitted uniform grid, along the normal."""
    warnings: tuple[str, ...] = ()


def plan_volume(slices: Sequence[InstanceFacts], *, bridge_gaps: bool = False) -> VolumeGeometry:
    """Sort the slices of one series into a volume.

    An instance that is given twice counts once. Raises PairingRefused with the reason in words: no
    place in space, mixed orientations or sizes, two different slices at one position, a tilt, a
    gap, too few slices. With `bridge_gaps` (a person forced the pair) a gap is interpolated over
    and is a warning.
    """
    planes = planes_of(slices)
    if len(planes) < 2:
        raise PairingRefused(f"not a volume: {_count(len(planes))} with a place in space")
    first = planes[0]
    _refuse_mixture(planes)
    row, column, normal = plane_axes(first)
    placed = sorted(
        ((dot(normal, plane.position), plane) for plane in planes),
        key=lambda item: (item[0], item[1].instance, item[1].frame or 0),
    )
    positions = np.array([value for value, _ in placed])
    ordered = [plane for _, plane in placed]
    name = axis_name(normal)
    _refuse_same_position(positions, ordered, name)
    warnings = _sideways(ordered, row, column)
    if gap := _gap(positions, ordered, name):
        if not bridge_gaps:
            raise PairingRefused(gap)
        warnings += (f"{gap}: interpolated over, because the pair was forced",)
    start, step, deviation = _fit(positions)
    uniform = deviation <= UNIFORM_STEPS * step
    if not uniform:
        warnings += (
            f"uneven steps: a slice lies {deviation:.2f} mm beside an even grid of {step:.2f} mm; "
            "resampled from the true positions",
        )
    if len(ordered) < 4:
        warnings += (f"only {len(ordered)} slices: a gap could not be seen",)
    shift = start - float(positions[0])
    origin = tuple(p + shift * n for p, n in zip(ordered[0].position, normal, strict=True))
    between_rows, between_columns = first.pixel_spacing
    return VolumeGeometry(
        slices=tuple(PlacedSlice(plane.instance, plane.frame, value) for value, plane in placed),
        size=(first.columns, first.rows, len(ordered)),
        spacing=(between_columns, between_rows, step),
        origin=vector(origin),
        direction=_columns(row, column, normal),
        uniform=uniform,
        positions_mm=tuple(float(value) for value in positions),
        deviation_mm=deviation,
        warnings=warnings,
    )


def _refuse_mixture(planes: Sequence[SliceFacts]) -> None:
    first = planes[0]
    away = [
        plane
        for plane in planes
        if max(abs(a - b) for a, b in zip(plane.orientation, first.orientation, strict=True))
        > SAME_ORIENTATION
    ]
    if away:
        fewer = min(len(away), len(planes) - len(away))
        raise PairingRefused(
            f"mixed orientations: {fewer} of {_count(len(planes))} are turned against the rest"
        )
    _refuse_differing(planes, "matrix sizes", lambda plane: f"{plane.columns}x{plane.rows}")
    # a relative 1e-3 is half a pixel over 500: beyond it the slices do not lie on one another
    spacings = np.array([plane.pixel_spacing for plane in planes])
    if (np.ptp(spacings, axis=0) > 1e-3 * spacings.min(axis=0)).any():
        _refuse_differing(
            planes, "pixel spacings", lambda p: f"{p.pixel_spacing[0]:g}x{p.pixel_spacing[1]:g} mm"
        )


def _refuse_differing(
    planes: Sequence[SliceFacts], what: str, words: Callable[[SliceFacts], str]
) -> None:
    found = sorted({words(plane) for plane in planes})
    if len(found) > 1:
        raise PairingRefused(f"mixed {what} in one series: {', '.join(found[:4])}")


def _refuse_same_position(
    positions: npt.NDArray[np.float64], ordered: Sequence[SliceFacts], name: str
) -> None:
    steps = np.diff(positions)
    same = np.flatnonzero(steps <= SAME_POSITION_MM)
    if not len(same):
        return
    where = ordered[int(same[0])].position["xyz".index(name)]
    each = np.diff(np.flatnonzero(np.r_[True, steps > SAME_POSITION_MM, True]))
    if len(each) == 1:
        raise PairingRefused(
            f"not a volume: all {len(positions)} slices lie at {name} = {where:.1f} mm"
        )
    if each.min() == each.max():
        raise PairingRefused(
            f"{each[0]} slices at each of {len(each)} positions: "
            "several volumes (time points, gates or repeats), not one"
        )
    raise PairingRefused(
        f"two different slices at one position, {name} = {where:.1f} mm"
        + (f" and {len(same) - 1} more" if len(same) > 1 else "")
    )


def _sideways(ordered: Sequence[SliceFacts], row: Vector3, column: Vector3) -> tuple[str, ...]:
    """Refuse a stack that leans (gantry tilt) or jumps aside; note a little of it."""
    places = np.array([plane.position for plane in ordered])
    away = places - places[0]
    normal_mm = away @ np.cross(row, column)
    aside_mm = np.stack([away @ np.array(row), away @ np.array(column)], axis=1)
    between_rows, between_columns = ordered[0].pixel_spacing
    pixels = np.abs(aside_mm) / np.array([between_columns, between_rows])
    worst_mm, worst = float(np.abs(aside_mm).max()), float(pixels.max())
    if worst > SHIFT_REFUSED_PIXELS:
        slope = aside_mm.T @ normal_mm / (normal_mm @ normal_mm)
        left = aside_mm - np.outer(normal_mm, slope)
        if np.abs(left).max() < 0.5 * worst_mm:
            degrees = np.degrees(np.arctan(np.linalg.norm(slope)))
            raise PairingRefused(
                f"tilted: the stack leans {degrees:.1f} degrees against its slices (gantry tilt); "
                "it is sheared, not a rectangular volume"
            )
        raise PairingRefused(f"slices lie up to {worst_mm:.1f} mm sideways of one another")
    if worst > SHIFT_NOTED_PIXELS:
        return (f"slices lie up to {worst_mm:.2f} mm sideways of one another; taken as aligned",)
    return ()


def _gap(
    positions: npt.NDArray[np.float64], ordered: Sequence[SliceFacts], name: str
) -> str | None:
    """Say where a slice is missing between two others, or None."""
    steps = np.diff(positions)
    usual = statistics.median(steps.tolist())
    wide = np.flatnonzero(steps > GAP_STEPS * usual)
    if not len(wide):
        return None
    axis = "xyz".index(name)
    at = int(wide[0])
    middle = (ordered[at].position[axis] + ordered[at + 1].position[axis]) / 2
    missing = max(1, round(float(steps[at]) / usual) - 1)
    return (
        f"gap at {name} = {middle:.1f} mm: {steps[at]:.2f} mm between slices that are "
        f"{usual:.2f} mm apart elsewhere ({_count(missing)} missing)"
        + (f"; {len(wide) - 1} more gaps" if len(wide) > 1 else "")
    )


def _fit(positions: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return start, step and largest deviation of the uniform grid that fits best (least
    squares).
    """
    count = len(positions)
    index = np.arange(count) - (count - 1) / 2
    middle = float(positions.mean())
    step = round(float(index @ (positions - middle) / (index @ index)), 9)
    deviation = float(np.abs(positions - (middle + step * index)).max())
    start = middle - step * (count - 1) / 2
    if deviation < _EVEN_MM:  # rounding of the sums: the header's own numbers are the better ones
        return float(positions[0]), step, 0.0
    return start, step, deviation


def _count(slices: int) -> str:
    return "1 slice" if slices == 1 else f"{slices} slices"


def _columns(x: Vector3, y: Vector3, z: Vector3) -> Matrix3:
    return ((x[0], y[0], z[0]), (x[1], y[1], z[1]), (x[2], y[2], z[2]))
