"""The weights along one axis: smoothing and linear interpolation as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that the whole field uses

from workers.pairing.grid import Floats, Grid

_SAME_PLACE = 1e-9
MAXIMUM_ERROR = 0.01
MAXIMUM_KERNEL = 1024
_BLOCK_ROWS = 32
NO_SHRINK = 1e-3

Smoothing = tuple[float, float, float]
Inside = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AxisWeights:
    """The matrix of one axis (targets x sources), used as blocks of rows with their span."""

    matrix: Floats
    inside: Inside

    @cached_property
    def blocks(self) -> tuple[tuple[slice, slice, Floats], ...]:
        """Return (target rows, source rows, weights) that cover all that is not zero."""
        found = []
        for start in range(0, len(self.matrix), _BLOCK_ROWS):
            rows = self.matrix[start : start + _BLOCK_ROWS]
            used = np.flatnonzero(rows.any(axis=0))
            if len(used):
                span = slice(int(used[0]), int(used[-1]) + 1)
                block = np.ascontiguousarray(rows[:, span])
                found.append((slice(start, start + len(rows)), span, block))
        return tuple(found)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return the first source and the one after the last of each target; (0, 0) for none."""
        used = [np.flatnonzero(row) for row in self.matrix]
        return tuple((int(u[0]), int(u[-1]) + 1) if len(u) else (0, 0) for u in used)

    @cached_property
    def is_identity(self) -> bool:
        """Tell whether nothing is to be done along this axis."""
        return self.matrix.shape[0] == self.matrix.shape[1] and bool(
            np.array_equal(self.matrix, np.eye(len(self.matrix)))
        )


def axis_weights(wanted: Floats, samples: Floats, count: int, sigma: float) -> AxisWeights:
    """Weigh the samples of one axis for each wanted place.

    Parameters are places in voxels of the source grid: `wanted` of the targets, `samples` of what
    is there (0, 1, 2… where even), `count` the length of the grid, `sigma` of the smoothing.
    """
    wanted = np.where(np.abs(wanted - np.rint(wanted)) < _SAME_PLACE, np.rint(wanted), wanted)
    inside = inside_buffer(wanted, count)
    upper = np.clip(np.searchsorted(samples, wanted, side="right"), 1, len(samples) - 1)
    lower = upper - 1
    part = np.clip((wanted - samples[lower]) / (samples[upper] - samples[lower]), 0, 1)
    matrix = np.zeros((len(wanted), len(samples)))
    rows = np.arange(len(wanted))
    matrix[rows, lower] = 1 - part
    matrix[rows, upper] += part
    matrix[~inside] = 0
    if sigma:
        matrix = matrix @ smoothing_matrix(len(samples), sigma)
    return AxisWeights(matrix, inside)


def gaussian_kernel(sigma: float) -> Floats:
    """Return the symmetric kernel of sitk.DiscreteGaussian for a sigma in voxels; [1.] for zero."""
    if not sigma:
        return np.ones(1)
    reach = int(8 * sigma) + 8
    impulse = np.zeros((1, 2 * reach + 1))
    impulse[0, reach] = 1
    response = sitk.DiscreteGaussian(
        sitk.GetImageFromArray(impulse),
        [sigma**2, 0.0],
        MAXIMUM_KERNEL,
        MAXIMUM_ERROR,
        False,
    )
    kernel: Floats = sitk.GetArrayFromImage(response)[0]
    used = np.flatnonzero(kernel)
    return kernel[used[0] : used[-1] + 1]


def inside_buffer(places: Floats, count: int) -> Inside:
    """Tell which places lie in the buffer: half a voxel around the outermost centres, as in ITK."""
    return (places >= -0.5 - _SAME_PLACE) & (places < count - 0.5 - _SAME_PLACE)


def smoothing_matrix(count: int, sigma: float) -> Floats:
    kernel = gaussian_kernel(sigma)
    reach = len(kernel) // 2
    matrix = np.zeros((count, count))
    rows = np.arange(count)
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        np.add.at(matrix, (rows, np.clip(rows + offset, 0, count - 1)), weight)
    return matrix


def smoothing_sigmas(source: Grid, target: Grid) -> Smoothing:
    """Return sigma in source voxels along the source's W, H, C: (f - 1) / 2 where an axis shrinks
    by f.
    """
    matrix, _ = target.index_map(source)
    shrink = np.abs(matrix).max(axis=1)
    sigmas = [(f - 1) / 2 if f > 1 + NO_SHRINK else 0.0 for f in shrink.tolist()]
    return (sigmas[0], sigmas[1], sigmas[2])
