"""The one cookie: it names a visit, and after a log-in a session."""

from __future__ import annotations

import re

from starlette.requests import HTTPConnection

from config.tables.telling import WebSettings

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def is_secure(web: WebSettings) -> bool:
    """Tell whether browsers reach the page by https."""
    return web.certificate is not None or web.behind_tls


def cookie_name(web: WebSettings) -> str:
    """Name the cookie; `__Host-` binds it to this very host and to https (RFC 6265bis)."""
    return "__Host-petct" if is_secure(web) else "petct"


def read_token(connection: HTTPConnection, web: WebSettings) -> str | None:
    """Return the token that a browser holds, if it can be one of ours."""
    token = connection.cookies.get(cookie_name(web), "")
    return token if _TOKEN.fullmatch(token) else None


def cookie_of(token: str, web: WebSettings, seconds: float | None = None) -> str:
    """Return the header that gives a browser its token, until it closes or for some seconds."""
    parts = [f"{cookie_name(web)}={token}", "Path=/", "HttpOnly", "SameSite=Strict"]
    if seconds is not None:
        parts.append(f"Max-Age={int(seconds)}")
    if is_secure(web):
        parts.append("Secure")
    return "; ".join(parts)
