"""Resample onto a grid that is turned against the source: SimpleITK, slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that the whole field uses

from workers.pairing.grid import Floats, Grid
from workers.pairing.weights import (
    MAXIMUM_ERROR,
    MAXIMUM_KERNEL,
    gaussian_kernel,
    smoothing_sigmas,
)

_SLAB = 16
Single = npt.NDArray[np.float32]


def resample_turned(
    slab_of: Callable[[int, int], Single], source: Grid, target: Grid, fill: float
) -> Iterator[Single]:
    """Yield the slices of a target grid that is turned against the source, slab by slab.

    `slab_of(start, stop)` returns source slices (C, H, W); only those around a slab are asked for.
    It is computed in float64: the origin of a slab rounds differently from that of the volume.
    """
    sigmas = smoothing_sigmas(source, target)
    for start, stop, box in _slabs(source, target):
        if box is None:
            yield from (np.full(target.shape[1:], fill, np.float32) for _ in range(start, stop))
            continue
        (x0, x1), (y0, y1), (z0, z1) = box
        part = slab_of(z0, z1)[:, y0:y1, x0:x1].astype(np.float64)
        image = as_image(part, source, (x0, y0, z0))
        if any(sigmas):
            variances = [sigma**2 for sigma in sigmas]
            image = sitk.DiscreteGaussian(image, variances, MAXIMUM_KERNEL, MAXIMUM_ERROR, False)
        slab = _resample(image, target, (start, stop), fill)
        yield from slab


def largest_slab(source: Grid, target: Grid) -> int:
    """Return the most source voxels that one slab asks for."""
    boxes = [box for _, _, box in _slabs(source, target) if box is not None]
    return max((math.prod(high - low for low, high in box) for box in boxes), default=0)


def _slabs(source: Grid, target: Grid) -> Iterator[tuple[int, int, list[tuple[int, int]] | None]]:
    """Yield the first target slice of each slab, the one after its last, and its source voxels."""
    sigmas = smoothing_sigmas(source, target)
    margin = [len(gaussian_kernel(sigma)) // 2 + 2 for sigma in sigmas]
    matrix, shift = target.index_map(source)
    for start in range(0, target.size[2], _SLAB):
        stop = min(start + _SLAB, target.size[2])
        box = _source_box(matrix, shift, target.size, (start, stop), source.size, margin)
        yield start, stop, box


def as_image(
    volume: npt.NDArray[np.generic], grid: Grid, first: Sequence[int] = (0, 0, 0)
) -> sitk.Image:
    """Copy an array (C, H, W) into a SimpleITK image at its place; `first` is the index (W, H, C)
    of [0,0,0].
    """
    image = sitk.GetImageFromArray(volume)
    origin = np.array(grid.origin) + grid.steps @ np.array(first, dtype=float)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(grid.spacing)
    image.SetDirection([value for row in grid.direction for value in row])
    return image


def _source_box(
    matrix: Floats,
    shift: Floats,
    size: tuple[int, int, int],
    slab: tuple[int, int],
    source: tuple[int, int, int],
    margin: Sequence[int],
) -> list[tuple[int, int]] | None:
    """Return the span of source voxels along each axis that a slab of the target needs, or None."""
    ends = ((0, size[0] - 1), (0, size[1] - 1), (slab[0], slab[1] - 1))
    corners = np.array([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]], dtype=float)
    places = corners @ matrix.T + shift
    box = []
    for axis in range(3):
        low = int(np.floor(places[:, axis].min())) - margin[axis]
        high = int(np.ceil(places[:, axis].max())) + margin[axis] + 1
        low, high = max(low, 0), min(high, source[axis])
        if low >= high:
            return None
        box.append((low, high))
    return box


def _resample(image: sitk.Image, target: Grid, slab: tuple[int, int], fill: float) -> Single:
    origin = np.array(target.origin) + target.steps @ np.array([0, 0, slab[0]], dtype=float)
    result = sitk.Resample(
        image,
        [target.size[0], target.size[1], slab[1] - slab[0]],
        sitk.Transform(),
        sitk.sitkLinear,
        origin.tolist(),
        target.spacing,
        [value for row in target.direction for value in row],
        fill,
        sitk.sitkFloat64,
    )
    array: Single = sitk.GetArrayFromImage(result).astype(np.float32)
    return array
