"""What a person decides about a held study, by the functions of `petct-ingest held`.

A form carries a mark of what its page showed: where that is no longer so, a second click for one,
nothing is done, and the next page says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from daemon.web.access.guard import address_of
from daemon.web.actions.acting import Action, Undone, action_of, in_thread, try_it
from daemon.web.pages.studies import id_of
from daemon.web.services import services_of
from daemon.web.showing import installation, page
from workers.completeness.overriding import forget_override, override_pair, wait_longer
from workers.index.engine import MetadataIndex
from workers.index.queries import list_studies
from workers.index.tables import pair, study
from workers.jobs import ask_for_pairs
from workers.pairing.evidence import Override

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
        "What you choose or give is taken, and what was decided before stays; every check that was"
        " not overruled still applies.",
        "Take these",
        asks=True,
    ),
    "forget": Action(
        "Forget what was decided?",
        "What was forced, chosen or given for this pair is taken back; it is judged by its"
        " evidence alone, and held where that does not suffice.",
        "Forget it",
    ),
    "wait": Action(
        "Wait longer for this study?",
        "The rest is on its way: the time after which it is held begins anew.",
        "Wait",
    ),
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A study as its page shows it; the mark changes with what a person decides by."""

    study: dict[str, Any]
    mark: str


async def ask_held(request: Request) -> Response:
    """Show what would be done with a held study."""
    action = action_of(HELD, request)
    shown = await in_thread(_read_study, installation(request).index, _study_id(request))
    if shown is None:
        raise HTTPException(404, "There is no pair to decide in this study.")
    return page(request, "confirm.html", action=action, mark=shown.mark, study=shown.study,
                back="/held")  # fmt: skip


async def do_held(request: Request) -> Response:
    """Do it, unless the study is not as it was shown."""
    action_of(HELD, request)
    study_id = _study_id(request)
    async with request.form(max_files=0) as form:
        fields = {key: str(value) for key, value in form.items()}
    await try_it(request, lambda: _decide(request, fields))
    return RedirectResponse(f"/studies/{study_id}", 303)


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
        elif request.path_params["action"] == "forget":
            wishes = forget_override(index, settings, uid, by)
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
    found = id_of(request.path_params["study_id"])
    if found is None:
        raise HTTPException(404, "There is no such study.")
    return found


ROUTES = [
    Route("/held/{study_id}/{action:str}", ask_held, methods=["GET"]),
    Route("/held/{study_id}/{action:str}", do_held, methods=["POST"]),
]
