"""The first page: what arrives, what waits, and what needs a person."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.looking import RATE_SECONDS
from daemon.web.chart import HEIGHT, WIDTH, draw
from daemon.web.showing import page
from daemon.web.snapshot import LATELY_SECONDS, Snapshots


def overview(request: Request) -> Response:
    snapshots: Snapshots = request.app.state.snapshots
    found = snapshots.newest()
    status = found.status
    return page(
        request,
        "overview.html",
        found=found,
        counts=status.counts,
        rate=status.filed_lately / RATE_SECONDS,
        chart=draw(found.hours),
        width=WIDTH,
        height=HEIGHT,
        lately_minutes=LATELY_SECONDS // 60,
        all_is_well=not (
            status.troubles or status.counts.quarantined or status.counts.pairs.get("held")
        ),
    )


ROUTES = [Route("/", overview)]
