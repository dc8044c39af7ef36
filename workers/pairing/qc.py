"""Check a finished pair automatically: flags for people, never a verdict.

All thresholds are heuristics. Body masks are made on a coarse copy (voxels of about 8 mm), so that
a whole-body pair is checked in well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that the whole field uses

from workers.pairing.grid import Grid
from workers.pairing.pair_json import QcCheck, QcMeta

COARSE_MM = 8.0
BODY_HU = -300.0
BODY_ACTIVITY = 0.3
"""Part of the mean inside the CT's body mask above which a PET voxel counts as body."""
DICE_MINIMUM = 0.75
WHOLE_BODY_MM = 600.0
"""From this length on the mean SUV of the body is expected near 1 (most of the dose is in view)."""
SUV_MEAN_RANGE = (0.4, 1.6)
SUV_MAX_RANGE = (1.0, 200.0)
OUTSIDE_MAXIMUM = 0.02
EDGE_SLICES_MAXIMUM = 0.1
EDGE_MM = 20.0

Mask = npt.NDArray[np.bool_]
Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class BodyValues:
    """What CT and PET hold at the same places of the body, some 8 mm apart."""

    ct: npt.NDArray[np.float32]
    pet: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Checked:
    """The checks of a pair, and the planes that a picture of it needs."""

    meta: QcMeta
    coronal_mip: npt.NDArray[np.float32]
    """(C, W), the largest PET value along H."""
    sagittal_mip: npt.NDArray[np.float32]
    """(C, H), the largest PET value along W."""
    body_box: tuple[slice, slice]
    """Where body was found along H and W, in voxels; all of it where none was."""
    body: BodyValues


