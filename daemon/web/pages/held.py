"""What needs a person: held studies, and what was set aside."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.web.pages.studies import id_of, known
from daemon.web.services import services_of
from daemon.web.showing import installation, page
from workers.filing.quarantine import original_path
from workers.index.queries import list_set_aside
from workers.index.searching import WantedStudies, page_of_studies

A_PAGE = 50


def held(request: Request) -> Response:
    behind = id_of(request.query_params.get("behind", ""))
    with installation(request).index.read() as connection:
        found = page_of_studies(connection, WantedStudies(state="held"), A_PAGE + 1, behind)
    following = found[A_PAGE - 1]["id"] if len(found) > A_PAGE else None
    return page(request, "held.html", studies=found[:A_PAGE], following=following)


def quarantine(request: Request) -> Response:
    behind = known(request.query_params.get("behind", "")) or None
    here = installation(request)
    with here.index.read() as connection:
        found = list_set_aside(connection, limit=A_PAGE + 1, behind=behind)
    following = found[A_PAGE - 1]["entry"] if len(found) > A_PAGE else None
    folder = here.settings.layout.quarantine
    entries = [one | {"path": original_path(folder, one["entry"])} for one in found[:A_PAGE]]
    return page(request, "quarantine.html", entries=entries, following=following,
                retrying=services_of(request).retrying.progress)  # fmt: skip


ROUTES = [Route("/held", held), Route("/quarantine", quarantine)]
