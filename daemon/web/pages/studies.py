"""The studies: search, filter, page by page. What names a patient is asked by POST alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from daemon.web.showing import installation, page
from workers import clock
from workers.completeness.role_names import Role
from workers.index.searching import WantedStudies, page_of_studies

A_PAGE = 50
_LONGEST = 200
STATES = (
    ("ready", "pair ready"),
    ("pending", "pair pending"),
    ("held", "held"),
    ("no_pair", "no pair"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the form holds; empty is not asked."""

    term: str = ""
    state: str = ""
    role: str = ""
    source: str = ""
    since: str = ""
    """A day of local time, 2026-01-31; so `until`, which is the last day."""
    until: str = ""
    behind: str = ""
    """The id of the last study of the page before."""

    @classmethod
    def read(cls, given: QueryParams | FormData) -> Asked:
        values = {
            name: known(str(given.get(name, ""))).strip()[:_LONGEST] for name in cls.__slots__
        }
        return cls(**values)

    def wanted(self) -> WantedStudies:
        """Return what is asked of the index; what cannot be is not asked."""
        return WantedStudies(
            term=self.term or None,
            state=self.state if self.state in dict(STATES) else None,
            role=self.role if self.role in tuple(Role) else None,
            source=self.source or None,
            since=_begin_of(self.since, 0),
            until=_begin_of(self.until, 1),
        )

    def address(self, **changes: str) -> str:
        """Return the address of the same question; never with a term, which may name a patient."""
        asked = {name: value for name, value in (asdict(self) | changes).items() if value}
        asked.pop("term", None)
        return "/studies" + ("?" + urlencode(asked) if asked else "")


def studies(request: Request) -> Response:
    asked = Asked.read(request.query_params)
    return _answer(request, replace(asked, term=""))  # a term comes in a form alone


async def search(request: Request) -> Response:
    async with request.form() as form:
        asked = Asked.read(form)
    if not asked.term:
        return RedirectResponse(asked.address(), 303)
    return await run_in_threadpool(_answer, request, asked)


def _answer(request: Request, asked: Asked) -> Response:
    behind = id_of(asked.behind)
    with installation(request).index.read() as connection:
        found = page_of_studies(connection, asked.wanted(), A_PAGE + 1, behind)
    return page(
        request,
        "studies.html",
        asked=asked,
        studies=found[:A_PAGE],
        following=found[A_PAGE - 1]["id"] if len(found) > A_PAGE else None,
        states=STATES,
        roles=[str(role) for role in Role],
        is_live=not asked.term,
    )


def known(text: str) -> str:
    """Return a text of a visitor's as the index may know it: PostgreSQL takes no NUL."""
    return text.replace("\0", "\ufffd")


def id_of(text: str) -> int | None:
    """Read the id of a row, or None where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _begin_of(day: str, days_later: int) -> str | None:
    """Return the begin of a local day as the index writes times, or None where it is no day."""
    try:
        begin = datetime.combine(date.fromisoformat(day), time()) + timedelta(days=days_later)
        return clock.utc_of(begin.astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        return None


ROUTES = [
    Route("/studies", studies, methods=["GET"]),
    Route("/studies", search, methods=["POST"]),
]
