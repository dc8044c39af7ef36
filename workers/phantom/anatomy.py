"""A body of ellipsoids whose HU and SUV are known at every point of patient space.

Coordinates are DICOM's (LPS, mm): x to the patient's left, y to the back, z to the head. Organs
are painted in order, later ones over earlier ones, each with an edge of a given width; deeper
inside than half that edge its values are exact. All of this is arithmetic on coordinates: no image,
no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Point = tuple[float, float, float]


class Quantity(StrEnum):
    """What is asked of the body."""

    HU = "hu"
    SUV = "suv"


_TINY = np.float32(1e-6)
"""Keeps the centre of an organ out of 0/0."""

AIR = {Quantity.HU: -1000.0, Quantity.SUV: 0.0}


@dataclass(frozen=True, slots=True)
class Organ:
    """A (super)ellipsoid: ((x/a)² + (y/b)²)^(q/2) + |z/c|^q = 1, with its two values."""

    name: str
    centre_mm: Point
    semi_axes_mm: Point
    hu: float
    suv: float
    squareness: float = 2.0
    """q: 2 is an ellipsoid, larger ones go towards a cylinder along z."""
    skin: bool = False
    """Part of the body's surface, from which attenuation is counted."""

    def scaled(self, scale: float) -> Organ:
        """The same organ in a body `scale` times as large."""
        x, y, z = self.centre_mm
        a, b, c = self.semi_axes_mm
        return replace(
            self,
            centre_mm=(x * scale, y * scale, z * scale),
            semi_axes_mm=(a * scale, b * scale, c * scale),
        )

    def value(self, quantity: Quantity) -> float:
        return self.hu if quantity is Quantity.HU else self.suv

    def depth_mm(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Distance below the surface, negative outside: exact for a sphere.

        For other shapes the smallest of three first-order distances, each (1 - k)/|grad k| of a
        convex k that is 1 on the surface: inside, none of them is less than the true distance.
        """
        (cx, cy, cz), (a, b, c) = self.centre_mm, self.semi_axes_mm
        x, y, z = x - np.float32(cx), y - np.float32(cy), z - np.float32(cz)
        across = np.sqrt(np.square(x / a) + np.square(y / b)) + _TINY
        slope_across = np.sqrt(np.square(x / a**2) + np.square(y / b**2)) / across + _TINY
        along = np.abs(z) / c
        q = self.squareness
        whole = np.power(np.power(across, q) + np.power(along, q), 1.0 / q)
        slope = np.hypot(
            slope_across * np.power(across / whole, q - 1.0),
            np.power(along / whole, q - 1.0) / c,
        )
        depth = np.minimum((1.0 - whole) / slope, (1.0 - across) / slope_across)
        return np.asarray(np.minimum(depth, c - np.abs(z)), dtype=np.float32)

    def cover(self, depth_mm: Floats, edge_mm: float) -> Floats:
        """How much of a point is this organ: 1 deeper than half an edge, 0 beyond half an edge."""
        cover = depth_mm / np.float32(edge_mm) + np.float32(0.5)
        return np.asarray(np.clip(cover, 0.0, 1.0), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Body:
    """Organs in painting order, in air."""

    organs: tuple[Organ, ...]

    def sample(
        self,
        quantity: Quantity,
        xs: Sequence[float],
        ys: Sequence[float],
        zs: Sequence[float],
        *,
        edge_mm: float,
    ) -> Floats:
        """Sample the grid spanned by three lists of coordinates (mm): shape (z, y, x)."""
        axes = tuple(np.asarray(axis, dtype=np.float32) for axis in (zs, ys, xs))
        image = np.full([axis.size for axis in axes], AIR[quantity], dtype=np.float32)
        middle, half = (max(zs) + min(zs)) / 2.0, (max(zs) - min(zs)) / 2.0
        for organ in self.organs:
            if abs(organ.centre_mm[2] - middle) > half + organ.semi_axes_mm[2] + edge_mm:
                continue
            box = _box(organ, axes, edge_mm)
            if box is None:
                continue
            z, y, x = (axis[part] for axis, part in zip(axes, box, strict=True))
            depth = organ.depth_mm(x[None, None, :], y[None, :, None], z[:, None, None])
            part = image[box]
            part += organ.cover(depth, edge_mm) * (np.float32(organ.value(quantity)) - part)
        return image

    def at(self, quantity: Quantity, points_mm: NDArray[np.float64], *, edge_mm: float) -> Floats:
        """Value at points of shape (n, 3), LPS mm: what a perfect image would show there."""
        x, y, z = np.asarray(points_mm, dtype=np.float32).reshape(-1, 3).T
        values = np.full(x.shape, AIR[quantity], dtype=np.float32)
        for organ in self.organs:
            weight = organ.cover(organ.depth_mm(x, y, z), edge_mm)
            values += weight * (np.float32(organ.value(quantity)) - values)
        return values

    def depth(self, xs: Sequence[float], ys: Sequence[float], zs: Sequence[float]) -> Floats:
        """Millimetres below the skin on a grid as in `sample`, 0 outside: shape (z, y, x)."""
        z, y, x = (np.asarray(axis, dtype=np.float32) for axis in (zs, ys, xs))
        deepest = np.zeros((z.size, y.size, x.size), dtype=np.float32)
        for organ in self.organs:
            if organ.skin:
                below = organ.depth_mm(x[None, None, :], y[None, :, None], z[:, None, None])
                np.maximum(deepest, below, out=deepest)
        return deepest


def _box(
    organ: Organ, axes: tuple[Floats, ...], edge_mm: float
) -> tuple[slice, slice, slice] | None:
    """The part of the grid in reach of an organ and its edge."""
    parts = []
    for axis, centre, semi in zip(
        axes, reversed(organ.centre_mm), reversed(organ.semi_axes_mm), strict=True
    ):
        inside = np.flatnonzero(np.abs(axis - centre) <= semi + edge_mm)
        if inside.size == 0:
            return None
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return parts[0], parts[1], parts[2]


def adult(scale: float, lesion: Organ) -> Body:
    """Build an adult, `scale` times life size, with a lesion (z = 0: hip joints)."""
    return Body((*(organ.scaled(scale) for organ in _adult_organs()), lesion))


def _adult_organs() -> Iterable[Organ]:
    yield from _outline()
    yield from _skeleton()
    yield from _thorax()
    yield from _abdomen()


def _pair(
    name: str, centre: Point, semi: Point, hu: float, suv: float, q: float = 2.0, skin: bool = False
) -> Iterable[Organ]:
    x, y, z = centre
    yield Organ(f"{name} right", (-x, y, z), semi, hu, suv, q, skin)
    yield Organ(f"{name} left", (x, y, z), semi, hu, suv, q, skin)


def _outline() -> Iterable[Organ]:
    """Fat under the skin, muscle, head."""
    yield from _pair("thigh fat", (93, 8, -370), (90, 92, 440), -100, 0.3, 4, skin=True)
    yield Organ("trunk fat", (0, 0, 290), (186, 124, 340), -100, 0.3, 6, skin=True)
    yield from _pair("shoulder", (150, 22, 545), (70, 66, 72), 45, 0.7, 2, skin=True)
    yield Organ("neck", (0, 12, 620), (60, 62, 90), 45, 0.9, 4, skin=True)
    yield Organ("head", (0, -4, 700), (80, 100, 102), 40, 1.0, 2.4, skin=True)
    yield from _pair("thigh", (92, 8, -370), (76, 78, 430), 50, 0.7, 4)
    yield Organ("trunk", (0, 0, 290), (166, 104, 326), 45, 0.8, 6)


def _skeleton() -> Iterable[Organ]:
    for rib in range(11):
        yield Organ(f"rib {rib + 1}", (0, 0, 525 - 25 * rib), (154, 99, 4.5), 420, 1.1)
    yield Organ("chest wall", (0, 0, 400), (146, 92, 175), 45, 0.8, 4)
    yield from _pair("hip bone", (92, 22, 88), (44, 34, 66), 420, 1.2)
    yield from _pair("femoral head", (88, 8, 4), (26, 26, 26), 480, 1.0)
    yield from _pair("femur", (94, 8, -330), (17, 17, 330), 980, 0.6, 6)
    yield from _pair("femur marrow", (94, 8, -330), (9, 9, 315), 10, 0.9, 6)
    yield Organ("sacrum", (0, 72, 60), (48, 22, 58), 330, 1.2)
    yield Organ("discs", (0, 62, 340), (20, 18, 270), 85, 0.9, 8)
    for level in range(19):
        yield Organ(f"vertebra {level + 1}", (0, 62, 122 + 25.5 * level), (23, 20, 11), 260, 1.6, 4)
    yield Organ("spinal canal", (0, 88, 370), (9, 8, 300), 30, 0.9, 8)
    yield from _pair("humeral head", (158, 22, 552), (26, 26, 26), 450, 1.0)
    yield Organ("skull", (0, -4, 718), (73, 93, 80), 950, 0.8, 2.2)
    yield Organ("brain", (0, -4, 718), (66, 86, 73), 36, 7.0, 2.2)
    yield from _pair("ventricle", (13, -4, 722), (8, 30, 14), 8, 2.0)
    yield Organ("mouth", (0, -62, 640), (24, 26, 18), 35, 2.0)


def _thorax() -> Iterable[Organ]:
    yield from _pair("lung", (80, 2, 418), (60, 80, 122), -780, 0.5, 2.6)
    yield Organ("trachea", (0, 18, 545), (9, 9, 80), -995, 0.3, 6)
    yield Organ("heart", (28, -34, 372), (56, 48, 56), 45, 3.4)
    yield Organ("heart blood", (32, -36, 374), (38, 31, 38), 42, 1.7)
    yield Organ("aorta", (20, 34, 350), (13, 13, 170), 45, 1.8, 6)


def _abdomen() -> Iterable[Organ]:
    yield Organ("liver", (-70, -8, 272), (80, 76, 62), 58, 2.4)
    yield Organ("spleen", (112, 34, 272), (30, 42, 48), 50, 2.0)
    yield Organ("stomach", (62, -40, 262), (44, 40, 42), 22, 1.6)
    yield Organ("stomach gas", (66, -62, 268), (22, 12, 22), -960, 0.4)
    yield from _pair("kidney", (66, 48, 205), (27, 25, 52), 32, 3.2)
    yield from _pair("renal pelvis", (58, 46, 205), (9, 9, 20), 12, 14.0)
    yield from _pair("colon", (118, -18, 150), (24, 26, 92), 25, 1.4, 4)
    yield from _pair("colon gas", (118, -26, 170), (14, 12, 30), -900, 0.5)
    yield Organ("small bowel", (0, -42, 150), (86, 38, 62), 30, 1.8)
    yield Organ("bladder", (0, -22, 52), (44, 38, 34), 8, 22.0)
