"""Slices in space: one orientation is a stack; its positions, steps and gaps.

Frames of multi-frame instances count as slices. Nothing here reads pixels or files.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from workers.header.facts import InstanceFacts, Vector3, Vector6

SAME_POSITION_MM = 0.01
"""Slices closer than this lie at one position: no scanner steps so finely."""
FARTHEST_MM = 1e5
"""No image lies farther from the origin of its frame of reference."""
GAP_STEPS = 1.5
"""A step above so many median steps is a gap (heuristic, pairing-science 2)."""
SAME_ORIENTATION = 1e-3
"""Largest difference of a direction cosine within one stack (0.06 degrees)."""
LOCALIZER_IMAGES = 4
"""A localizer has one or two views, seldom more."""
ACROSS_COSINE = 0.5
AXIAL_COSINE = 0.8
"""A normal within 37 degrees of the patient's long axis is axial: gantry tilts stay below 30."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One image plane: an instance, or one frame of it."""

    instance: int
    """Index into the instances that were given."""
    frame: int | None
    position: Vector3
    orientation: Vector6


@dataclass(frozen=True, slots=True)
class Gap:
    """A step that is too large."""

    before: float
    after: float
    z: float
    """Patient z in mm of the middle of the gap: where one missing slice would lie."""

    @property
    def width(self) -> float:
        """Return the step in mm."""
        return self.after - self.before


@dataclass(frozen=True)
class Stack:
    """Slices of one orientation, sorted along the normal."""

    normal: Vector3
    slices: tuple[Slice, ...]
    along: tuple[float, ...]
    """Position of each slice along the normal, mm, rising."""

    @cached_property
    def positions(self) -> tuple[float, ...]:
        """Return the distinct positions along the normal, mm."""
        kept: list[float] = []
        for value in self.along:
            if not kept or value - kept[-1] > SAME_POSITION_MM:
                kept.append(value)
        return tuple(kept)

    @cached_property
    def groups(self) -> tuple[tuple[Slice, ...], ...]:
        """Return the slices of each distinct position."""
        grouped: list[list[Slice]] = []
        last = None
        for one, value in zip(self.slices, self.along, strict=True):
            if last is None or value - last > SAME_POSITION_MM:
                grouped.append([])
                last = value
            grouped[-1].append(one)
        return tuple(tuple(group) for group in grouped)

    @cached_property
    def step(self) -> float | None:
        """Return the median step in mm; None below two positions."""
        steps = [b - a for a, b in pairwise(self.positions)]
        return statistics.median(steps) if steps else None

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """Return the steps above 1.5 median steps."""
        if self.step is None:
            return ()
        found = []
        heights = [group[0].position[2] for group in self.groups]
        for index, (a, b) in enumerate(pairwise(self.positions)):
            if b - a > GAP_STEPS * self.step:
                middle = (heights[index] + heights[index + 1]) / 2
                found.append(Gap(a, b, middle))
        return tuple(found)

    @property
    def is_axial(self) -> bool:
        """Tell whether the planes lie across the long axis of the body."""
        return abs(self.normal[2]) >= AXIAL_COSINE

    @property
    def extent(self) -> float:
        """Return the length in mm from the first to the last slice, one step included."""
        return self.positions[-1] - self.positions[0] + (self.step or 0.0)


def slices_of(instances: Sequence[InstanceFacts]) -> tuple[Slice, ...]:
    """List the slices that have a place in space, in the order given."""
    found: list[Slice] = []
    for index, facts in enumerate(instances):
        if facts.frames:
            for number, frame in enumerate(facts.frames):
                position = frame.image_position_patient or facts.image_position_patient
                orientation = frame.image_orientation_patient or facts.image_orientation_patient
                found += _placed(index, number, position, orientation)
        else:
            found += _placed(
                index, None, facts.image_position_patient, facts.image_orientation_patient
            )
    return tuple(found)


