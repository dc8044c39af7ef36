"""Tell the log and the audit of peers that were turned away, without being flooded by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from config.logs import get_logger

SAME_SECONDS = 60.0
"""Equal refusals within this time are told once at first and once with their number."""

MOST_KINDS = 256
"""Different refusals that are told apart within that time; the rest go by reason alone."""

log = get_logger(__name__)

Facts = dict[str, str | int | float]


@dataclass(slots=True)
class _Kind:
    until: float
    more: int = 0
    last: Facts = field(default_factory=dict)


class Refusals:
    """Count and tell refusals; `note` leaves a note for the audit. For one thread."""

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self._kinds: dict[tuple[str, str, str], _Kind] = {}

    def tell(self, event: str, address: str, now: float, *, why: str, **facts: str | int) -> None:
        """Tell a refusal, at once when it is the first of its kind; `now` is monotonic seconds."""
        key = (event, address, why)
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key = (event, "elsewhere", why)
        kind = self._kinds.get(key)
        if kind is None:
            self._kinds[key] = _Kind(now + SAME_SECONDS)
            self._say(key, dict(facts))
        else:
            kind.more += 1
            kind.last = dict(facts)

    def tidy(self, now: float) -> None:
        """Tell how many more there were of what began a minute ago."""
        for key, kind in list(self._kinds.items()):
            if now >= kind.until:
                del self._kinds[key]
                if kind.more:
                    self._say(key, {**kind.last, "times": kind.more})

    def _say(self, key: tuple[str, str, str], facts: Facts) -> None:
        event, address, why = key
        log.warning(event, address=address, reason=why, **facts)
        self._note(event, address, reason=why, **facts)
