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
    source: str = ""
    """Of the last one."""
    last: Facts = field(default_factory=dict)


class Refusals:
    """Count and tell refusals; `note` leaves a note for the audit. For one thread."""

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self._kinds: dict[tuple[str, str, str], _Kind] = {}

    def tell(
        self, event: str, address: str, now: float, *, why: str, source: str = "", **facts: str
    ) -> None:
        """Tell a refusal, at once when it is the first of its kind; `now` is monotonic seconds.

        `source` says more of the peer than its address, where more is known.
        """
        source = source or address
        key = (event, address, why)
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key = (event, "elsewhere", why)
        kind = self._kinds.get(key)
        if kind is None:
            self._kinds[key] = _Kind(now + SAME_SECONDS)
            self._say(key, source, dict(facts))
        else:
            kind.more += 1
            kind.source, kind.last = source, dict(facts)

    def tidy(self, now: float) -> None:
        """Tell how many more there were of what began a minute ago."""
        for key, kind in list(self._kinds.items()):
            if now >= kind.until:
                del self._kinds[key]
                if kind.more:
                    self._say(key, kind.source, {**kind.last, "count": kind.more})

    def _say(self, key: tuple[str, str, str], source: str, facts: Facts) -> None:
        event, _, why = key
        log.warning(event, source=source, reason=why, **facts)
        self._note(event, source, reason=why, **facts)
