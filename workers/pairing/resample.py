"""Bring one volume onto the grid of another: linear, slice by slice.

Both grids have canonical axes. Where they are parallel (nearly always: one table, one frame of
reference) interpolation is one small matrix per axis, and source slices are shrunk as they are
decoded, so that neither volume is ever held. Where they are turned against one another SimpleITK
does the same slab by slab.

Along an axis that shrinks by f > 1 the source is smoothed first with sigma = (f - 1) / 2 source
voxels, by the kernel of SimpleITK's DiscreteGaussian (default maximum error 0.01, edges repeated).
A sample is inside up to half a voxel beyond the outermost centres, as in ITK; there the outermost
value holds. Outside is the fill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that the whole field uses

from workers.pairing.grid import Canonical, Floats, Grid

PARALLEL_VOXELS = 1e-3
"""Grids are parallel when a turn moves no sample by more than this part of a voxel."""
NO_SHRINK = 1e-3
_SAME_PLACE = 1e-9
_MAXIMUM_ERROR = 0.01
_MAXIMUM_KERNEL = 1024
_BLOCK_ROWS = 32
_SLAB = 16

Single = npt.NDArray[np.float32]
Inside = npt.NDArray[np.bool_]
Smoothing = tuple[float, float, float]


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


@dataclass(frozen=True)
class ParallelPlan:
    """Weights along W, H and C that bring a source onto a target grid."""

    w: AxisWeights
    h: AxisWeights
    c: AxisWeights
    fill: float

    def shrink(self, plane: Floats) -> Floats:
        """Bring one source slice (H, W) onto the target's rows and columns."""
        if not self.h.is_identity:
            tall = np.zeros((len(self.h.matrix), plane.shape[1]))
            for rows, span, block in self.h.blocks:
                np.matmul(block, plane[span], out=tall[rows])
            plane = tall
        if not self.w.is_identity:
            wide = np.zeros((plane.shape[0], len(self.w.matrix)))
            for columns, span, block in self.w.blocks:
                wide[:, columns] = plane[:, span] @ block.T
            plane = wide
        return plane

    def assemble(self, shrunk: Iterable[Floats]) -> Iterator[Floats]:
        """Yield the target slices from the shrunk source slices, which come in rising order."""
        shape = (len(self.h.matrix), len(self.w.matrix))
        beyond = ~(self.h.inside[:, None] & self.w.inside[None, :])
        none_beyond = not beyond.any()
        coming = iter(shrunk)
        held: deque[Floats] = deque()
        first = 0
        for target, (start, stop) in enumerate(self.c.spans):
            if not self.c.inside[target]:
                yield np.full(shape, self.fill)
                continue
            while first < start:
                if held:
                    held.popleft()
                else:
                    next(coming)
                first += 1
            while first + len(held) < stop:
                held.append(next(coming))
            weights = self.c.matrix[target, start:stop]
            plane = held[0] * weights[0]
            for weight, other in zip(weights[1:], list(held)[1:], strict=False):
                if weight:
                    plane += weight * other
            if not none_beyond:
                plane[beyond] = self.fill
            yield plane
        for _ in (
            coming
        ):  # what lies beyond the target is decoded all the same: a cut file must not hide
            pass


def onto_grid(
    slices: Callable[[Callable[[Floats], Floats]], Iterator[Floats]],
    source: Canonical,
    target: Grid,
    fill: float,
) -> Generator[npt.NDArray[np.floating], None, None]:
    """Yield the slices (H, W) of the target grid.

    `slices(each)` yields each(slice) for the source slices from the feet to the head. Only a source
    that is turned against the target is held whole, as float32.
    """
    plan = plan_parallel(source, target, fill)
    if plan is not None:
        yield from plan.assemble(slices(plan.shrink))
        return
    own = plan_parallel(source, source.grid, fill)
    if own is None:
        raise ValueError("a grid that is turned against itself")
    volume = np.empty(source.grid.shape, np.float32)
    for index, plane in enumerate(own.assemble(slices(own.shrink))):
        volume[index] = plane
    yield from resample_turned(lambda start, stop: volume[start:stop], source.grid, target, fill)


def reach(source: Grid, target: Grid) -> tuple[Inside, Inside, Inside]:
    """Tell for each index along the target's W, H, C whether the source reaches it (near its
    middle).
    """
    matrix, shift = target.index_map(source)
    middle = (np.array(target.size) - 1) / 2
    found = []
    for axis in range(3):
        places = np.tile(middle, (target.size[axis], 1))
        places[:, axis] = np.arange(target.size[axis])
        along = (places @ matrix.T + shift)[:, axis]
        found.append(_inside(along, source.size[axis]))
    return found[0], found[1], found[2]


def covered_fraction(source: Grid, target: Grid) -> float:
    """Return the part of the target's length along C that the source reaches, by its slices."""
    return float(np.mean(reach(source, target)[2]))


