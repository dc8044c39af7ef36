"""Who is logged in: kept in memory, by the hash of what the browser holds.

A restart of the page ends every session, and so does another password.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

MOST_SESSIONS = 1000
"""Sessions at once; a further one ends the oldest."""


def new_token() -> str:
    """Return 256 random bits as 43 characters that a cookie can hold."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class _Session:
    ends_at: float
    password: str


class Sessions:
    """The sessions of one page; `now` is monotonic seconds. Used by the event loop alone."""

    def __init__(self, lifetime_seconds: float) -> None:
        self.lifetime_seconds = lifetime_seconds
        self._sessions: dict[bytes, _Session] = {}

    def begin(self, password: str, now: float) -> str:
        """Begin a session under the password of this fingerprint; return its token."""
        self._forget_ended(now)
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        token = new_token()
        self._sessions[_key(token)] = _Session(now + self.lifetime_seconds, password)
        return token

    def holds(self, token: str, password: str, now: float) -> bool:
        """Tell whether a session goes on: begun here, not over, the password still the same."""
        session = self._sessions.get(_key(token))
        return session is not None and now < session.ends_at and session.password == password

    def end(self, token: str) -> bool:
        """End a session; tell whether there was one."""
        return self._sessions.pop(_key(token), None) is not None

    def __len__(self) -> int:
        return len(self._sessions)

    def _forget_ended(self, now: float) -> None:
        for key in [key for key, one in self._sessions.items() if now >= one.ends_at]:
            del self._sessions[key]


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
