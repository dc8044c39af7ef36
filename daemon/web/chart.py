"""The last day as bars: pure geometry, for an SVG that needs no script and no style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from workers.index.arriving import Hour

WIDTH, HEIGHT = 480, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 26
_TICKS_EVERY = 6
_GAP = 0.18
"""Of an hour's width, on either side of its bars."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar in SVG units."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class HourBars:
    """What is drawn and said of one hour."""

    label: str
    """Its begin in local time, `14:00`."""
    hour: Hour
    received: Bar
    filed: Bar
    paired_x: float
    """Middle of the hour, where pairs are marked."""
    labelled: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything that the template draws."""

    hours: tuple[HourBars, ...]
    lines: tuple[tuple[float, int], ...]
    """Horizontal lines: y and the number that they stand for."""
    left: float
    right: float
    base: float


def draw(hours: Sequence[Hour]) -> Chart:
    """Lay out the bars of some hours, the oldest first."""
    top = round_up(max((max(hour.received, hour.filed) for hour in hours), default=0))
    base, height = HEIGHT - _BOTTOM, HEIGHT - _BOTTOM - _TOP
    width = (WIDTH - _LEFT - _RIGHT) / max(1, len(hours))

    def bar(number: int, count: int, side: int) -> Bar:
        tall = height * count / top
        half = width * (1 - 2 * _GAP) / 2
        x = _LEFT + number * width + width * _GAP + side * half
        return Bar(round(x, 1), round(base - tall, 1), round(half, 1), round(tall, 1))

    bars = []
    for number, hour in enumerate(hours):
        local = datetime.fromisoformat(hour.at).astimezone()
        middle = round(_LEFT + (number + 0.5) * width, 1)
        left = len(hours) - 1 - number
        bars.append(
            HourBars(local.strftime("%H:%M"), hour, bar(number, hour.received, 0),
                     bar(number, hour.filed, 1), middle, left % _TICKS_EVERY == 0)
        )  # fmt: skip
    lines = tuple((round(base - height * part, 1), round(top * part)) for part in (0, 0.5, 1))
    return Chart(tuple(bars), lines, _LEFT, WIDTH - _RIGHT, base)


def round_up(count: int) -> int:
    """Return the next of 10, 20, 50, 100, … that is not below a count."""
    step = 10
    while True:
        for factor in (1, 2, 5):
            if count <= step * factor:
                return step * factor
        step *= 10
