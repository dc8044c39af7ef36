"""Say once what is wrong, not every time that it is tried again."""

from __future__ import annotations

from typing import Any

from config.logs import Log

_KNOWN_LIMIT = 10_000


class Troubles:
    """Keep the troubles that were told; each is told again only after it was over."""

    def __init__(self, log: Log, **facts: Any) -> None:
        self._log = log
        self._facts = facts
        self._told: set[str] = set()

    def tell(self, key: str, event: str, error: OSError | None = None, **facts: Any) -> None:
        """Log a trouble as a warning, unless it is known. Only the error's number is logged."""
        if key in self._told:
            return
        if len(self._told) >= _KNOWN_LIMIT:
            self._told.clear()
        self._told.add(key)
        if error is not None:
            facts["error"] = f"{type(error).__name__} errno {error.errno}"
        self._log.warning(event, **self._facts, **facts)
        self._log.debug(event, key=key, error=str(error))

    def over(self, key: str) -> bool:
        """Note that a trouble is over; True if it had been told."""
        if key not in self._told:
            return False
        self._told.remove(key)
        return True
