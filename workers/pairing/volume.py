"""Read a volume slice by slice, in canonical order and in its values, never whole unless it must
be.

Decoding runs on a few threads a little ahead of who consumes, so that memory stays at some slices.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workers.errors import PixelError, Truncated
from workers.header.facts import InstanceFacts
from workers.pairing.geometry import PlacedSlice, VolumeGeometry
from workers.pairing.grid import Canonical
from workers.pairing.pixels import (
    Floats,
    OpenFile,
    Scale,
    is_lossy,
    open_file,
    padded,
    scale_of,
    stored_pixels,
)
from workers.pairing.planes import same_position

A = TypeVar("A")
B = TypeVar("B")

_OPEN_MULTIFRAMES = 2


@dataclass(frozen=True)
class SeriesInput:
    """The instances of one series; the four tuples run parallel."""

    series_uid: str
    files: tuple[Path, ...]
    facts: tuple[InstanceFacts, ...]
    digests: tuple[str, ...]
    """SHA-256 of each file as it was recorded; "" where none was."""

    def keep(self, indices: Sequence[int]) -> SeriesInput:
        """Return the same series with only these instances."""
        return SeriesInput(
            self.series_uid,
            tuple(self.files[i] for i in indices),
            tuple(self.facts[i] for i in indices),
            tuple(self.digests[i] for i in indices),
        )


class VolumeReader:
    """Read the slices of one planned volume as values.

    Values are (stored * slope + intercept) * factor in float64; padding becomes `outside`, and what
    lies below `floor` becomes `floor`. After reading, `inputs` and `warnings` tell what was met.
    """

    def __init__(
        self,
        series: SeriesInput,
        volume: VolumeGeometry,
        layout: Canonical,
        *,
        outside: float,
        floor: float | None = None,
        factors: Sequence[float] | None = None,
        real_world: bool = True,
        threads: int = 0,
    ) -> None:
        self._series = series
        self._volume = volume
        self._layout = layout
        self._outside = outside
        self._floor = floor
        self._factors = factors
        self._threads = threads or len(os.sched_getaffinity(0))
        self._scales = tuple(
            scale_of(series.facts[s.instance], s.frame, real_world=real_world)
            for s in volume.slices
        )
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._digests: dict[int, str] = {}
        self._padded = 0

    @property
    def layout(self) -> Canonical:
        """Where the slices lie along the canonical axes."""
        return self._layout

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 by SOPInstanceUID of the files that were read, in slice order."""
        order = dict.fromkeys(placed.instance for placed in self._volume.slices)
        return {
            self._series.facts[index].sop_instance_uid: self._digests[index]
            for index in order
            if index in self._digests
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what was met while reading."""
        found = []
        changed = sum(
            1
            for index, digest in self._digests.items()
            if self._series.digests[index] not in ("", digest)
        )
        if changed:
            found.append(f"{changed} files differ from what was recorded when they were filed")
        if any(is_lossy(facts.transfer_syntax_uid) for facts in self._series.facts):
            found.append("lossy compression: the values are not those that were measured")
        if any(scale.slope == 0 for scale in self._scales):
            found.append("RescaleSlope 0: those slices hold one value throughout")
        return tuple(found)

    @property
    def padded_slices(self) -> int:
        """In how many slices padding was met."""
        return self._padded

    def slices(self, each: Callable[[Floats], B]) -> Iterator[B]:
        """Yield each(slice) for the slices along C, (H, W) float64; `each` runs on the threads.

        Raises PixelError or Truncated with the place of the slice that cannot be read.
        """
        if self._layout.slices_are_c:
            order = self._layout.slice_order()
            yield from map_ahead(lambda k: each(self._turned(k)), order, self._threads)
        else:
            volume = self._whole()
            yield from map_ahead(lambda plane: each(plane), volume, self._threads)

    def _turned(self, index: int) -> Floats:
        turned: Floats = self._layout.turn(self._values(index))  # type: ignore[assignment]
        return turned

    def _whole(self) -> Iterator[Floats]:
        """Read a volume whose slices are not axial: it has to be held before it can be turned."""
        planes = list(map_ahead(self._single, self._layout.slice_order(), self._threads))
        volume = self._layout.turn_volume(np.stack(planes))
        return (plane.astype(np.float64) for plane in volume)

    def _single(self, index: int) -> npt.NDArray[np.float32]:
        return self._values(index).astype(np.float32)

    def _values(self, index: int) -> Floats:
        placed = self._volume.slices[index]
        scale = self._scales[index]
        try:
            stored = stored_pixels(self._file(placed).dataset, placed.frame)
        except (PixelError, Truncated) as error:
            place = f"slice {index + 1} of {len(self._volume.slices)}"
            raise type(error)(f"{place} ({placed.position_mm:.1f} mm): {error}") from error
        values: Floats = stored * np.float64(scale.slope)
        values += scale.intercept
        if self._factors is not None:
            values *= self._factors[index]
        self._pad(values, stored, scale)
        if self._floor is not None:
            np.maximum(values, self._floor, out=values)
        return values

    def _pad(self, values: Floats, stored: npt.NDArray[np.integer], scale: Scale) -> None:
        mask = padded(stored, scale)
        if mask is not None:
            values[mask] = self._outside
            with self._lock:
                self._padded += 1

    def _file(self, placed: PlacedSlice) -> OpenFile:
        facts = self._series.facts[placed.instance]
        path = self._series.files[placed.instance]
        if placed.frame is None:
            opened = open_file(path, facts)
            self._digests[placed.instance] = opened.sha256
            return opened
        with self._lock:  # the frames of one file come from many threads, the file is read once
            if placed.instance not in self._open:
                self._open[placed.instance] = open_file(path, facts)
                self._digests[placed.instance] = self._open[placed.instance].sha256
                while len(self._open) > _OPEN_MULTIFRAMES:
                    self._open.popitem(last=False)
            return self._open[placed.instance]


def without_repeats(series: SeriesInput) -> tuple[SeriesInput, int]:
    """Leave out planes that repeat another's place, size, scale and pixels under a new
    SOPInstanceUID.

    Returns the series and how many were left out. What differs stays: planning refuses it in words.
    """
    repeated: set[int] = set()
    for group in same_position(series.facts):
        if any(plane.frame is not None for plane in group):
            continue
        seen: set[tuple[bytes, Scale]] = set()
        for plane in group:
            facts = series.facts[plane.instance]
            pixels = stored_pixels(open_file(series.files[plane.instance], facts).dataset, None)
            key = (pixels.tobytes(), scale_of(facts, None))
            if key in seen:
                repeated.add(plane.instance)
            seen.add(key)
    if not repeated:
        return series, 0
    return series.keep([i for i in range(len(series.facts)) if i not in repeated]), len(repeated)


def map_ahead(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Yield function(item) in order, computed on threads at most a few items ahead."""
    if threads <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="slices")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
