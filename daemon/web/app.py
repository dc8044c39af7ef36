"""The web page as one application: its routes, and what stands before each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from config.settings import Settings
from daemon.web import events, health, metrics, uploads
from daemon.web.access import logging_in
from daemon.web.access.assembling import access_middleware
from daemon.web.access.csrf import csrf_field
from daemon.web.actions import held as held_actions
from daemon.web.actions import quarantine as quarantine_actions
from daemon.web.failing import handlers
from daemon.web.pages import held, overview, studies, study
from daemon.web.pages import settings as settings_pages
from daemon.web.reading import Installation
from daemon.web.services import services
from daemon.web.showing import templates
from daemon.web.snapshot import Snapshots
from daemon.web.telling import told


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
        exception_handlers=handlers(),
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
