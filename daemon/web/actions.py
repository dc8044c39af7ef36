"""What a person decides on the page: held studies, quarantined files.

Each action has a page that says what will be done (GET) and is done by its form (POST), by the same
functions as the command line's. A form carries a mark of what its page showed: where that is no
longer so, a second click for one, nothing is done, and the next page says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from config.logs import get_logger
from daemon.web.access.guard import address_of
from daemon.web.services import services_of
from daemon.web.showing import installation, page
from daemon.web.telling import tell
from workers.completeness.overriding import override_pair, wait_longer
from workers.errors import WorkersError
from workers.filing.releasing import NotInQuarantine, drop_entry, retry_entry
from workers.index.engine import MetadataIndex
from workers.index.queries import SET_ASIDE, list_set_aside, list_studies
from workers.index.tables import arrival, pair, study
from workers.jobs import ask_for_pairs
from workers.pairing.evidence import Override

_T = TypeVar("_T")
_ALL = 1_000_000
_NOT_THERE = "Nothing was done: it is no longer in quarantine."

log = get_logger(__name__)


class Undone(Exception):
    """An action that was not done, with the reason in words for whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Action:
    """What an action is called on its page."""

    title: str
    words: str
    button: str
    asks: bool = False
    """Whether PET, CT, weight and dose may be given."""
    harms: bool = False


HELD = {
    "force": Action(
        "Make this pair now?",
        "It is made whatever speaks against it. What was overruled stands in pair.json.",
        "Make the pair",
        asks=True,
        harms=True,
    ),
    "choose": Action(
        "Choose for this pair",
        "What you choose or give is taken; every check still applies.",
        "Take these",
        asks=True,
    ),
    "wait": Action(
        "Wait longer for this study?",
        "The rest is on its way: the time after which it is held begins anew.",
        "Wait",
    ),
}

