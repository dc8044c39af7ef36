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
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.pairing.grid import Canonical, Floats, Grid
from workers.pairing.turned import resample_turned
from workers.pairing.weights import (
    AxisWeights,
    Inside,
    axis_weights,
    inside_buffer,
    smoothing_sigmas,
)

PARALLEL_VOXELS = 1e-3
"""Grids are parallel when a turn moves no sample by more than this part of a voxel."""


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
        found.append(inside_buffer(along, source.size[axis]))
    return found[0], found[1], found[2]


def covered_fraction(source: Grid, target: Grid) -> float:
    """Return the part of the target's length along C that the source reaches, by its slices."""
    return float(np.mean(reach(source, target)[2]))


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
