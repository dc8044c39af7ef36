"""One study: what came, what it is, how it became a pair, and the pair itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.web.pages.studies import id_of
from daemon.web.pair_files import PICTURE, PROVENANCE, read_pair_file, read_provenance
from daemon.web.showing import installation, page
from daemon.web.timeline import KINDS, timeline
from workers.index.arriving import life_of_study
from workers.index.history import Wanted, newest_events
from workers.index.searching import uid_of
from workers.showing import show_study

_MOST_SET_ASIDE = 200
_MOST_EVENTS = 100
_NO_PAIR: dict[str, Any] = {"state": None, "folder": None, "reasons": [], "ct": None}
_MEDIA_TYPES = {PICTURE: "image/png", PROVENANCE: "application/json"}


def study(request: Request) -> Response:
    study_id, known = _known(request)
    uid = known["study"]
    here = installation(request)
    with here.index.read() as connection:
        life = life_of_study(connection, study_id)
    events = list(newest_events(here.index, Wanted(study=uid, kinds=KINDS), _MOST_EVENTS))
    pair = known["pair"] or _NO_PAIR
    names = {one["series"]: series_name(one) for one in known["series"]}
    return page(
        request,
        "study.html",
        id=study_id,
        known=known,
        pair=pair,
        meta=read_provenance(here.settings.layout, pair["folder"]),
        life=life,
        moments=timeline(life, events, names),
        revisions=[one for one in events if one["kind"] == "pair-ready"][::-1],
        candidates=_candidates(life.decision, names),
        names=names,
    )


def pair_file(request: Request) -> Response:
    study_id, known = _known(request)
    name = request.path_params["name"]
    pair = known["pair"] or _NO_PAIR
    layout = installation(request).settings.layout
    found = read_pair_file(layout, pair["folder"], name) if name in _MEDIA_TYPES else None
    if found is None:
        raise HTTPException(404, "There is no such file of a pair.")
    headers = {}
    if name == PROVENANCE:
        file = f"pair-{study_id}-revision-{pair['revision']}.json"
        headers["Content-Disposition"] = f'attachment; filename="{file}"'
    return Response(found, media_type=_MEDIA_TYPES[name], headers=headers)


def series_name(one: dict[str, Any]) -> str:
    """Name a series for people: its role, and what its scanner called it."""
    role = str(one["role"] or one["modality"] or "series").replace("_", " ")
    return f"{role} ({one['series_description']})" if one["series_description"] else role


def _known(request: Request) -> tuple[int, dict[str, Any]]:
    """Return the study that the address names by its row. Raises HTTPException where none is."""
    study_id = id_of(request.path_params["id"])
    here = installation(request)
    uid = None
    if study_id is not None:
        with here.index.read() as connection:
            uid = uid_of(connection, study_id)
    known = uid and show_study(
        here.index, here.settings.layout, uid, most_set_aside=_MOST_SET_ASIDE
    )
    if study_id is None or not known:
        raise HTTPException(404, "There is no such study.")
    return study_id, known


def _candidates(
    decision: dict[str, Any], names: dict[str, str]
) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Yield what was considered as the PET and as the CT, each with a name for people."""
    for what in ("pet", "ct"):
        found = decision.get(f"{what}_candidates", [])
        named = [
            one | {"name": names.get(one["series_uid"], "a series of another study")}
            for one in found
        ]
        yield what.upper(), named


ROUTES = [
    Route("/studies/{id}", study),
    Route("/studies/{id}/pair/{name}", pair_file),
]
