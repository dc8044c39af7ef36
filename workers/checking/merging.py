"""Compare two sorted streams: what both have, what one of them lacks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Left = TypeVar("Left")
Right = TypeVar("Right")


def merge(
    left: Iterable[Left],
    right: Iterable[Right],
    left_key: Callable[[Left], Any],
    right_key: Callable[[Right], Any],
) -> Iterator[tuple[Left | None, Right | None]]:
    """Yield what has equal keys together, and what only one stream has with None.

    Both streams come in ascending order; only one item of each is held. Raises ValueError where a
    stream goes back: what would be told then would not be true.
    """
    lefts, rights = _ascending(left, left_key), _ascending(right, right_key)
    one, other = next(lefts, None), next(rights, None)
    while one is not None and other is not None:
        if one[0] == other[0]:
            yield one[1], other[1]
            one, other = next(lefts, None), next(rights, None)
        elif one[0] < other[0]:
            yield one[1], None
            one = next(lefts, None)
        else:
            yield None, other[1]
            other = next(rights, None)
    while one is not None:
        yield one[1], None
        one = next(lefts, None)
    while other is not None:
        yield None, other[1]
        other = next(rights, None)


def _ascending(items: Iterable[Left], key: Callable[[Left], Any]) -> Iterator[tuple[Any, Left]]:
    before: Any = None
    for item in items:
        now = key(item)
        if before is not None and now < before:
            raise ValueError(f"a stream goes back from {before!r} to {now!r}")
        before = now
        yield now, item
