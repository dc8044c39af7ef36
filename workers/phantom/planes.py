"""Where the pixels of each image lie in patient space.

A scanner looks at the table, not at the patient: turning the patient on the belly or round on the
table turns the images, and Image Position and Orientation (PS3.3 C.7.6.2) say so, while the same
anatomy keeps its place in patient space. Slices are numbered as they are taken: from the head when
it goes in first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.phantom.anatomy import Point
from workers.phantom.spec import AxialGrid, Orientation

Direction = tuple[float, float, float, float, float, float]

_SIGNS: dict[Orientation, tuple[int, int]] = {
    "HFS": (1, 1),
    "HFP": (-1, -1),
    "FFS": (-1, 1),
    "FFP": (1, -1),
}
"""Along a row towards the patient's left (+) or right; down a column to the back (+) or front."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One image: coordinates (mm) of its columns, rows and slice, in the order they are stored.

    One of `xs`, `ys`, `zs` has a single value; an array sampled in (z, y, x) order and reshaped to
    (rows, columns) is the image.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    zs: tuple[float, ...]
    orientation: Direction
    pixel_spacing_mm: tuple[float, float]
    """(between rows, between columns), as PixelSpacing."""
    thickness_mm: float

    @property
    def position(self) -> Point:
        """Centre of the first pixel."""
        return self.xs[0], self.ys[0], self.zs[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        long = [len(axis) for axis in (self.zs, self.ys, self.xs) if len(axis) > 1]
        return long[0], long[1]


def axial(grid: AxialGrid, orientation: Orientation, index: int) -> Plane:
    """Place slice `index` (from 0, in the order of acquisition)."""
    right, down = _SIGNS[orientation]
    x, y, z = grid.centre_mm
    towards_feet = orientation.startswith("HF")
    z_of = ticks(z, grid.step_mm, grid.slices, -1 if towards_feet else 1)
    return Plane(
        xs=ticks(x, grid.pixel_mm, grid.matrix, right),
        ys=ticks(y, grid.pixel_mm, grid.matrix, down),
        zs=(z_of[index],),
        orientation=(float(right), 0.0, 0.0, 0.0, float(down), 0.0),
        pixel_spacing_mm=(grid.pixel_mm, grid.pixel_mm),
        thickness_mm=grid.step_mm,
    )


def coronal(xs: tuple[float, ...], zs: tuple[float, ...], y: float, thickness_mm: float) -> Plane:
    """Place a coronal plane seen from the front, head up."""
    spacing = (_step(zs), _step(xs))
    return Plane(xs, (y,), zs, (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), spacing, thickness_mm)


def sagittal(ys: tuple[float, ...], zs: tuple[float, ...], x: float, thickness_mm: float) -> Plane:
    """Place a sagittal plane seen from the left, face to the left, head up."""
    spacing = (_step(zs), _step(ys))
    return Plane((x,), ys, zs, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), spacing, thickness_mm)


def view(angle_deg: float) -> Direction:
    """Orientation of a projection from the front, turned about the body axis."""
    turn = math.radians(angle_deg)
    return (round(math.cos(turn), 9) + 0.0, round(math.sin(turn), 9) + 0.0, 0.0, 0.0, 0.0, -1.0)


def ticks(centre: float, step: float, count: int, sign: int = 1) -> tuple[float, ...]:
    """Coordinates of `count` points round a centre, in mm to the 0.1 um that DS strings carry."""
    first = centre - sign * step * (count - 1) / 2.0
    return tuple(round(first + sign * step * index, 4) for index in range(count))


def _step(axis: tuple[float, ...]) -> float:
    return round(abs(axis[1] - axis[0]), 4)