QUARANTINE = {
    "retry": Action("File this again?", "It goes back to be filed as if it came anew.", "Retry"),
    "drop": Action(
        "Delete this file for good?", "It cannot be brought back.", "Delete for good", harms=True
    ),
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A study as its page shows it; the mark changes with what a person decides by."""

    study: dict[str, Any]
    mark: str


# held studies -------------------------------------------------------------------------------------


async def ask_held(request: Request) -> Response:
    """Show what would be done with a held study."""
    action = _action(HELD, request)
    shown = await _in_thread(_read_study, installation(request).index, _study_id(request))
    if shown is None:
        raise HTTPException(404, "There is no pair to decide in this study.")
    return page(request, "confirm.html", action=action, mark=shown.mark, study=shown.study,
                back="/held")  # fmt: skip


async def do_held(request: Request) -> Response:
    """Do it, unless the study is not as it was shown."""
    _action(HELD, request)
    async with request.form(max_files=0) as form:
        fields = {key: str(value) for key, value in form.items()}
    await _try(request, lambda: _decide(request, fields))
    return RedirectResponse(f"/studies/{_study_id(request)}", 303)


def _decide(request: Request, fields: dict[str, str]) -> str:
    services, index = services_of(request), installation(request).index
    settings, by = services.settings, f"web {address_of(request)}"
    with services.acting:
        shown = _read_study(index, _study_id(request))
        if shown is None or shown.mark != fields.get("mark"):
            raise Undone("Nothing was changed: this study is not as it was shown to you.")
        uid = shown.study["study"]
        if request.path_params["action"] == "wait":
            wishes = wait_longer(index, settings, uid, by)
        else:
            given = _override(fields, shown.study, request.path_params["action"] == "force")
            wishes = override_pair(index, settings, uid, given, by)
        ask_for_pairs(settings, wishes)
        now = _read_study(index, _study_id(request))
    state = now.study["pair"]["state"] if now is not None else "gone"
    return f"Recorded; the pair is now {state}."


def _override(fields: dict[str, str], shown: dict[str, Any], forced: bool) -> Override:
    """Read what a form gives. Raises Undone."""
    members = {one["series"] for one in shown["series"]}
    chosen = {name: fields.get(name) or None for name in ("pet", "ct")}
    if any(uid is not None and uid not in members for uid in chosen.values()):
        raise Undone("Nothing was changed: that series is none of this study.")
    weight_kg = _number(fields.get("weight_kg", ""), 0.1, "weight")
    dose_mbq = _number(fields.get("dose_mbq", ""), 1e-6, "dose")
    given = Override(
        **chosen,
        forced=forced,
        weight_kg=weight_kg,
        dose_bq=None if dose_mbq is None else dose_mbq * 1e6,
    )
    if given == Override():
        raise Undone("Nothing was changed: nothing was chosen or given.")
    return given


def _number(text: str, least: float, what: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise Undone(f"Nothing was changed: that is no {what}.")
    return value


def _read_study(index: MetadataIndex, study_id: int) -> _Shown | None:
    with index.read() as connection:
        found = list_studies(connection, limit=1, where=[study.c.id == study_id])
        row = connection.execute(sa.select(pair).where(pair.c.study_id == study_id)).first()
    if not found or row is None:
        return None
    seen = [row.state, row.reasons, row.pet, row.ct, row.generation, row.override,
            row.begun_monotonic]  # fmt: skip
    return _Shown(found[0], hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest())


def _study_id(request: Request) -> int:
    return int(request.path_params["study_id"])


# quarantine ---------------------------------------------------------------------------------------


async def ask_quarantine(request: Request) -> Response:
    """Show what would be done with a quarantined file."""
    action = _action(QUARANTINE, request)
    index, entry = installation(request).index, request.path_params["entry"]
    row = await _in_thread(_read_set_aside, index, entry)
    if row is None:
        raise HTTPException(404, "This file is not in quarantine, or no longer.")
    return page(request, "confirm.html", action=action, mark="", entry=row, back="/quarantine")


async def do_quarantine(request: Request) -> Response:
    """Retry or drop a file, once."""
    name, entry = request.path_params["action"], request.path_params["entry"]
    _action(QUARANTINE, request)

    def do() -> str:
        services, index = services_of(request), installation(request).index
        layout, by = services.settings.layout, f"web {address_of(request)}"
        with services.acting:
            if name == "drop":
                drop_entry(index, layout, entry, by)
                return "It is deleted."
            services.dispatcher.offer(retry_entry(index, layout, entry, by))
        return "It waits to be filed again."

    await _try(request, do)
    return RedirectResponse("/quarantine", 303)


async def ask_retry_all(request: Request) -> Response:
    """Show how many files would be filed again."""
    count = len(await _in_thread(_all_entries, installation(request).index))
    action = Action(
        f"File all {count:,} again?", "They go back to be filed as if they came anew.", "Retry all"
    )
    return page(request, "confirm.html", action=action, mark="", back="/quarantine")


async def do_retry_all(request: Request) -> Response:
    """Retry every file; what cannot be given back stays."""

    def do() -> str:
        services, index = services_of(request), installation(request).index
        given = left = 0
        with services.acting:
            for entry in _all_entries(index):
                try:
                    name = retry_entry(
                        index, services.settings.layout, entry, f"web {address_of(request)}"
                    )
                except (NotInQuarantine, OSError) as error:
                    log.warning("retry-failed", entry=entry, error=type(error).__name__)
                    left += 1
                else:
                    services.dispatcher.offer(name)
                    given += 1
        stay = f" {left:,} stay: they could not be read." if left else ""
        return f"{given:,} wait to be filed again.{stay}" if given or left else _NOT_THERE

    await _try(request, do)
    return RedirectResponse("/quarantine", 303)


def _read_set_aside(index: MetadataIndex, entry: str) -> dict[str, Any] | None:
    with index.read() as connection:
        row = connection.execute(
            sa.select(arrival).where(
                arrival.c.entry == entry, arrival.c.outcome.in_(SET_ASIDE)
            )
        ).first()  # fmt: skip
    return None if row is None else dict(row._mapping)


def _all_entries(index: MetadataIndex) -> list[str]:
    with index.read() as connection:
        return [str(one["entry"]) for one in list_set_aside(connection, limit=_ALL)]


# both ---------------------------------------------------------------------------------------------


def _action(known: dict[str, Action], request: Request) -> Action:
    found = known.get(request.path_params["action"])
    if found is None:
        raise HTTPException(404, "There is no such action.")
    return found


async def _try(request: Request, do: Callable[[], str]) -> None:
    """Do something in a thread, and tell on the next page what it did, or why not."""
    try:
        words = await _in_thread(do)
    except Undone as error:
        words = str(error)
    except NotInQuarantine:
        words = _NOT_THERE
    except WorkersError as error:
        words = f"Nothing was done: {error}"
    except (OSError, sa.exc.DBAPIError) as error:
        log.warning("web-action-failed", path=request.url.path, error=type(error).__name__)
        reason = error.strerror if isinstance(error, OSError) else "the index cannot be written"
        words = f"It failed: {reason}. Look whether it was done before you try again."
    tell(request, words)


async def _in_thread(do: Callable[..., _T], *given: object) -> _T:
    return await anyio.to_thread.run_sync(do, *given)


ROUTES = [
    Route("/held/{study_id:int}/{action:str}", ask_held, methods=["GET"]),
    Route("/held/{study_id:int}/{action:str}", do_held, methods=["POST"]),
    Route("/quarantine/retry-all", ask_retry_all, methods=["GET"]),
    Route("/quarantine/retry-all", do_retry_all, methods=["POST"]),
    Route("/quarantine/{entry:str}/{action:str}", ask_quarantine, methods=["GET"]),
    Route("/quarantine/{entry:str}/{action:str}", do_quarantine, methods=["POST"]),
]
