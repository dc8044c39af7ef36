"""What one run of the harness does: drawn from its seed, before anything starts."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from random import Random

ROLES = {
    "receiver": r"daemon receive",
    "watcher": r"daemon watch",
    "filing worker": r"daemon work filing",
    "pairing worker": r"daemon work pairing",
    "sweeper": r"daemon sweep",
    "queue server": r"valkey-server|redis-server|daemon valkey",
}
"""The processes under `run`, and how their command lines look."""

HORSE, SUPERVISOR, EVERYTHING = "horse", "supervisor", "everything"

# who is killed how often, of a hundred
_WEIGHTS = {
    "receiver": 18,
    "watcher": 14,
    "filing worker": 22,
    "pairing worker": 8,
    HORSE: 10,
    "sweeper": 8,
    "queue server": 8,
    SUPERVISOR: 7,
    EVERYTHING: 5,
}


class Kind(StrEnum):
    """What the killer does."""

    KILL = "kill"
    FLUSH = "flush"
    UNLINK = "unlink"  # the queue server's socket
    PAUSE = "pause"
    FILL = "fill"
    RESTART = "restart"  # asked for with SIGTERM


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens to the system, when so much of the delivery has been taken."""

    at: float
    """Share of the delivery, 0 to 1."""
    kind: Kind
    target: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One run; equal plans make equal deliveries and equal events."""

    seed: int
    instances: int = 5000
    """Small CT instances, beside the studies."""
    studies: int = 6
    """Tiny PET/CT studies; each gives a pair."""
    kills: int = 20
    pauses: int = 4
    flushes: int = 2
    unlinks: int = 1
    fills: int = 2
    restarts: int = 1
    senders: int = 4
    disk: str = "auto"
    """Where the root lies: "tmpfs", "loop" (ext4), "hook" (no own disk, ENOSPC is injected)."""

    def draw(self, purpose: str) -> Random:
        """Return a generator of its own for one purpose, so that none disturbs another."""
        return Random(f"{self.seed} {purpose}")

    def events(self) -> list[Event]:
        """Draw what happens, in its order."""
        rng = self.draw("events")
        drawn = [(Kind.KILL, target) for target in self._targets(rng)]
        names = list(ROLES)
        drawn += [(Kind.PAUSE, rng.choice(names)) for _ in range(self.pauses)]
        for kind, count in (
            (Kind.FLUSH, self.flushes),
            (Kind.UNLINK, self.unlinks),
            (Kind.FILL, self.fills),
            (Kind.RESTART, self.restarts),
        ):
            drawn += [(kind, "")] * count
        rng.shuffle(drawn)
        share = 0.96 / max(1, len(drawn))
        return [
            Event(0.02 + share * (number + rng.random()), kind, target, rng.uniform(0.5, 3.0))
            for number, (kind, target) in enumerate(drawn)
        ]

    def _targets(self, rng: Random) -> list[str]:
        return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=self.kills)

    @property
    def horses(self) -> int:
        """How many studies are held back, each to make work for a horse that is hunted."""
        wanted = Counter(event.target for event in self.events())[HORSE]
        return min(self.studies - 2, wanted)
