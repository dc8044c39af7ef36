"""Which files of a series make its volume, and in which order."""

from __future__ import annotations

from workers.completeness.stacks import main_stack
from workers.pairing.volume import SeriesInput


def volume_input(series: SeriesInput) -> SeriesInput:
    """Keep the instances of the main stack, in slice order.

    An embedded localizer is set aside, as the role says. SUV factors that differ from slice to
    slice come in the order of the instances: whoever judges and whoever applies them must see this
    one.
    """
    stack = main_stack(series.facts)
    if stack is None:
        return series
    return series.keep(tuple(dict.fromkeys(one.instance for one in stack.slices)))
