"""Whether an instance may be taken now."""

from daemon.room import Room

__all__ = ["Room"]
