"""By which names the page may be asked.

A page of a stranger can let its own name point to 127.0.0.1 and then read what we answer (DNS
rebinding); its browser still says that name in the Host header. So only names that are ours are
answered: those of loopback, the address that we listen on or were reached at, and
`web.allow_hosts`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from config.logs import get_logger
from config.tables.telling import WebSettings

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")

log = get_logger(__name__)


def name_of(header: str) -> str | None:
    """Return the name or address of a Host header, in lower case and without a port; or None."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    name = match[1].strip("[]").lower().removesuffix(".")
    return _as_address(name) or name


def is_ours(header: str, web: WebSettings, reached: str = "") -> bool:
    """Tell whether a Host header names this page; `reached` is the address of our own end."""
    name = name_of(header)
    if name is None:
        return False
    own = {*_LOOPBACK, _as_address(web.host) or web.host.lower()}
    own |= {one.lower().removesuffix(".") for one in web.allow_hosts}
    if name in own:
        return True
    address = _as_address(name)
    return address is not None and address == _as_address(reached)


class HostCheck:
    """Answer 400 to whoever asks by a name that is none of ours."""

    def __init__(self, app: ASGIApp, web: WebSettings) -> None:
        self._app = app
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            said = Headers(scope=scope).getlist("host")
            reached = str((scope.get("server") or ("",))[0])
            if len(said) != 1 or not is_ours(said[0], self._web, reached):
                log.debug("web-host-refused", count=len(said))
                words = "This page does not go by that name. web.allow_hosts lists its names.\n"
                await PlainTextResponse(words, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _as_address(name: str) -> str | None:
    try:
        found = ip_address(name)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
