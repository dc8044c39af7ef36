"""Where instances come from, and every setting with its value and its origin."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.origins import explain, shown
from daemon.web.showing import installation, page
from workers.index.arriving import count_sources


def sources(request: Request) -> Response:
    here = installation(request)
    with here.index.read() as connection:
        found = count_sources(connection)
    settings = here.settings
    policies = [
        [(name, shown(name, value)) for name, value in one.model_dump(exclude_unset=True).items()]
        for one in settings.sources
    ]
    return page(
        request, "sources.html", sources=found, watched=settings.watched, policies=policies,
        receiver=settings.receiver, port=here.port,
    )  # fmt: skip


def settings(request: Request) -> Response:
    config: Path | None = request.app.state.config
    found = explain(installation(request).settings, config)
    tables = [(table, list(keys)) for table, keys in groupby(found, lambda one: one.table)]
    return page(request, "settings.html", tables=tables, config=config)


ROUTES = [Route("/sources", sources), Route("/settings", settings)]
