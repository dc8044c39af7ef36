"""Tell open pages that something happened: server-sent events, which a page answers by looking
again at itself. No fact is in an event, so nothing is told twice in two ways.

A page about one study asks for `/events?study=17` and hears of it alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from daemon.web.pages.studies import id_of
from daemon.web.reading import Installation
from workers.errors import IndexUnusable
from workers.index.arriving import newest_change

MOST_STREAMS = 64
"""Pages that listen at once; another one is asked to come again, and reads all the same."""

_LOOK_SECONDS = 1.0
_TICK_SECONDS = 10.0
"""What no event tells (disk, ages, rates) is looked at so often."""

_AGAIN_MILLISECONDS = 5000


class Pulse:
    """What changed last, in all or of one study; asked once a second, however many listen."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._lock = threading.Lock()
        self._known: dict[int | None, tuple[float, str]] = {}
        self.streams = 0
        self.stopping = False

    def newest(self, study: int | None) -> str:
        """Return a word that is another one as soon as something changed."""
        now = time.monotonic()
        with self._lock:
            at, word = self._known.get(study, (0.0, ""))
            if now - at < _LOOK_SECONDS / 2 and word:
                return word
            try:
                with self._installation.index.read() as connection:
                    word = newest_change(connection, study)
            except (IndexUnusable, sa.exc.DBAPIError):  # the page says so, in words
                word = "none"
            self._known = {
                key: value for key, value in self._known.items() if now - value[0] < _TICK_SECONDS
            } | {study: (now, word)}
            return word


async def events(request: Request) -> Response:
    pulse: Pulse = request.app.state.pulse
    if pulse.streams >= MOST_STREAMS:
        raise HTTPException(503, "Too many pages listen.", {"Retry-After": "30"})
    study = id_of(request.query_params.get("study", ""))
    return StreamingResponse(
        _stream(pulse, study),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},  # proxies pass each event on at once
    )


async def _stream(pulse: Pulse, study: int | None) -> AsyncIterator[str]:
    pulse.streams += 1
    try:
        yield f"retry: {_AGAIN_MILLISECONDS}\n\n"
        if pulse.streams > MOST_STREAMS:  # many asked at once
            return
        before, told_at = await run_in_threadpool(pulse.newest, study), time.monotonic()
        while not pulse.stopping:
            await asyncio.sleep(_LOOK_SECONDS)
            word = await run_in_threadpool(pulse.newest, study)
            if word != before:
                yield "event: change\ndata: \n\n"
            elif time.monotonic() - told_at >= _TICK_SECONDS:
                yield "event: tick\ndata: \n\n"
            else:
                continue
            before, told_at = word, time.monotonic()
    finally:
        pulse.streams -= 1


ROUTES = [Route("/events", events)]
