"""The image planes of a series: what each needs so that it has a place in the patient.

Frames of a multi-frame instance are planes like single instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.completeness.stacks import SAME_POSITION_MM, dot, normal_of
from workers.errors import PairingRefused
from workers.header.facts import FrameFacts, InstanceFacts, Vector3, Vector6

COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """One image plane: an instance, or one frame of it, with what its pixels need."""

    instance: int
    """Index into the instances that were given."""
    frame: int | None
    sop_instance_uid: str
    position: Vector3
    orientation: Vector6
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int


def planes_of(instances: Sequence[InstanceFacts]) -> list[SliceFacts]:
    """List every image plane of these instances once; a repeated SOPInstanceUID is left out.

    Raises PairingRefused where a plane lacks its place, orientation, spacing or size.
    """
    planes: list[SliceFacts] = []
    seen: set[str] = set()
    for index, facts in enumerate(instances):
        if facts.sop_instance_uid in seen:
            continue
        seen.add(facts.sop_instance_uid)
        if facts.frames:
            planes += [_plane(index, facts, n, frame) for n, frame in enumerate(facts.frames)]
        elif (facts.number_of_frames or 1) > 1:
            raise PairingRefused(
                f"a multi-frame image of {facts.number_of_frames} frames without a place for each"
            )
        else:
            planes.append(_plane(index, facts, None, None))
    return planes


def same_position(instances: Sequence[InstanceFacts]) -> list[tuple[SliceFacts, ...]]:
    """List the groups of planes that share one position: equal in pixels, or a conflict."""
    planes = planes_of(instances)
    if not planes:
        return []
    normal = plane_axes(planes[0])[2]
    ordered = sorted(planes, key=lambda plane: dot(normal, plane.position))
    groups: list[list[SliceFacts]] = []
    last: float | None = None
    for plane in ordered:
        value = dot(normal, plane.position)
        if last is None or value - last > SAME_POSITION_MM:
            groups.append([])
            last = value
        groups[-1].append(plane)
    return [tuple(group) for group in groups if len(group) > 1]


def axis_name(normal: Vector3) -> str:
    """Name the patient axis that a normal is closest to: positions are told to people along it."""
    return "xyz"[max(range(3), key=lambda axis: abs(normal[axis]))]


def plane_axes(plane: SliceFacts) -> tuple[Vector3, Vector3, Vector3]:
    """Return the unit vectors of row, column and normal, made exactly orthogonal."""
    row = np.array(plane.orientation[:3])
    column = np.array(plane.orientation[3:])
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    normal = normal_of(six(row, column))
    return vector(row), vector(column), normal


def _plane(
    index: int, facts: InstanceFacts, number: int | None, frame: FrameFacts | None
) -> SliceFacts:
    position = (frame and frame.image_position_patient) or facts.image_position_patient
    orientation = (frame and frame.image_orientation_patient) or facts.image_orientation_patient
    spacing = (frame and frame.pixel_spacing) or facts.pixel_spacing
    if position is None or not np.isfinite(position).all():
        raise PairingRefused(_placeless("ImagePositionPatient"))
    if orientation is None or not np.isfinite(orientation).all():
        raise PairingRefused(_placeless("ImageOrientationPatient"))
    if spacing is None or not np.isfinite(spacing).all():
        raise PairingRefused(_placeless("PixelSpacing"))
    if min(spacing) <= 0:
        raise PairingRefused(f"PixelSpacing {spacing[0]:g}\\{spacing[1]:g} is not a size")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > COSINE_TOLERANCE:
        words = "\\".join(f"{value:g}" for value in orientation)
        raise PairingRefused(f"ImageOrientationPatient {words} is not a pair of unit vectors")
    if not facts.rows or not facts.columns:
        raise PairingRefused("a slice without Rows and Columns: it is no image")
    return SliceFacts(
        instance=index,
        frame=number,
        sop_instance_uid=facts.sop_instance_uid,
        position=position,
        orientation=orientation,
        pixel_spacing=spacing,
        rows=facts.rows,
        columns=facts.columns,
    )


def _placeless(keyword: str) -> str:
    return f"a slice without a usable {keyword}: its place is not known"


def vector(values: Sequence[float] | npt.NDArray[np.float64]) -> Vector3:
    x, y, z = values
    return (float(x) + 0.0, float(y) + 0.0, float(z) + 0.0)  # no -0.0


def six(row: npt.NDArray[np.float64], column: npt.NDArray[np.float64]) -> Vector6:
    a, b = vector(row), vector(column)
    return (a[0], a[1], a[2], b[0], b[1], b[2])