def check_pair(
    ct: Volume, pet: Volume, grid: Grid, *, is_suv: bool, outside_hu: float, ct_box: Sequence[Mask]
) -> Checked:
    """Check a pair of arrays (C, H, W) on one grid.

    `outside_hu` is what the CT holds outside its field of view; `ct_box` says for each index along
    W, H, C whether the CT reaches it.
    """
    coronal, sagittal, hottest = _projections(pet)
    strides = [max(1, round(COARSE_MM / step)) for step in reversed(grid.spacing)]
    coarse = tuple(slice(stride // 2, None, stride) for stride in strides)
    small_ct, small_pet = np.asarray(ct[coarse]), np.asarray(pet[coarse], np.float32)
    body = body_mask(small_ct > BODY_HU)
    mean = float(small_pet[body].mean()) if body.any() else None
    active = (
        body_mask(small_pet > BODY_ACTIVITY * mean) if mean and mean > 0 else np.zeros_like(body)
    )
    box = [np.asarray(inside)[cut] for inside, cut in zip(reversed(ct_box), coarse, strict=True)]
    steps = [step * stride for step, stride in zip(reversed(grid.spacing), strides, strict=True)]
    checks = (
        _overlap(body, active),
        _outside(active, small_ct, outside_hu),
        _truncated(body, box, steps),
        _mean(mean, grid, is_suv),
        _maximum(float(pet[hottest]), is_suv),
    )
    place = grid.affine @ np.array([hottest[2], hottest[1], hottest[0], 1.0])
    meta = QcMeta(
        checks=checks,
        hottest_index=hottest,
        hottest_mm=(float(place[0]), float(place[1]), float(place[2])),
        hottest_value=float(pet[hottest]),
        body_mean=mean,
    )
    found = body | active
    box_h = _span(np.any(found, axis=(0, 2)), strides[1], pet.shape[1])
    box_w = _span(np.any(found, axis=(0, 1)), strides[2], pet.shape[2])
    values = BodyValues(small_ct[body].astype(np.float32), small_pet[body])
    return Checked(meta, coronal, sagittal, (box_h, box_w), values)


def body_mask(mask: Mask) -> Mask:
    """Keep the largest connected part of a mask (no table, no noise) and fill its holes per
    slice.
    """
    if not mask.any():
        return mask
    parts = sitk.RelabelComponent(_components(mask), sortByObjectSize=True)
    largest = sitk.GetArrayFromImage(parts) == 1
    # empty planes between the slices make one labelling of the volume label every slice alone
    spread = np.zeros((2 * len(mask), *mask.shape[1:]), bool)
    spread[::2] = ~largest
    labels = sitk.GetArrayFromImage(_components(spread))[::2]
    around = np.zeros(int(labels.max()) + 1, bool)
    for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        around[side.ravel()] = True
    around[0] = False
    body: Mask = ~around[labels]
    return body


def _components(mask: Mask) -> sitk.Image:
    image: sitk.Image = sitk.GetImageFromArray(mask.astype(np.uint8))
    parts: sitk.Image = sitk.ConnectedComponent(image)
    return parts


def _span(found: Mask, stride: int, count: int) -> slice:
    used = np.flatnonzero(found)
    if not len(used):
        return slice(0, count)
    return slice(int(used[0]) * stride, min(count, (int(used[-1]) + 1) * stride))


def _projections(
    pet: Volume,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], tuple[int, int, int]]:
    count, height, width = pet.shape
    coronal = np.empty((count, width), np.float32)
    sagittal = np.empty((count, height), np.float32)
    for index in range(count):
        plane = np.asarray(pet[index])
        coronal[index] = plane.max(axis=0)
        sagittal[index] = plane.max(axis=1)
    slice_index = int(np.argmax(coronal.max(axis=1)))
    row, column = divmod(int(np.argmax(pet[slice_index])), width)
    return coronal, sagittal, (slice_index, row, column)


def _overlap(body: Mask, active: Mask) -> QcCheck:
    expected = f"at least {DICE_MINIMUM:g}"
    if not body.any() or not active.any():
        which = "CT" if not body.any() else "PET"
        return QcCheck("body_overlap", None, expected, True, f"no body found in the {which}")
    dice = 2 * int((body & active).sum()) / (int(body.sum()) + int(active.sum()))
    return QcCheck(
        "body_overlap", dice, expected, dice < DICE_MINIMUM, f"Dice of the body masks {dice:.2f}"
    )


def _outside(active: Mask, ct: Volume, outside_hu: float) -> QcCheck:
    expected = f"at most {OUTSIDE_MAXIMUM:.0%}"
    if not active.any():
        return QcCheck("pet_outside_ct", None, expected, False, "not judged: no body in the PET")
    part = float((np.asarray(ct)[active] <= outside_hu).mean())
    words = f"{part:.1%} of the PET's body lies outside the CT's field of view"
    return QcCheck("pet_outside_ct", part, expected, part > OUTSIDE_MAXIMUM, words)


def _truncated(body: Mask, box: Sequence[Mask], steps: Sequence[float]) -> QcCheck:
    """Count the slices in which the body runs into a side of the CT's field of view."""
    expected = f"at most {EDGE_SLICES_MAXIMUM:.0%} of the slices"
    rows, columns = np.flatnonzero(box[1]), np.flatnonzero(box[2])
    slices = int(body.any(axis=(1, 2)).sum())
    if not slices or not len(rows) or not len(columns):
        return QcCheck("ct_truncated", None, expected, False, "not judged: no body in the CT")
    sides = (
        body[:, :, columns[0]].sum(axis=1) * steps[1],
        body[:, :, columns[-1]].sum(axis=1) * steps[1],
        body[:, rows[0], :].sum(axis=1) * steps[2],
        body[:, rows[-1], :].sum(axis=1) * steps[2],
    )
    touching = int((np.max(sides, axis=0) >= EDGE_MM).sum())
    part = touching / slices
    words = f"the body runs into the side of the CT in {part:.0%} of the slices"
    return QcCheck("ct_truncated", part, expected, part > EDGE_SLICES_MAXIMUM, words)


def _mean(mean: float | None, grid: Grid, is_suv: bool) -> QcCheck:
    low, high = SUV_MEAN_RANGE
    expected = f"{low:g} to {high:g} over a whole body"
    length = grid.size[2] * grid.spacing[2]
    if mean is None or not is_suv or length < WHOLE_BODY_MM:
        why = "no SUV" if not is_suv else f"{length:.0f} mm are no whole body"
        return QcCheck("suv_mean", None, expected, False, f"mean not judged: {why}")
    words = f"mean SUV of the body {mean:.2f}"
    return QcCheck("suv_mean", mean, expected, not low <= mean <= high, words)


def _maximum(maximum: float, is_suv: bool) -> QcCheck:
    low, high = SUV_MAX_RANGE
    expected = f"{low:g} to {high:g}"
    if not is_suv:
        return QcCheck("suv_max", None, expected, False, "maximum not judged: no SUV")
    words = f"largest SUV {maximum:.2f}"
    return QcCheck("suv_max", maximum, expected, not low <= maximum <= high, words)
