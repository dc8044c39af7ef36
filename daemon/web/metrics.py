"""`GET /metrics`: what happens, for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.observing.families import Scrape, families
from daemon.observing.gauges import (
    Rarely,
    read_disks,
    read_index,
    read_queues,
    read_spool,
    refusing,
)
from daemon.observing.readiness import check_readiness
from daemon.room import reserve_of
from daemon.web.reading import Installation
from daemon.web.showing import installation
from workers import clock
from workers.errors import IndexUnusable
from workers.index.tallying import EventTally
from workers.measuring import read_measures


class Scraper:
    """Look at one installation when it is scraped; one look at a time."""

    def __init__(self, place: Installation) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._tally = EventTally()
        self._index = Rarely(lambda: read_index(place.index), clock.monotonic)
        self._spool = Rarely(lambda: read_spool(place.settings.layout), clock.monotonic)

    def scrape(self) -> Scrape:
        settings = self._place.settings
        layout = settings.layout
        with self._lock:
            events = gauges = spool = None
            with suppress(IndexUnusable, sa.exc.DBAPIError):  # `ready` tells it
                events = self._tally.update(self._place.index)
                gauges = self._index.get()
            with suppress(OSError):  # as above
                spool = self._spool.get()
            return Scrape(
                version=version("petct-ingest"),
                measures=read_measures(layout),
                events=events,
                index=gauges,
                spool=spool,
                queues=read_queues(settings),
                disks=read_disks(layout),
                reserve=reserve_of(settings.spool),
                refusing=frozenset(refusing(layout)),
                ready={
                    check.name: check.ok
                    for check in check_readiness(settings, lambda: self._place.index)
                },
            )


class _Found(Collector):
    """One scrape, as the client library wants it."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> Iterable[Metric]:
        return families(self._scrape)


def exposition(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    """Return the text of a scrape and its type, in the format that the scraper prefers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found(scrape))
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


async def metrics(request: Request) -> Response:
    """Answer a scrape."""
    scraper = _scraper(request)
    found = await run_in_threadpool(scraper.scrape)
    text, kind = exposition(found, request.headers.get("accept", ""))
    return Response(text, media_type=kind, headers={"Cache-Control": "no-store"})


def _scraper(request: Request) -> Scraper:
    state = request.app.state
    if not hasattr(state, "scraper"):
        state.scraper = Scraper(installation(request))
    found: Scraper = state.scraper
    return found


ROUTES = (Route("/metrics", metrics, name="metrics"),)
