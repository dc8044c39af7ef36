"""`GET /healthz` and `/readyz`: whether this process lives, and whether studies can be sent."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from daemon.observing.readiness import Check, check_readiness
from daemon.web.reading import Installation
from daemon.web.showing import installation
from workers import clock

_FRESH = {"Cache-Control": "no-store"}
_KEPT_SECONDS = 1.0
"""Anybody may ask, so an answer is given again for so long."""


class Readiness:
    """The last look at one installation; one look at a time."""

    def __init__(self, place: Installation) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._until = float("-inf")
        self._checks: Sequence[Check] = ()

    def look(self) -> Sequence[Check]:
        with self._lock:
            if clock.monotonic() >= self._until:
                self._checks = check_readiness(self._place.settings, lambda: self._place.index)
                self._until = clock.monotonic() + _KEPT_SECONDS
            return self._checks


async def healthz(_: Request) -> Response:
    """Answer; that is all."""
    return PlainTextResponse("ok\n", headers=_FRESH)


async def readyz(request: Request) -> Response:
    """Answer 200 where everything is well, else 503; the words only to those who may read them."""
    state = request.app.state
    if not hasattr(state, "readiness"):
        state.readiness = Readiness(installation(request))
    checks = await run_in_threadpool(state.readiness.look)
    ready = all(check.ok for check in checks)
    told: dict[str, object] = {"ready": ready}
    if getattr(request.state, "trusted", False):  # said by access/guard.py
        told["checks"] = [
            {"name": check.name, "ok": check.ok, "words": check.words} for check in checks
        ]
    return JSONResponse(told, 200 if ready else 503, headers=_FRESH)


ROUTES = (Route("/healthz", healthz, name="healthz"), Route("/readyz", readyz, name="readyz"))
