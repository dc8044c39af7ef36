"""Take a POST only from our own pages.

Three signs are asked, and none may be wrong: what the browser says of where the request comes from
(Sec-Fetch-Site, Origin), a SameSite cookie, and a token in the form that only our own page can
know: the keyed hash of the visit's token, with a key of this process.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qs

import anyio
from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.logs import get_logger
from config.tables.telling import WebSettings
from daemon.web.access.cookies import is_secure
from daemon.web.access.visits import token_of
from daemon.web.services import services_of
from daemon.web.showing import page

FIELD = "csrf"
HEADER = "x-csrf-token"

FORM_BYTES = 64 << 10
"""A form is no longer; what is longer is an upload, which checks its own first field."""

UPLOADS = "/upload"

_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_FORM_SECONDS = 30
_MOST_FIELDS = 100

log = get_logger(__name__)


def csrf_token(request: Request) -> str:
    """Return what a form, or the header X-CSRF-Token, must carry."""
    key = services_of(request).key
    return hmac.new(key, token_of(request).encode("ascii"), hashlib.sha256).hexdigest()


def csrf_field(request: Request) -> Markup:
    """Return the hidden field of a form that POSTs."""
    return Markup('<input type="hidden" name="{}" value="{}">').format(FIELD, csrf_token(request))


def is_right(request: Request, given: str) -> bool:
    """Tell whether this is the token of the request's own visit."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), csrf_token(request).encode())


def why_foreign(request: Request, web: WebSettings) -> str | None:
    """Say by which header a request comes from a page of somebody else, or None."""
    site = request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin"):
        return "sec-fetch-site"
    origin = request.headers.get("origin")
    if origin is None:
        return None
    scheme = "https" if is_secure(web) else "http"
    ours = f"{scheme}://{request.headers.get('host', '')}"
    return None if origin.lower() == ours.lower() else "origin"


class CsrfCheck:
    """Answer 403 to a request that would change something and may not be ours."""

    def __init__(self, app: ASGIApp, web: WebSettings) -> None:
        self._app = app
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            wrong, body = await self._judge(request)
        except TimeoutError:
            await PlainTextResponse("The form came too slowly.\n", 408)(scope, receive, send)
            return
        except ClientDisconnect:
            return  # nobody waits for an answer
        if wrong is None:
            await self._app(scope, receive if body is None else _again(body, receive), send)
            return
        log.debug("web-request-refused", wrong=wrong, path=scope["path"][:50])
        services_of(request).notes.note("web-request-refused", by=_address(request), reason=wrong)
        words = "This did not come from our own page, or the page was old: load it anew, try again."
        await page(request, "error.html", 403, code=403, words=words)(scope, receive, send)

    async def _judge(self, request: Request) -> tuple[str | None, bytes | None]:
        """Return what is wrong, and the body where it had to be read."""
        if foreign := why_foreign(request, self._web):
            return foreign, None
        if given := request.headers.get(HEADER):
            return (None if is_right(request, given) else "token"), None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == _MULTIPART and request.scope["path"] == UPLOADS:
            return None, None  # its first field is the token (uploads.py)
        if kind != _FORM:
            return "no form", None
        body = await _read(request)
        if body is None:
            return "too long", None
        try:
            fields = parse_qs(body.decode("latin-1"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            return "too many fields", None
        given = fields.get(FIELD, [""])[0]
        return (None if is_right(request, given) else "token"), body


async def _read(request: Request) -> bytes | None:
    body = bytearray()
    with anyio.fail_after(_FORM_SECONDS):
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                return None
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read once more."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _address(request: Request) -> str:
    return request.client.host if request.client else "?"
