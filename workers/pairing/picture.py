"""Draw qc.png: what a physicist looks at before a pair is believed.

Coronal and sagittal planes through the hottest voxel (CT, PET, fused) and the maximum projections,
in true proportions, head up. Coronal views are seen from the front, so the patient's right is on
the left of the picture; sagittal ones from the patient's left, anterior on the left. No name,
number or date is drawn.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from workers.pairing.grid import Grid
from workers.pairing.histograms import draw_histograms
from workers.pairing.qc import Checked, Volume

CT_WINDOW_HU = (-160.0, 240.0)
DPI = 110
_TEXT_INCHES = 3.3
_VIEW_INCHES = 6.6
_MARGIN_MM = 25.0
_LINE_INCHES = 0.1515
_PAPER, _INK, _FAINT, _ALARM = "#101214", "#e8e8e8", "#8a9099", "#ffb454"

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Legend:
    """The words beside the pictures."""

    title: str
    units: str
    """What the colour bar is labelled with."""
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Panel:
    kind: str
    title: str
    ct: Image | None
    pet: Image | None
    width_mm: float
    sides: tuple[str, str]
    cross_mm: tuple[float, float] | None


def draw_pair(ct: Volume, pet: Volume, grid: Grid, checked: Checked, legend: Legend) -> bytes:
    """Return the picture of a pair, arrays (C, H, W), as PNG."""
    panels = _panels(ct, pet, grid, checked)
    height_mm = grid.size[2] * grid.spacing[2]
    rows = _arrange(panels, height_mm)
    widest = max(sum(panel.width_mm for panel in row) for row in rows)
    scale = min(_VIEW_INCHES / (height_mm * len(rows)), 13.0 / widest)
    high = height_mm * scale + 0.42
    figure = Figure(
        figsize=(
            widest * scale + 0.14 * len(rows[0]) + 0.9 + _TEXT_INCHES,
            max(high * len(rows) + 0.5, 5.2),
        ),
        dpi=DPI,
        facecolor=_PAPER,
    )
    FigureCanvasAgg(figure)
    limit = _upper_limit(checked, legend.units)
    wide, tall = figure.get_size_inches()
    top = tall - 0.42
    for row in rows:
        left = 0.15
        for panel in row:
            box = (left / wide, (top - height_mm * scale - 0.2) / tall,
                   panel.width_mm * scale / wide, height_mm * scale / tall)  # fmt: skip
            _draw(figure.add_axes(box), panel, height_mm, limit)
            left += panel.width_mm * scale + 0.14
        top -= high
    bar_left = 0.15 + widest * scale + 0.14 * len(rows[0]) + 0.05
    words_left, view = bar_left + 0.85, height_mm * scale
    bar = (bar_left / wide, 1 - (0.62 + view) / tall, 0.13 / wide, view / tall)
    _colour_bar(figure, bar, limit, legend.units)
    words_end = tall * _words(figure, words_left / wide, legend)
    if len(rows) > 1:  # the shorter row leaves a corner, beside and below the words
        foot = top + high - view - 0.2
        beside = (left + 0.2, foot, words_left - left - 0.5, view)
        below = (words_left, foot, wide - words_left - 0.3, min(view, words_end - 0.4 - foot))
        draw_histograms(figure, beside, below, checked.body, limit, legend.units)
    figure.text(0.15 / wide, 1 - 0.27 / tall, legend.title, color=_INK, fontsize=11, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=_PAPER, metadata={"Software": None})
    return buffer.getvalue()


def _panels(ct: Volume, pet: Volume, grid: Grid, checked: Checked) -> list[_Panel]:
    c, h, w = checked.meta.hottest_index
    step_w, step_h, step_c = grid.spacing
    rows = _widen(checked.body_box[0], h, grid.size[1], step_h)
    columns = _widen(checked.body_box[1], w, grid.size[0], step_w)
    wide, deep = (columns.stop - columns.start) * step_w, (rows.stop - rows.start) * step_h
    x, y, z = (
        (w - columns.start + 0.5) * step_w,
        (h - rows.start + 0.5) * step_h,
        (c + 0.5) * step_c,
    )
    coronal = (
        np.asarray(ct[:, h, columns], np.float32),
        np.asarray(pet[:, h, columns], np.float32),
        checked.coronal_mip[:, columns],
    )
    sagittal = (
        np.asarray(ct[:, rows, w], np.float32),
        np.asarray(pet[:, rows, w], np.float32),
        checked.sagittal_mip[:, rows],
    )
    return [
        *_four("coronal", "PET MIP", coronal, wide, ("R", "L"), (x, z)),
        *_four("sagittal", "PET MIP from the left", sagittal, deep, ("A", "P"), (y, z)),
    ]


def _four(
    view: str,
    mip_title: str,
    images: tuple[Image, Image, Image],
    width_mm: float,
    sides: tuple[str, str],
    cross_mm: tuple[float, float],
) -> list[_Panel]:
    ct, pet, mip = images
    return [
        _Panel("ct", f"CT {view}", ct, None, width_mm, sides, cross_mm),
        _Panel("pet", f"PET {view}", None, pet, width_mm, sides, cross_mm),
        _Panel("fused", f"fused {view}", ct, pet, width_mm, sides, None),
        _Panel("pet", mip_title, None, mip, width_mm, sides, None),
    ]


def _widen(body: slice, index: int, count: int, step: float) -> slice:
    """Show the body and some air around it, and the hottest voxel wherever it is."""
    margin = round(_MARGIN_MM / step)
    return slice(
        max(0, min(body.start, index) - margin), min(count, max(body.stop, index + 1) + margin)
    )


def _arrange(panels: list[_Panel], height_mm: float) -> list[list[_Panel]]:
    """Put tall bodies in one row, flat ones in two."""
    total = sum(panel.width_mm for panel in panels)
    return [panels] if total < 3.2 * height_mm else [panels[:4], panels[4:]]


def _draw(axes: Any, panel: _Panel, height_mm: float, limit: float) -> None:
    extent = (0.0, panel.width_mm, 0.0, height_mm)
    common = {"origin": "lower", "extent": extent, "aspect": "auto"}
    if panel.ct is not None:
        low, high = CT_WINDOW_HU
        axes.imshow(panel.ct, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **common)
    if panel.pet is not None and panel.kind == "pet":
        axes.imshow(
            panel.pet, cmap="gray_r", vmin=0, vmax=limit, interpolation="bilinear", **common
        )
    if panel.pet is not None and panel.kind == "fused":
        # transparent where cold, so that anatomy shows; opaque from a quarter of the scale on
        opacity = np.clip(panel.pet / (0.5 * limit), 0, 0.8)
        axes.imshow(
            panel.pet,
            cmap="hot",
            vmin=0,
            vmax=limit,
            alpha=opacity,
            interpolation="bilinear",
            **common,
        )
    if panel.cross_mm is not None:
        across, up = panel.cross_mm
        axes.axvline(across, color="#4aa3ff", linewidth=0.5, alpha=0.7)
        axes.axhline(up, color="#4aa3ff", linewidth=0.5, alpha=0.7)
    axes.set_xlim(0, panel.width_mm)
    axes.set_ylim(0, height_mm)
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#3a3f46")
    axes.set_title(panel.title, color=_INK, fontsize=8, pad=3)
    edge = [withStroke(linewidth=1.5, foreground="black")]
    places = (
        (0.03, 0.5, panel.sides[0], "left", "center"),
        (0.97, 0.5, panel.sides[1], "right", "center"),
        (0.5, 0.985, "H", "center", "top"),
        (0.5, 0.015, "F", "center", "bottom"),
    )
    for across, up, letter, ha, va in places:
        words = axes.text(
            across, up, letter, transform=axes.transAxes, color="#7ab8ff", ha=ha, va=va
        )
        words.set(fontsize=8, weight="bold", path_effects=edge)


def _colour_bar(
    figure: Figure, box: tuple[float, float, float, float], limit: float, units: str
) -> None:
    axes: Any = figure.add_axes(box)
    ramp = np.linspace(0, 1, 256)[:, None]
    sides: tuple[tuple[str, float], ...] = (("gray_r", 0.0), ("hot", 1.0))
    for name, start in sides:
        axes.imshow(ramp, cmap=name, norm=Normalize(0, 1), aspect="auto", origin="lower",
                    extent=(start, start + 1, 0, limit))  # fmt: skip
    axes.set_xlim(0, 2)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.tick_params(colors=_INK, labelsize=7)
    axes.set_title(units, color=_INK, fontsize=8, pad=6, loc="left")


def _words(figure: Figure, left: float, legend: Legend) -> float:
    """Write names, values and warnings as blocks of text: a text a line would be slow to draw.

    Returns how high above the figure's foot they end, as a part of it.
    """
    wide, tall = figure.get_size_inches()
    up = 1 - 0.5 / tall
    names, values = [], []
    for name, value in legend.facts:
        lines = textwrap.wrap(value, 34) or [""]
        names += [name] + [""] * (len(lines) - 1)
        values += lines
    line = _LINE_INCHES / tall
    style: dict[str, Any] = {"fontsize": 7.5, "va": "top", "linespacing": 1.45}
    figure.text(left, up, "\n".join(names), color=_FAINT, **style)
    figure.text(left + 1.0 / wide, up, "\n".join(values), color=_INK, **style)
    up -= (len(values) + 1) * line
    title = f"{len(legend.warnings)} to look at" if legend.warnings else "nothing to look at"
    figure.text(left, up, title, color=_ALARM if legend.warnings else _FAINT, **style)
    up -= 1.3 * line
    room = max(1, int(up / line) - 1)
    told = [
        f"{'  ' if number else '- '}{part}"
        for words in legend.warnings
        for number, part in enumerate(textwrap.wrap(words, 50))
    ]
    if len(told) > room:
        told = [*told[: room - 1], "… more in pair.json"]
    figure.text(left, up, "\n".join(told), color=_ALARM, **style)
    return float(up - len(told) * line)


def _upper_limit(checked: Checked, units: str) -> float:
    """Scale PET to SUV 5 or 10; to the 99.5th percentile of the projection where it is no SUV."""
    top = float(np.percentile(checked.coronal_mip, 99.5))
    if units.startswith("SUV"):
        return 10.0 if top > 5 else 5.0
    return top if top > 0 else 1.0
