"""Who may see the page: whoever is logged in, and machines with the token what is meant for them.

On loopback without a password everybody on this machine may; every other address has one
(`WebSettings`). The files are read anew each time, so a changed password or token counts at once,
and sessions begun with another password are over.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from config.logs import get_logger
from config.settings import Settings
from daemon.errors import AccessUnusable
from daemon.web.access.passwords import HashedPassword, read_password, read_secret
from daemon.web.services import services_of
from workers import clock

LOGIN = "/login"
MACHINES = frozenset({"/metrics", "/healthz", "/readyz"})
"""What the token opens, to be read."""

PROBES = frozenset({"/healthz", "/readyz"})
"""What answers anybody, but with its words only whom `request.state.trusted` says."""

_STATIC = "/static/"
_SHORTEST_TOKEN = 20

log = get_logger(__name__)


class Guard:
    """Send to the log-in whoever has to; answer 401 to what is no browser."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._is_open = settings.web.password_file is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            request.state.logged_in = is_logged_in(request)
            request.state.trusted = self._is_open or request.state.logged_in
            refusal = None if self._may_pass(request) else self._refuse(request)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return  # a websocket: there are none, and leaving it unanswered refuses it
        await self._app(scope, receive, send)

    def _may_pass(self, request: Request) -> bool:
        path = request.scope["path"]
        return self._is_open or path == LOGIN or path.startswith(_STATIC) or request.state.logged_in

    def _refuse(self, request: Request) -> Response | None:
        """Return the answer to a stranger, or None where the token lets it pass."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._judge_token(request, given.strip())
        if request.method in ("GET", "HEAD") and request.scope["path"] in PROBES:
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            if request.headers.get("sec-fetch-site") == "cross-site":
                return _come_again(request.scope["path"])
            return RedirectResponse(f"{LOGIN}?next={quote(request.scope['path'])}", 303)
        return _unauthorized("Log in, or give the token of web.token_file.")

    def _judge_token(self, request: Request, given: str) -> Response | None:
        services, address = services_of(request), address_of(request)
        if request.method not in ("GET", "HEAD") or request.scope["path"] not in MACHINES:
            return _unauthorized("The token opens /metrics, /healthz and /readyz alone.")
        now = clock.monotonic()
        if wait := services.token_limits.try_now(address, now):
            return PlainTextResponse("Too many tries.\n", 429, {"Retry-After": str(int(wait) + 1)})
        if not token_fits(self._settings, given):
            log.warning("web-token-refused", address=address)
            services.notes.note("web-token-refused", by=address)
            return _unauthorized("That is not the token of web.token_file.")
        services.token_limits.succeeded(address)
        request.state.trusted = True
        return None


def check_files(settings: Settings) -> None:
    """Raise AccessUnusable where the password's or the token's file cannot be used."""
    web, root = settings.web, settings.root.absolute()
    if web.password_file is not None:
        read_password(root / web.password_file)
    if web.token_file is not None:
        _read_token(settings)


def is_logged_in(request: Request) -> bool:
    """Tell whether a request comes with a session that goes on."""
    services = services_of(request)
    password = current_password(services.settings)
    token: str = request.state.token
    return password is not None and services.sessions.holds(
        token, password.fingerprint, clock.monotonic()
    )


def current_password(settings: Settings) -> HashedPassword | None:
    """Read the password as it is now; None where there is none or its file cannot be used."""
    if settings.web.password_file is None:
        return None
    try:
        return read_password(settings.root.absolute() / settings.web.password_file)
    except AccessUnusable as error:
        log.warning("web-password-unusable", reason=error.reason)
        return None


def token_fits(settings: Settings, given: str) -> bool:
    """Tell whether this is the token for machines; compared in constant time."""
    if settings.web.token_file is None:
        return False
    try:
        token = _read_token(settings)
    except AccessUnusable as error:
        log.warning("web-token-unusable", reason=error.reason)
        return False
    return hmac.compare_digest(_digest(token), _digest(given))


def address_of(request: Request) -> str:
    """Return the address that a request came from."""
    return request.client.host if request.client else "?"


def _read_token(settings: Settings) -> str:
    path = settings.root.absolute() / (settings.web.token_file or "")
    token = read_secret(path, "web.token_file")
    if len(token) < _SHORTEST_TOKEN:
        raise AccessUnusable("web.token_file", f"a token has {_SHORTEST_TOKEN} characters or more")
    return token


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _come_again(path: str) -> Response:
    """Let the browser ask once more by itself: with a link of another site it sends no cookie."""
    inside = "/" + path.lstrip("/")  # `//name/` would be the address of another site
    refresh = f"0; url={quote(inside)}"  # nothing in it is markup then
    title = "<!doctype html><title>petct-ingest</title>"
    return HTMLResponse(f'{title}<meta http-equiv="refresh" content="{refresh}">')


def _unauthorized(words: str) -> Response:
    return PlainTextResponse(f"{words}\n", 401, {"WWW-Authenticate": 'Bearer realm="petct-ingest"'})
