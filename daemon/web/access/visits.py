"""Give each browser a token, so that its forms and its messages can be told from others'.

The token says nothing until a log-in makes a session of a new one (guard.py). A browser that is
only shown pages without a form is given none.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.tables.telling import WebSettings
from daemon.web.access.cookies import cookie_of, read_token
from daemon.web.access.sessions import new_token


class Visits:
    """Read the token of each request, or make one, which is sent as soon as something uses it."""

    def __init__(self, app: ASGIApp, web: WebSettings) -> None:
        self._app = app
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        known = read_token(HTTPConnection(scope), self._web)
        state["token"], state["token_used"] = known or new_token(), False

        async def send_token(message: Message) -> None:
            if message["type"] == "http.response.start" and known is None and state["token_used"]:
                headers = MutableHeaders(scope=message)
                if "set-cookie" not in headers:
                    headers["Set-Cookie"] = cookie_of(state["token"], self._web)
            await send(message)

        await self._app(scope, receive, send_token)


def token_of(connection: HTTPConnection) -> str:
    """Return the token of a visit; the browser is given it with the answer."""
    connection.state.token_used = True
    token: str = connection.state.token
    return token
