"""Answer what could not be done with a page: in plain words, with nothing of what went wrong.

An error that nobody thought of is met inside the headers that every answer has and outside
everything else, so that whoever asks, logged in or not, reads the same page.
"""

from __future__ import annotations

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from config.logs import get_logger
from daemon.web.showing import page
from workers.errors import IndexUnusable

_AWAY = (
    "The index cannot be used just now: is its disk full, or its server away? Nothing is lost"
    " meanwhile; petct-ingest status says more."
)
_UNEXPECTED = "This page could not be made: an error of the program. Its log says where."

log = get_logger(__name__)


def handlers() -> dict[type[Exception], ExceptionHandler]:
    """Return what answers the errors that a page may meet."""
    return {
        HTTPException: _refused,
        IndexUnusable: _no_index,
        sa.exc.DBAPIError: _index_away,
        sa.exc.TimeoutError: _index_away,  # of the pool: each connection is in use
    }


class Unexpected:
    """Answer 500 where a request fails in a way that nobody thought of."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:  # the boundary of a request: the page goes on
            log.exception("page-failed", method=scope["method"])
            if begun:
                raise  # half an answer must not pass for a whole one
            await _words(Request(scope), 500, _UNEXPECTED)(scope, receive, send)


def _words(request: Request, code: int, words: str) -> Response:
    return page(request, "error.html", code, code=code, words=words)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    response = _words(request, error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


def _index_away(request: Request, error: Exception) -> Response:
    log.warning("index-away", error=type(error).__name__)
    return _words(request, 503, _AWAY)


def _no_index(request: Request, error: Exception) -> Response:
    return _words(request, 503, str(error))
