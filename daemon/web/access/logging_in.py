"""The pages /login and /logout."""

from __future__ import annotations

import anyio
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from config.logs import get_logger
from daemon.web.access.cookies import cookie_of
from daemon.web.access.guard import LOGIN, address_of, current_password
from daemon.web.services import Services, services_of
from daemon.web.showing import page
from workers import clock

_WRONG = "That is not the password."
_UNUSABLE = (
    "The password's file cannot be used; the log says why. `petct-ingest web password` writes it."
)

log = get_logger(__name__)


async def show_login(request: Request) -> Response:
    """Show the form, where there is something to log in to."""
    if not services_of(request).needs_password or request.state.logged_in:
        return RedirectResponse("/", 303)
    return _form(request, request.query_params.get("next", "/"))


async def log_in(request: Request) -> Response:
    """Begin a session under a token of its own, whatever the browser came with."""
    services = services_of(request)
    async with request.form(max_files=0) as fields:
        given, wanted = str(fields.get("password", "")), str(fields.get("next", "/"))
    if not services.needs_password:
        return RedirectResponse("/", 303)
    address = address_of(request)
    wait = services.limits.try_now(address, clock.monotonic())
    if wait:
        services.notes.note("web-login-delayed", by=address)
        words = f"Too many tries. The next one is taken in {int(wait) + 1} s."
        return _form(request, wanted, words, 429, {"Retry-After": str(int(wait) + 1)})
    password = current_password(services.settings)
    if password is None:
        return _form(request, wanted, _UNUSABLE, 503)
    async with services.hashing:  # one at a time: each takes its memory and its time
        fits = await anyio.to_thread.run_sync(password.fits, given)
    if not fits:
        log.warning("web-login-failed", address=address)
        services.notes.note("web-login-failed", by=address)
        return _form(request, wanted, _WRONG, 403)
    services.limits.succeeded(address)
    services.sessions.end(request.state.token)
    token = services.sessions.begin(password.fingerprint, clock.monotonic())
    log.info("web-login", address=address)
    services.notes.note("web-login", by=address)
    answer = RedirectResponse(_inside(wanted), 303)
    answer.headers["Set-Cookie"] = _cookie(services, token, services.sessions.lifetime_seconds)
    return answer


async def log_out(request: Request) -> Response:
    """End the session; its token opens nothing any more."""
    services = services_of(request)
    if services.sessions.end(request.state.token):
        services.notes.note("web-logout", by=address_of(request))
    answer = RedirectResponse(LOGIN, 303)
    answer.headers["Set-Cookie"] = _cookie(services, "", 0)
    return answer


def _form(
    request: Request,
    wanted: str,
    wrong: str = "",
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    shown = page(request, "login.html", status, wrong=wrong, next=_inside(wanted))
    shown.headers.update(headers or {})
    return shown


def _cookie(services: Services, token: str, seconds: float) -> str:
    return cookie_of(token, services.settings.web, seconds)


def _inside(wanted: str) -> str:
    """Return where to go after the log-in: a page of ours, else the first one."""
    plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    return wanted if plain and wanted.startswith("/") and not wanted.startswith("//") else "/"


ROUTES = [
    Route(LOGIN, show_login, methods=["GET"]),
    Route(LOGIN, log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
