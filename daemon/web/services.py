"""What the requests of one page share: sessions, limits, the audit, the way into the spool."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from starlette.requests import HTTPConnection

from config.settings import Settings
from daemon.dispatcher import Dispatcher
from daemon.room import Room
from daemon.web.access.limiting import LoginLimits
from daemon.web.access.sessions import Sessions
from daemon.web.retrying import Retrying
from workers.spool.notes import NoteWriter

MOST_UPLOADS = 4
"""Uploads that are taken at once."""


@dataclass(frozen=True, slots=True)
class Services:
    """Opened with the page, closed with it."""

    settings: Settings
    notes: NoteWriter
    dispatcher: Dispatcher
    room: Room
    sessions: Sessions
    retrying: Retrying
    limits: LoginLimits = field(default_factory=LoginLimits)
    token_limits: LoginLimits = field(default_factory=LoginLimits)
    """Their own: a scrape that succeeds forgives no guessed password of the same address."""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Of the forms' tokens; another one after each start."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """What is still to be told to a visit (telling.py)."""
    hashing: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    uploading: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MOST_UPLOADS)
    )
    acting: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever acts: the second click sees what the first one did."""

    @property
    def needs_password(self) -> bool:
        """Whether one has to log in."""
        return self.settings.web.password_file is not None


@contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """Open what the page needs beside the index."""
    notes = NoteWriter(settings.layout, "web")
    dispatcher = Dispatcher(settings)
    retrying = Retrying(settings.layout, dispatcher.offer)
    try:
        room = Room(settings.layout, settings.spool, "web", notes.note)
        sessions = Sessions(settings.web.session_hours * 3600)
        yield Services(settings, notes, dispatcher, room, sessions, retrying)
    finally:
        retrying.close()
        dispatcher.close()
        notes.close()


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the page that a request asks."""
    found: Services = connection.app.state.services
    return found
