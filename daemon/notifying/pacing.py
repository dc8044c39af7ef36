"""When the next message goes out: what happens soon after goes with it; failures make it wait."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 600.0


@dataclass(slots=True)
class Pace:
    """The pace of one channel; times are monotonic seconds."""

    batch_seconds: float
    _pause: float = 0.0
    _due_at: float | None = None

    def is_due(self, now: float, *, full: bool) -> bool:
        """Tell whether what waits goes out now; a full message waits for nothing but a failure."""
        if self._due_at is None:
            self._due_at = now + self.batch_seconds
        return now >= self._due_at or (full and not self._pause)

    def sent(self) -> None:
        self._pause, self._due_at = 0.0, None

    def failed(self, now: float) -> float:
        """Wait longer than the last time; return how long."""
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or FIRST_PAUSE_SECONDS)
        self._due_at = now + self._pause
        return self._pause
