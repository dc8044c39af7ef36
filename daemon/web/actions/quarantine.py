"""What a person decides about quarantined files, by the functions of `petct-ingest quarantine`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from daemon.web.access.guard import address_of
from daemon.web.actions.acting import Action, Undone, action_of, in_thread, try_it
from daemon.web.pages.studies import known
from daemon.web.reading import Installation
from daemon.web.services import services_of
from daemon.web.showing import installation, page
from workers.filing.quarantine import original_path
from workers.filing.releasing import NotInQuarantine, count_set_aside, drop_entry, retry_entry
from workers.index.queries import SET_ASIDE
from workers.index.tables import arrival

_NOT_THERE = "Nothing was done: it is no longer in quarantine."

QUARANTINE = {
    "retry": Action("File this again?", "It goes back to be filed as if it came anew.", "Retry"),
    "drop": Action(
        "Delete this file for good?", "It cannot be brought back.", "Delete for good", harms=True
    ),
}


async def ask_quarantine(request: Request) -> Response:
    """Show what would be done with a quarantined file."""
    action = action_of(QUARANTINE, request)
    entry = known(request.path_params["entry"])
    row = await in_thread(_read_set_aside, installation(request), entry)
    if row is None:
        raise HTTPException(404, "This file is not in quarantine, or no longer.")
    return page(request, "confirm.html", action=action, mark="", entry=row, back="/quarantine")


async def do_quarantine(request: Request) -> Response:
    """Retry or drop a file, once."""
    name, entry = request.path_params["action"], known(request.path_params["entry"])
    action_of(QUARANTINE, request)

    def do() -> str:
        services, index = services_of(request), installation(request).index
        layout, by = services.settings.layout, f"web {address_of(request)}"
        with services.acting:
            try:
                if name == "drop":
                    drop_entry(index, layout, entry, by)
                    return "It is deleted."
                services.dispatcher.offer(retry_entry(index, layout, entry, by))
            except NotInQuarantine:
                raise Undone(_NOT_THERE) from None
        return "It waits to be filed again."

    await try_it(request, do)
    return RedirectResponse("/quarantine", 303)


async def ask_retry_all(request: Request) -> Response:
    """Show how many files would be filed again."""
    count = await in_thread(count_set_aside, installation(request).index)
    action = Action(
        f"File all {count:,} again?",
        "They go back to be filed as if they came anew, one after the other; the page of the"
        " quarantine tells how far it is.",
        "Retry all",
    )
    return page(request, "confirm.html", action=action, mark="", back="/quarantine")


async def do_retry_all(request: Request) -> Response:
    """Begin to retry every file; what cannot be given back stays."""

    def do() -> str:
        retrying, by = services_of(request).retrying, f"web {address_of(request)}"
        if not retrying.begin(installation(request).index, by):
            raise Undone("They are given back already.")
        return "They are given back, one after the other."

    await try_it(request, do)
    return RedirectResponse("/quarantine", 303)


def _read_set_aside(here: Installation, entry: str) -> dict[str, Any] | None:
    with here.index.read() as connection:
        row = connection.execute(
            sa.select(arrival).where(
                arrival.c.entry == entry, arrival.c.outcome.in_(SET_ASIDE)
            )
        ).first()  # fmt: skip
    if row is None:
        return None
    return dict(row._mapping) | {"path": original_path(here.settings.layout.quarantine, entry)}


ROUTES = [
    Route("/quarantine/retry-all", ask_retry_all, methods=["GET"]),
    Route("/quarantine/retry-all", do_retry_all, methods=["POST"]),
    Route("/quarantine/{entry:str}/{action:str}", ask_quarantine, methods=["GET"]),
    Route("/quarantine/{entry:str}/{action:str}", do_quarantine, methods=["POST"]),
]