def smoothing_sigmas(source: Grid, target: Grid) -> Smoothing:
    """Return sigma in source voxels along the source's W, H, C: (f - 1) / 2 where an axis shrinks
    by f.
    """
    matrix, _ = target.index_map(source)
    shrink = np.abs(matrix).max(axis=1)
    sigmas = [(f - 1) / 2 if f > 1 + NO_SHRINK else 0.0 for f in shrink.tolist()]
    return (sigmas[0], sigmas[1], sigmas[2])


def plan_parallel(source: Canonical, target: Grid, fill: float) -> ParallelPlan | None:
    """Return the weights along the three axes, or None where the grids are turned against one
    another.
    """
    matrix, shift = target.index_map(source.grid)
    off_axis = np.abs(matrix - np.diag(np.diag(matrix))) @ np.array(target.size)
    if off_axis.max() > PARALLEL_VOXELS or np.diag(matrix).min() <= 0:
        return None
    sigmas = smoothing_sigmas(source.grid, target)
    axes = []
    for axis in range(3):
        along_slices = source.axes[axis] == 2
        count = source.grid.size[axis]
        samples = np.array(source.offsets) if along_slices else np.arange(count, dtype=float)
        wanted = matrix[axis, axis] * np.arange(target.size[axis]) + shift[axis]
        axes.append(axis_weights(wanted, samples, count, sigmas[axis]))
    return ParallelPlan(axes[0], axes[1], axes[2], fill)


def axis_weights(wanted: Floats, samples: Floats, count: int, sigma: float) -> AxisWeights:
    """Weigh the samples of one axis for each wanted place.

    Parameters are places in voxels of the source grid: `wanted` of the targets, `samples` of what
    is there (0, 1, 2… where even), `count` the length of the grid, `sigma` of the smoothing.
    """
    wanted = np.where(np.abs(wanted - np.rint(wanted)) < _SAME_PLACE, np.rint(wanted), wanted)
    inside = _inside(wanted, count)
    upper = np.clip(np.searchsorted(samples, wanted, side="right"), 1, len(samples) - 1)
    lower = upper - 1
    part = np.clip((wanted - samples[lower]) / (samples[upper] - samples[lower]), 0, 1)
    matrix = np.zeros((len(wanted), len(samples)))
    rows = np.arange(len(wanted))
    matrix[rows, lower] = 1 - part
    matrix[rows, upper] += part
    matrix[~inside] = 0
    if sigma:
        matrix = matrix @ _smoothing(len(samples), sigma)
    return AxisWeights(matrix, inside)


def resample_turned(
    slab_of: Callable[[int, int], Single], source: Grid, target: Grid, fill: float
) -> Iterator[Single]:
    """Yield the slices of a target grid that is turned against the source, slab by slab.

    `slab_of(start, stop)` returns source slices (C, H, W); only those around a slab are asked for.
    """
    sigmas = smoothing_sigmas(source, target)
    margin = [len(gaussian_kernel(sigma)) // 2 + 2 for sigma in sigmas]
    matrix, shift = target.index_map(source)
    for start in range(0, target.size[2], _SLAB):
        stop = min(start + _SLAB, target.size[2])
        box = _source_box(matrix, shift, target.size, (start, stop), source.size, margin)
        if box is None:
            yield from (np.full(target.shape[1:], fill, np.float32) for _ in range(start, stop))
            continue
        (x0, x1), (y0, y1), (z0, z1) = box
        part = np.ascontiguousarray(slab_of(z0, z1)[:, y0:y1, x0:x1])
        image = as_image(part, source, (x0, y0, z0))
        if any(sigmas):
            variances = [sigma**2 for sigma in sigmas]
            image = sitk.DiscreteGaussian(image, variances, _MAXIMUM_KERNEL, _MAXIMUM_ERROR, False)
        slab = _resample(image, target, (start, stop), fill)
        yield from slab


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
        _MAXIMUM_KERNEL,
        _MAXIMUM_ERROR,
        False,
    )
    kernel: Floats = sitk.GetArrayFromImage(response)[0]
    used = np.flatnonzero(kernel)
    return kernel[used[0] : used[-1] + 1]


def _inside(places: Floats, count: int) -> Inside:
    """Tell which places lie in the buffer: half a voxel around the outermost centres, as in ITK."""
    return (places >= -0.5 - _SAME_PLACE) & (places < count - 0.5 - _SAME_PLACE)


def _smoothing(count: int, sigma: float) -> Floats:
    kernel = gaussian_kernel(sigma)
    reach = len(kernel) // 2
    matrix = np.zeros((count, count))
    rows = np.arange(count)
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        np.add.at(matrix, (rows, np.clip(rows + offset, 0, count - 1)), weight)
    return matrix


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
        sitk.sitkFloat32,
    )
    array: Single = sitk.GetArrayFromImage(result)
    return array