def stacks_of(instances: Sequence[InstanceFacts]) -> tuple[Stack, ...]:
    """Group the slices of a series by orientation, the largest stack first."""
    groups: list[tuple[Vector6, list[Slice]]] = []
    for one in slices_of(instances):
        first = one.orientation[0]
        for orientation, members in groups:
            # most slices have the very same; the first cosine tells most views of a rotating
            # projection apart, cheaply
            if orientation == one.orientation or (
                abs(orientation[0] - first) <= SAME_ORIENTATION
                and _alike(orientation, one.orientation)
            ):
                members.append(one)
                break
        else:
            groups.append((one.orientation, [one]))
    stacks = [_stack(orientation, members) for orientation, members in groups]
    return tuple(sorted(stacks, key=lambda stack: -len(stack.slices)))


def main_stack(instances: Sequence[InstanceFacts]) -> Stack | None:
    """Return the largest stack of a series; None when no image has a place in space."""
    stacks = stacks_of(instances)
    return stacks[0] if stacks else None


def strays_of(
    instances: Sequence[InstanceFacts], stacks: Sequence[Stack], *, localizers: bool
) -> int:
    """Count the slices outside the main one of these stacks, and the instances without any place.

    `localizers`: a few images across the main stack, or said to be LOCALIZER, belong to a CT series
    and do not count.
    """
    if not stacks:
        return len(instances)
    placed = {one.instance for stack in stacks for one in stack.slices}
    unplaced = 0 if localizers else len(instances) - len(placed)
    others = list(stacks[1:])
    if localizers:
        others = [one for one in others if not _is_localizer(one, stacks[0], instances)]
    return unplaced + sum(len(one.slices) for one in others)


def volume_instances(instances: Sequence[InstanceFacts]) -> tuple[InstanceFacts, ...]:
    """Leave out what does not belong to the main stack (an embedded localizer, a dose page).

    The rest comes in slice order along the normal; without any geometry everything stays as it is.
    """
    stack = main_stack(instances)
    if stack is None:
        return tuple(instances)
    order = dict.fromkeys(one.instance for one in stack.slices)
    return tuple(instances[index] for index in order)


def normal_of(orientation: Vector6) -> Vector3:
    """Return the unit normal of an image plane (row direction x column direction)."""
    rx, ry, rz, cx, cy, cz = orientation
    x, y, z = ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx
    length = (x * x + y * y + z * z) ** 0.5
    return (x / length, y / length, z / length) if length > 0 else (0.0, 0.0, 0.0)


def dot(a: Vector3, b: Vector3) -> float:
    """Return the scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _placed(
    index: int, frame: int | None, position: Vector3 | None, orientation: Vector6 | None
) -> list[Slice]:
    """Return the slice, unless its place is missing or none that a scanner reaches."""
    if position is None or orientation is None:
        return []
    x, y, z = position
    if not (abs(x) <= FARTHEST_MM and abs(y) <= FARTHEST_MM and abs(z) <= FARTHEST_MM):
        return []  # NaN too
    if not all(abs(value) <= 1 + SAME_ORIENTATION for value in orientation):
        return []
    return [Slice(index, frame, position, orientation)]


def _is_localizer(stack: Stack, main: Stack, instances: Sequence[InstanceFacts]) -> bool:
    if all("LOCALIZER" in instances[one.instance].image_type for one in stack.slices):
        return True
    across = abs(dot(stack.normal, main.normal)) < ACROSS_COSINE
    return across and len(stack.slices) <= LOCALIZER_IMAGES


def _alike(a: Vector6, b: Vector6) -> bool:
    return all(abs(x - y) <= SAME_ORIENTATION for x, y in zip(a, b, strict=True))


def _stack(orientation: Vector6, members: list[Slice]) -> Stack:
    normal = normal_of(orientation)
    placed = sorted(
        ((dot(normal, one.position), one) for one in members),
        key=lambda item: (item[0], item[1].instance, item[1].frame or 0),
    )
    return Stack(normal, tuple(one for _, one in placed), tuple(value for value, _ in placed))
