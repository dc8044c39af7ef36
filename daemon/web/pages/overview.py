"""The first page: what arrives, what waits, and what needs a person."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.looking import look
from daemon.web.showing import installation, page


def overview(request: Request) -> Response:
    return page(request, "overview.html", status_=look(installation(request).settings))


ROUTES = [Route("/", overview)]
