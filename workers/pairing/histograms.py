"""Draw how the values in the body are spread: a wrong scale shows here before it shows in a plane.

In HU lung, fat and soft tissue have peaks of their own (about -800, -100 and 50).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workers.pairing.qc import BodyValues

Box = tuple[float, float, float, float]
"""Left, bottom, width and height, in inches of the figure."""

_CT_RANGE_HU = (-1024.0, 1000.0)
_BINS = 96
_INK, _FAINT = "#e8e8e8", "#8a9099"
_LABELS_INCHES = 0.25
_BETWEEN_INCHES = 0.55
_LEAST_INCHES = 1.3


def draw_histograms(
    figure: Figure, beside: Box, below: Box, body: BodyValues, limit: float, units: str
) -> None:
    """Draw CT and PET in the two boxes, in one of them where the other is too small, or not.

    `limit` is where the PET's scale ends: what is above stands in the last bar.
    """
    wide, tall = figure.get_size_inches()
    histograms = (
        (body.ct, _CT_RANGE_HU, "CT in the body: HU, counts (log)"),
        (body.pet, (0.0, limit), f"PET in the body: {units}, counts (log)"),
    )
    # no strict zip: there may be no room at all
    for box, (values, span, title) in zip(_boxes(beside, below), histograms, strict=False):
        low = box[1] + _LABELS_INCHES
        place = (box[0] / wide, low / tall, box[2] / wide, (box[3] - _LABELS_INCHES) / tall)
        counts, edges = np.histogram(np.clip(values, *span), _BINS, span)
        axes: Any = figure.add_axes(place, facecolor="none")
        axes.stairs(counts, edges, baseline=0.5, fill=True, color=_FAINT)
        axes.set_yscale("log")
        axes.set_ylim(0.5, 2.0 * max(1, counts.max()))
        axes.set_xlim(*span)
        axes.yaxis.set_visible(False)
        axes.tick_params(colors=_INK, labelsize=7)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_FAINT)
        axes.set_title(title, color=_INK, fontsize=8, pad=3)


def _boxes(*given: Box) -> tuple[Box, ...]:
    """Return two boxes that are large enough, or none."""
    fit = tuple(box for box in given if min(box[2:]) >= _LEAST_INCHES)
    if len(fit) != 1:
        return fit
    ((left, bottom, width, height),) = fit
    half = (height - _BETWEEN_INCHES) / 2
    if half < _LEAST_INCHES:
        return ()
    return (left, bottom + half + _BETWEEN_INCHES, width, half), (left, bottom, width, half)
