"""Estimate the memory that making a pair takes, from what the index knows of its series.

Slices are streamed, so little is held: a few slices a thread, and the two arrays, which are read
back from their files. Volumes that cannot be streamed are held whole: slices that are not axial,
grids that are turned against one another, many frames in one file.

The constants were measured (docs/performance.md, "Workers"): the peak of the resident memory of
phantoms from 0.25 to 1.3 GB is 0.90 to 1.00 of the estimate.
"""

from __future__ import annotations

import math

from workers.pairing.build import PairOptions, target_grid
from workers.pairing.geometry import plan_volume
from workers.pairing.grid import Canonical, Grid, canonical
from workers.pairing.resample import plan_parallel
from workers.pairing.turned import largest_slab
from workers.pairing.volume import SeriesInput

MIB = 1 << 20

_PROCESS = 270 * MIB
"""Python, the libraries, the facts and the picture."""
_SOURCE_SLICES, _TARGET_SLICES = 2, 6
"""Slices of float64 that a thread has in hand: being decoded; shrunk, and waiting."""
_FLOAT64 = 8
_STACKED = 8
"""Bytes a voxel of slices that are not axial: a list of planes and the volume made of it."""
_HELD = 4
"""Bytes a voxel of a volume that is held to be turned."""
_SLAB_COPIES = 4
"""A slab, its image, smoothed, and what the filter needs."""


def memory_need(pet: SeriesInput, ct: SeriesInput, options: PairOptions, threads: int) -> int:
    """Return about how many bytes making a pair takes at its peak.

    Raises PairingRefused where the series are no volumes, or the grid would be too large.
    """
    sources = [
        canonical(plan_volume(one.facts, bridge_gaps=options.bridge_gaps)) for one in (pet, ct)
    ]
    target = target_grid(options.grid, sources[0].grid, sources[1].grid)
    voxel = {"int16": 2, "float32": 4}[options.ct_dtype] + 4  # the PET is float32
    held = max(_held(source, target) for source in sources)
    files = sum(_open_files(one) for one in (pet, ct))
    stored = ((one.rows or 0) * (one.columns or 0) for each in (pet, ct) for one in each.facts)
    slices = _SOURCE_SLICES * max(stored) + _TARGET_SLICES * target.size[0] * target.size[1]
    return (
        _PROCESS
        + threads * _FLOAT64 * slices
        + voxel * math.prod(target.size)
        + held
        + files
    )  # fmt: skip


def in_words(size: int) -> str:
    """Say a size as people do: 1.2 GB."""
    return f"{size / 1e9:.1f} GB"


def _held(source: Canonical, target: Grid) -> int:
    """Return the bytes of what cannot be streamed; the two series are read one after the other."""
    voxels = math.prod(source.grid.size)
    held = 0 if source.slices_are_c else _STACKED * voxels
    if plan_parallel(source, target, 0.0) is None:
        slab = largest_slab(source.grid, target)
        held += _HELD * voxels + _SLAB_COPIES * _FLOAT64 * slab
    return held


def _open_files(series: SeriesInput) -> int:
    """Return the bytes of files of many frames: two stay open, and one is read, twice in memory."""
    sizes = sorted(
        (one.rows or 0) * (one.columns or 0) * (one.number_of_frames or 1) * 2
        for one in series.facts
        if one.frames
    )
    return sum(sizes[-2:]) + 2 * sizes[-1] if sizes else 0
