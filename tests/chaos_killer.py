"""The killer: does to the system what the plan says, when the delivery has come so far."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable

from chaos_delivery import Delivery
from chaos_disk import Disk
from chaos_plan import EVERYTHING, HORSE, SUPERVISOR, Event, Kind, Plan
from chaos_senders import Dropper
from chaos_system import System, signal_to
from running import alive, wait_until

PATIENCE_SECONDS = 8.0
"""An event comes after so long even where the delivery makes no progress."""

_HUNT_SECONDS = 15.0


class Killer:
    """Carries out the events of a plan, one after the other, in the caller's thread."""

    def __init__(
        self, plan: Plan, system: System, disk: Disk, dropper: Dropper, delivery: Delivery
    ) -> None:
        self._system, self._disk, self._dropper = system, disk, dropper
        self._events = plan.events()
        self._held = list(delivery.held)
        self._rng = plan.draw("killer")
        self.kills: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def run(self, share: Callable[[], float], say: Callable[[str], None]) -> None:
        """Carry out every event; `share` tells how much of the delivery was taken."""
        for event in self._events:
            due = time.monotonic() + PATIENCE_SECONDS
            while share() < event.at and time.monotonic() < due:
                self._system.keep_alive()
                time.sleep(0.02)
            said = self._do(event)
            say(f"{100 * share():5.1f} %  {event.kind} {said or event.target}".rstrip())
        for part in self._held:
            self._dropper.drop(part)

    def _do(self, event: Event) -> str:
        self._system.keep_alive()
        self.done[event.kind] += 1
        match event.kind:
            case Kind.KILL:
                return self._kill(event.target)
            case Kind.FLUSH:
                return "" if self._system.flush() else "(it was away)"
            case Kind.UNLINK:
                with contextlib.suppress(FileNotFoundError):
                    self._system.socket.unlink()
            case Kind.PAUSE:
                self._pause(event.target, event.seconds)
            case Kind.FILL:
                self._fill(event.seconds)
            case Kind.RESTART:
                self._restart()
        return ""

    def _kill(self, target: str) -> str:
        if target == EVERYTHING:
            self._system.kill_everything()
        elif target == SUPERVISOR:
            self._end(self._system.process.pid)
            self._system.process.process.wait(10)
        else:
            target = self._kill_role(target)
        self.kills[target] += 1
        self._system.keep_alive()
        return target

    def _kill_role(self, target: str) -> str:
        """Kill a role as soon as it runs; the pairing worker where no horse comes."""
        until = time.monotonic() + _HUNT_SECONDS
        if target == HORSE:
            if self._held:
                self._dropper.drop(self._held.pop())
            while time.monotonic() < until:
                horse = self._system.horse()
                if horse is not None:
                    time.sleep(self._rng.uniform(0, 0.15))
                    if signal_to(horse, signal.SIGKILL):
                        return HORSE
            target = "pairing worker"
        found = wait_until(lambda: self._find(target), 60, f"a process of {target}")
        self._end(int(str(found)))
        return target

    def _find(self, target: str) -> int | None:
        self._system.keep_alive()
        return self._system.find(target)

    def _end(self, pid: int) -> None:
        signal_to(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), 10, f"the end of {pid}")

    def _pause(self, target: str, seconds: float) -> None:
        found = self._system.find(target)
        if found is not None and signal_to(found, signal.SIGSTOP):
            time.sleep(seconds)
            signal_to(found, signal.SIGCONT)

    def _fill(self, seconds: float) -> None:
        """Fill the disk for some seconds; a copy of ours into it would be torn, so none is made."""
        with self._dropper.waiting():
            self._disk.fill(self._rng.choice((0, 0, 20_000, 200_000)))
            time.sleep(seconds)
            self._disk.empty()

    def _restart(self) -> None:
        if self._system.stop() not in (0, -signal.SIGTERM):  # killed before it could listen
            self._system.unexpected_ends.append("`run` did not end with 0 when asked to stop")
        self._system.start()
