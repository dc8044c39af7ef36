"""What a scanner's reconstruction makes of the body: stored pixels with their rescale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom.valuerep import format_number_as_ds

from workers.phantom.anatomy import Body, Floats, Quantity
from workers.phantom.planes import Plane, axial, coronal, sagittal, ticks, view
from workers.phantom.spec import AxialGrid, PhantomSpec

CT_EDGE_MM = 1.0
PET_EDGE_MM = 5.0
"""Width over which one organ turns into the next: sharper in CT than in PET."""

CT_INTERCEPT = -1024
CT_PADDING = -2000
"""Stored value outside the reconstruction circle (PixelPaddingValue), as on real scanners."""

NAC_DEPTH_MM = 45.0
"""Depth at which a PET without attenuation correction has lost 63 % of its signal (adult)."""
NAC_PEAK_CPS = 12.0
"""Counts per second and SUV at the skin in the PET without attenuation correction."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as stored: value = pixels * slope + intercept."""

    plane: Plane
    pixels: NDArray[np.int16]
    slope: str = "1"
    """RescaleSlope exactly as the header carries it (DS)."""
    intercept: str = "0"


@dataclass(frozen=True)
class Camera:
    """Takes every picture of one body as one spec asks."""

    spec: PhantomSpec
    body: Body

    def ct(self, index: int) -> Picture:
        """Axial CT slice, padded outside the reconstruction circle."""
        plane = axial(self.spec.layout.ct, self.spec.orientation, index)
        hounsfield = self._sample(Quantity.HU, plane, CT_EDGE_MM)
        stored = _stored_hu(hounsfield)
        stored[_outside_circle(self.spec.layout.ct.matrix)] = CT_PADDING
        return Picture(plane, stored, "1", str(CT_INTERCEPT))

    def pet_plane(self, index: int) -> Plane:
        return axial(self.spec.layout.pet, self.spec.orientation, index)

    def pet_ac(self, index: int) -> Picture:
        """Axial PET slice in Bq/ml; its slope uses the whole range of each slice."""
        plane = self.pet_plane(index)
        suv = self._sample(Quantity.SUV, plane, PET_EDGE_MM)
        return _scaled(plane, suv / np.float32(self.spec.identity.suv_factor))

    def pet_nac(self, index: int) -> Picture:
        """Axial PET slice without attenuation correction, in counts/s: bright skin and lungs."""
        plane = self.pet_plane(index)
        suv = self._sample(Quantity.SUV, plane, PET_EDGE_MM)
        depth = self.body.depth(plane.xs, plane.ys, plane.zs).reshape(plane.shape)
        lost = np.exp(-depth / np.float32(NAC_DEPTH_MM * self.spec.layout.scale))
        return _scaled(plane, suv * lost * np.float32(NAC_PEAK_CPS))

    def coronal(self, index: int) -> Picture:
        """CT reformatted in a coronal plane, the first one in front."""
        grid, (xs, _, zs) = self.spec.layout.ct, self._reformat_axes
        step = grid.matrix * grid.pixel_mm / 2.2 / self.spec.layout.reformats
        y = ticks(grid.centre_mm[1], step, self.spec.layout.reformats)[index]
        return self._reformat(coronal(xs, zs, y, round(step, 4)))

    def sagittal(self, index: int) -> Picture:
        """CT reformatted in a sagittal plane, the first one at the patient's right."""
        grid, (_, ys, zs) = self.spec.layout.ct, self._reformat_axes
        step = grid.matrix * grid.pixel_mm / 1.6 / self.spec.layout.reformats
        x = ticks(grid.centre_mm[0], step, self.spec.layout.reformats)[index]
        return self._reformat(sagittal(ys, zs, x, round(step, 4)))

    def scout(self, index: int) -> Picture:
        """Localizer: the sum of the body along y (index 0) or x (index 1)."""
        xs, ys, zs = self._ct_axes
        step = self.spec.layout.coarse_mm
        plane = coronal(xs, zs, 0.0, step) if index == 0 else sagittal(ys, zs, 0.0, step)
        mass = (self._hu_volume + np.float32(1000.0)).sum(axis=1 + index) * np.float32(step)
        passed = np.exp(-mass / np.float32(200_000.0 * self.spec.layout.scale))
        shade = np.float32(1000.0) - np.float32(1500.0) * passed
        return Picture(plane, _stored_hu(shade), "1", str(CT_INTERCEPT))

    def mip(self, index: int) -> Picture:
        """Maximum of the PET (Bq/ml) in one view of a full turn; view 0 is the front."""
        xs, ys, zs = self._pet_axes
        cx, cy, _ = self.spec.layout.pet.centre_mm
        step = self.spec.layout.coarse_mm
        angle = 360.0 * index / self.spec.layout.mip_views
        turn = math.radians(angle)
        along = np.asarray(ticks(0.0, step, len(xs)))
        x = along[:, None] * math.cos(turn) - along[None, :] * math.sin(turn)
        y = along[:, None] * math.sin(turn) + along[None, :] * math.cos(turn)
        column, row = (np.rint((axis - along[0]) / step).astype(np.intp) for axis in (x, y))
        inside = (column >= 0) & (column < len(xs)) & (row >= 0) & (row < len(ys))
        ray = self._suv_volume[:, np.where(inside, row, 0), np.where(inside, column, 0)]
        image = np.where(inside, ray, np.float32(0.0)).max(axis=2)
        us = tuple(round(cx + u * math.cos(turn), 4) for u in along)
        vs = (round(cy + float(along[0]) * math.sin(turn), 4),)
        plane = Plane(us, vs, zs, view(angle), (step, step), step)
        return _scaled(plane, image / np.float32(self.spec.identity.suv_factor))

    def _sample(self, quantity: Quantity, plane: Plane, edge_mm: float) -> Floats:
        sampled = self.body.sample(quantity, plane.xs, plane.ys, plane.zs, edge_mm=edge_mm)
        return sampled.reshape(plane.shape)

    def _reformat(self, plane: Plane) -> Picture:
        hounsfield = self._sample(Quantity.HU, plane, CT_EDGE_MM)
        return Picture(plane, _stored_hu(hounsfield), "1", str(CT_INTERCEPT))

    @property
    def _reformat_axes(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        grid = self.spec.layout.ct
        x, y, z = grid.centre_mm
        step = min(self.spec.layout.coarse_mm, grid.step_mm)
        along = math.floor(grid.slices * grid.step_mm / step)
        xs, ys = (ticks(centre, grid.pixel_mm, grid.matrix) for centre in (x, y))
        return xs, ys, ticks(z, step, along, -1)

    @cached_property
    def _ct_axes(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        return _coarse_axes(self.spec.layout.ct, self.spec.layout.coarse_mm)

    @cached_property
    def _pet_axes(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        return _coarse_axes(self.spec.layout.pet, self.spec.layout.coarse_mm)

    @cached_property
    def _hu_volume(self) -> Floats:
        edge = self.spec.layout.coarse_mm
        return self.body.sample(Quantity.HU, *self._ct_axes, edge_mm=edge)

    @cached_property
    def _suv_volume(self) -> Floats:
        edge = self.spec.layout.coarse_mm
        return self.body.sample(Quantity.SUV, *self._pet_axes, edge_mm=edge)


def _coarse_axes(
    grid: AxialGrid, step_mm: float
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Columns, rows and (from the head down) slices of a grid at a coarser, equal step."""
    x, y, z = grid.centre_mm
    across = math.ceil(grid.matrix * grid.pixel_mm / step_mm)
    along = math.ceil(grid.slices * grid.step_mm / step_mm)
    return ticks(x, step_mm, across), ticks(y, step_mm, across), ticks(z, step_mm, along, -1)


def _stored_hu(hounsfield: Floats) -> NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(hounsfield), -1024, 3071) - CT_INTERCEPT, dtype=np.int16)


def _outside_circle(matrix: int) -> NDArray[np.bool_]:
    offset = np.arange(matrix) - (matrix - 1) / 2.0
    far = np.square(offset)[:, None] + np.square(offset)[None, :] > (matrix / 2.0) ** 2
    return np.asarray(far, dtype=np.bool_)


def _scaled(plane: Plane, values: Floats) -> Picture:
    """Store values of zero and above in 15 bits, with the slope rounded to DS before it is used."""
    peak = max(float(values.max()), 1.0)
    slope = format_number_as_ds(math.nextafter(peak / 32767.0, math.inf))
    stored = np.minimum(np.rint(values.astype(np.float64) / float(slope)), 32767)
    return Picture(plane, stored.astype(np.int16), slope, "0")
