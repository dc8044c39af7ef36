"""Which roles one machine runs, in which order they start, and how long each may take to stop."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from config.settings import Settings
from daemon.errors import DaemonError
from workers.queues import FILING, PAIRING

_DRAIN_SECONDS = 120.0
"""How long workers of their own may take to stop: the job in hand may be finished."""


class Stage(IntEnum):
    """When a role is stopped: what comes in first, what others need last."""

    INTAKE = 0
    WORK = 1
    SWEEP = 2
    SERVER = 3


@dataclass(frozen=True, slots=True)
class Role:
    """One process to keep running: its arguments, and how long it may take to stop."""

    name: str
    arguments: tuple[str, ...]
    stage: Stage
    stop_seconds: float
    awaited: bool = True
    """Whether the installation is not ready without it."""
    ends: bool = False
    """Whether it ends by itself, with 0, and is not started again then."""


def plan_workers(queue: str, count: int, *, drain: bool = False) -> tuple[Role, ...]:
    """Return so many workers of a queue, each knowing how many they are."""
    options = ("--beside", str(count), *(("--drain",) if drain else ()))
    return tuple(
        Role(
            f"{queue}-{number}", ("work", _named(queue, number), *options), Stage.WORK,
            _DRAIN_SECONDS, ends=drain,
        )
        for number in range(1, count + 1)
    )  # fmt: skip


def plan_roles(settings: Settings, only: Collection[str] = ()) -> tuple[Role, ...]:
    """Return the roles of one machine in the order of their start.

    `only` names the roles to keep (`receive`, `watch`, `filing`, …); all when empty.
    """
    receiving = settings.receiver.stop_seconds + 5
    roles = [
        Role("valkey", ("valkey",), Stage.SERVER, 5),
        Role("sweep", ("sweep",), Stage.SWEEP, 10),
        Role(
            "receive",
            ("receive", "--host", settings.receiver.host, "--port", str(settings.receiver.port)),
            Stage.INTAKE,
            receiving,
        ),
        Role("watch", ("watch",), Stage.INTAKE, 15),
        *(
            Role(f"{queue}-{number}", ("work", _named(queue, number)), Stage.WORK, 30)
            for queue, count in (
                (FILING, settings.filing.workers),
                (PAIRING, settings.pairing.workers if settings.pairing.enabled else 0),
            )
            for number in range(1, count + 1)
        ),
    ]
    if settings.web.enabled:
        roles.append(Role("web", ("web",), Stage.SWEEP, 10, awaited=False))
    if settings.notify.enabled:
        roles.append(Role("notify", ("notify",), Stage.SWEEP, 10, awaited=False))
    if settings.mirror.enabled:
        roles.append(Role("mirror", ("mirror",), Stage.SWEEP, 10, awaited=False))
    if settings.redis.url:
        roles = [role for role in roles if role.name != "valkey"]
    if only:
        known = {role.name.split("-")[0] for role in roles}
        strange = set(only) - known
        if strange:
            there = ", ".join(sorted(known))
            raise DaemonError(f"no such role: {', '.join(sorted(strange))}; there are {there}")
        roles = [role for role in roles if role.name.split("-")[0] in only]
    return tuple(roles)


def _named(queue: str, number: int) -> str:
    """Name a worker of a queue: the starts of each are counted by themselves."""
    return queue if number == 1 else f"{queue}-{number}"
