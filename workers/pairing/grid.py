"""Regular grids in patient space, and the canonical order of their axes.

Arrays are (C, H, W): C runs from the feet to the head, H from anterior to posterior, W from the
patient's right to the left. In LPS all three run along growing coordinates, so an axial slice looks
as usual for a supine patient. Axes are only permuted and flipped to get there; no sample is ever
interpolated for it. Vectors and matrices here are in the order W, H, C (x, y, z), as in ITK.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.errors import PairingRefused
from workers.header.facts import Vector3
from workers.pairing.geometry import Matrix3, VolumeGeometry

Floats = npt.NDArray[np.float64]

MAXIMUM_VOXELS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid of samples in LPS mm."""

    size: tuple[int, int, int]
    """W, H, C."""
    spacing: Vector3
    origin: Vector3
    """Centre of voxel (0, 0, 0)."""
    direction: Matrix3
    """Rows of the matrix whose columns are the unit vectors of W, H, C."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W), the shape of an array on this grid."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def steps(self) -> Floats:
        """Return the 3x3 matrix from index steps (W, H, C) to mm."""
        steps: Floats = np.array(self.direction) * np.array(self.spacing)
        return steps

    @property
    def affine(self) -> Floats:
        """Return the 4x4 matrix from indices (W, H, C, 1) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.steps
        matrix[:3, 3] = self.origin
        return matrix

    def index_map(self, source: Grid) -> tuple[Floats, Floats]:
        """Return (A, t): source index = A @ index on this grid + t, both as (W, H, C)."""
        inverse = np.linalg.inv(source.steps)
        return inverse @ self.steps, inverse @ (np.array(self.origin) - np.array(source.origin))


@dataclass(frozen=True, slots=True)
class Canonical:
    """A stored volume seen along the canonical axes."""

    grid: Grid
    axes: tuple[int, int, int]
    """Which stored axis (0 x, 1 y, 2 slices) becomes W, H, C."""
    flipped: tuple[bool, bool, bool]
    """Whether that axis runs backwards."""
    offsets: tuple[float, ...]
    """Where the stored slices lie along their axis, in voxels of the grid: 0, 1, 2… where steps are
    even.
    """

    @property
    def slices_are_c(self) -> bool:
        """Tell whether a stored slice is a canonical one (axial)."""
        return self.axes[2] == 2

    def slice_order(self) -> range:
        """Return the stored slices in the order in which the canonical axis meets them."""
        count = len(self.offsets)
        backwards = self.flipped[self.axes.index(2)]
        return range(count - 1, -1, -1) if backwards else range(count)

    def turn(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View one stored axial slice (rows, columns) as (H, W)."""
        plane = stored if self.axes[0] == 0 else stored.T
        return plane[:: -1 if self.flipped[1] else 1, :: -1 if self.flipped[0] else 1]

    def turn_volume(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """View a stored volume (slices in canonical order, rows, columns) as (C, H, W)."""
        order = tuple(2 - self.axes[axis] for axis in (2, 1, 0))
        volume = stored.transpose(order)
        steps = tuple(
            slice(None, None, -1 if self.flipped[axis] and self.axes[axis] != 2 else 1)
            for axis in (2, 1, 0)
        )
        return volume[steps]


def canonical(volume: VolumeGeometry) -> Canonical:
    """Find the order and direction of axes that bring a stored volume closest to (W, H, C) in LPS.

    Where steps are uneven the grid is regular all the same, from the first slice to the last in
    about as many steps as usual, and `offsets` says where between its planes the stored slices lie.
    """
    direction = np.array(volume.direction)
    axes = _closest_axes(direction)
    flipped = [bool(direction[patient, stored] < 0) for patient, stored in enumerate(axes)]
    size = list(volume.size)
    spacing = list(volume.spacing)
    origin = np.array(volume.origin)
    positions = np.array(volume.positions_mm)
    if volume.uniform:
        offsets = np.arange(len(positions), dtype=float)
    else:
        length = float(positions[-1] - positions[0])
        size[2] = max(2, round(length / float(np.median(np.diff(positions)))) + 1)
        spacing[2] = length / (size[2] - 1)
        start = float(direction[:, 2] @ origin)
        origin = origin + (positions[0] - start) * direction[:, 2]
        offsets = (positions - positions[0]) / spacing[2]
    for patient, stored in enumerate(axes):
        if flipped[patient]:
            origin = origin + direction[:, stored] * spacing[stored] * (size[stored] - 1)
    if flipped[axes.index(2)]:
        offsets = (size[2] - 1 - offsets)[::-1]
    turned = [
        direction[:, stored] * (-1.0 if flipped[patient] else 1.0)
        for patient, stored in enumerate(axes)
    ]
    grid = Grid(
        size=(size[axes[0]], size[axes[1]], size[axes[2]]),
        spacing=(spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]),
        origin=_vector(origin),
        direction=_rows(np.stack(turned, axis=1)),
    )
    return Canonical(
        grid, axes, (flipped[0], flipped[1], flipped[2]), tuple(float(v) for v in offsets)
    )


def isotropic(source: Grid, spacing_mm: float) -> Grid:
    """Lay a grid of cubes over the extent of another, centred on it, with its directions.

    Raises PairingRefused where it would have more than 2e9 voxels.
    """
    extents = [count * step for count, step in zip(source.size, source.spacing, strict=True)]
    size = [max(1, math.ceil(extent / spacing_mm - 1e-6)) for extent in extents]
    if math.prod(size) > MAXIMUM_VOXELS:
        raise PairingRefused(
            f"a grid of {spacing_mm:g} mm would have {math.prod(size):.2g} voxels; "
            "set pairing.grid coarser"
        )
    direction = np.array(source.direction)
    first = [
        (extent - step - (count - 1) * spacing_mm) / 2
        for extent, step, count in zip(extents, source.spacing, size, strict=True)
    ]
    return Grid(
        size=(size[0], size[1], size[2]),
        spacing=(spacing_mm, spacing_mm, spacing_mm),
        origin=_vector(np.array(source.origin) + direction @ np.array(first)),
        direction=source.direction,
    )


def check_size(size: tuple[int, int, int]) -> None:
    """Refuse a volume of more voxels than any scanner makes, before memory is asked for it."""
    if math.prod(size) > MAXIMUM_VOXELS:
        words = "x".join(str(count) for count in size)
        raise PairingRefused(f"{words} voxels are more than can be handled")


def _closest_axes(direction: Floats) -> tuple[int, int, int]:
    """Assign a stored axis to each patient axis: the permutation with the largest sum of
    cosines.
    """
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    return max(orders, key=lambda o: sum(abs(direction[p, s]) for p, s in enumerate(o)))


def _vector(values: Floats) -> Vector3:
    x, y, z = values
    return (float(x) + 0.0, float(y) + 0.0, float(z) + 0.0)  # no -0.0


def _rows(matrix: Floats) -> Matrix3:
    return (_vector(matrix[0]), _vector(matrix[1]), _vector(matrix[2]))
