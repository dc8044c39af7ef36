"""How often a password may be tried: by one address, and by all together.

An address tries five times freely; from then on each wait is twice the one before, up to a quarter
of an hour, until an hour was quiet. All addresses together have 20 tries, and a new one every six
seconds: who comes from many addresses is no quicker. An address that logged in before does not
wait for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

FREE_TRIES = 5
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 900.0
QUIET_SECONDS = 3600.0
ALL_TRIES = 20
ALL_AGAIN_SECONDS = 6.0

_MOST_ADDRESSES = 1024


@dataclass(slots=True)
class _Tries:
    count: int = 0
    not_before: float = float("-inf")
    last: float = float("-inf")


class LoginLimits:
    """Count the tries; `now` is monotonic seconds. Used by the event loop alone."""

    def __init__(self) -> None:
        self._tries: dict[str, _Tries] = {}
        self._known: dict[str, None] = {}
        self._left = float(ALL_TRIES)
        self._left_at = float("-inf")

    def try_now(self, address: str, now: float) -> float:
        """Return 0 where an address may try now, which counts as a failure until `succeeded`.

        Else return how many seconds it has to wait; that does not count.
        """
        key = network_of(address)
        tries = self._tries.get(key)
        if tries is not None and now < tries.not_before:
            return tries.not_before - now
        self._refill(now)
        if key not in self._known:
            if self._left < 1:
                return (1 - self._left) * ALL_AGAIN_SECONDS
            self._left -= 1
        self._forget(now)
        tries = self._tries.setdefault(key, _Tries())
        tries.count, tries.last = tries.count + 1, now
        if tries.count >= FREE_TRIES:
            doubled = FIRST_WAIT_SECONDS * 2.0 ** min(tries.count - FREE_TRIES, 30)
            tries.not_before = now + min(LONGEST_WAIT_SECONDS, doubled)
        return 0.0

    def succeeded(self, address: str) -> None:
        """Forget the tries of an address: it knew the password."""
        key = network_of(address)
        self._tries.pop(key, None)
        self._known.pop(key, None)
        self._known[key] = None
        while len(self._known) > _MOST_ADDRESSES:
            del self._known[next(iter(self._known))]
        self._left = min(ALL_TRIES, self._left + 1)

    def _refill(self, now: float) -> None:
        since = max(0.0, now - self._left_at)
        self._left = min(ALL_TRIES, self._left + since / ALL_AGAIN_SECONDS)
        self._left_at = now

    def _forget(self, now: float) -> None:
        quiet = [key for key, one in self._tries.items() if now - one.last >= QUIET_SECONDS]
        for key in quiet:
            del self._tries[key]
        while len(self._tries) >= _MOST_ADDRESSES:
            del self._tries[next(iter(self._tries))]


def network_of(address: str) -> str:
    """Return what counts as one address: IPv4 as it is, of IPv6 the /64 that one line has."""
    try:
        found = ip_address(address)
    except ValueError:
        return "?"
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> 64 << 64))
    return str(found)
