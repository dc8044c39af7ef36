"""Tell what an action did on the page that comes next: POST, redirect, GET.

The words wait on the server, by the visit that they are for: none of them is in an address.
"""

from __future__ import annotations

from starlette.requests import Request

from daemon.web.access.visits import token_of
from daemon.web.services import services_of

_MOST_VISITS = 256
_MOST_WORDS = 10


def tell(request: Request, words: str) -> None:
    """Let the next page of this visit show these words."""
    said = services_of(request).said
    while len(said) >= _MOST_VISITS:
        del said[next(iter(said))]
    waiting = said.setdefault(token_of(request), [])
    waiting.append(words)
    del waiting[:-_MOST_WORDS]


def told(request: Request) -> list[str]:
    """Take what is to be shown on this page; it is shown once."""
    token = getattr(request.state, "token", "")  # none where a request fails before it is known
    return services_of(request).said.pop(token, [])
