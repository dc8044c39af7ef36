"""The web page as one application: its routes, and what stands before each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from config.logs import get_logger
from config.settings import Settings
from daemon.web import events, health, metrics, uploads
from daemon.web.access import logging_in
from daemon.web.access.assembling import access_middleware
from daemon.web.access.csrf import csrf_field
from daemon.web.actions import held as held_actions
from daemon.web.actions import quarantine as quarantine_actions
from daemon.web.pages import held, overview, studies, study
from daemon.web.pages import settings as settings_pages
from daemon.web.reading import Installation
from daemon.web.services import services
from daemon.web.showing import page, templates
from daemon.web.snapshot import Snapshots
from daemon.web.telling import told
from workers.errors import IndexUnusable

log = get_logger(__name__)


def make_app(settings: Settings, config: Path | None = None) -> Starlette:
    """Return the application of one installation; no index is opened before the first request.

    `config` is the file that the settings were read from, where there is one.

    Raises AccessUnusable where the password or the token cannot be read.
    """
    installation = Installation(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            with services(settings) as app.state.services:
                yield
        finally:
            installation.close()

    app = Starlette(
        routes=_routes(),
        middleware=access_middleware(settings),
        exception_handlers={
            HTTPException: _refused,
            IndexUnusable: _no_index,
            OperationalError: _index_away,
        },
        lifespan=lifespan,
    )
    app.state.installation = installation
    app.state.settings = settings
    app.state.config = config
    app.state.snapshots = Snapshots(installation)
    app.state.pulse = events.Pulse(installation)
    app.state.templates = templates()
    app.state.templates.globals |= {"csrf_field": csrf_field, "told": told}
    return app


def _routes() -> list[BaseRoute]:
    return [
        *overview.ROUTES,
        *studies.ROUTES,
        *study.ROUTES,
        *held.ROUTES,
        *settings_pages.ROUTES,
        *events.ROUTES,
        *logging_in.ROUTES,
        *metrics.ROUTES,
        *health.ROUTES,
        *held_actions.ROUTES,
        *quarantine_actions.ROUTES,
        *uploads.ROUTES,
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static"),
    ]


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    response = page(
        request, "error.html", error.status_code, code=error.status_code, words=error.detail
    )
    response.headers.update(error.headers or {})
    return response


def _index_away(request: Request, error: Exception) -> Response:
    log.warning("index-away", error=type(error).__name__)
    words = "The index does not answer just now: is its disk full, or its server away?"
    return page(request, "error.html", 503, code=503, words=words)


def _no_index(request: Request, error: Exception) -> Response:
    return page(request, "error.html", 503, code=503, words=str(error))
