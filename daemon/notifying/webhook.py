"""Tell a server of the user's by HTTP: one signed POST, no redirects, bounded in time and size."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from config.settings import Settings
from daemon.errors import Undelivered
from daemon.notifying.notices import Notice
from daemon.notifying.private import read_secret
from workers import clock

MOST_NOTICES = 100
"""Of one message."""


class Webhook:
    """The channel of `notify.webhook`."""

    name = "webhook"
    most = MOST_NOTICES

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.notify.webhook
        self._root = settings.root.absolute()

    def send(self, notices: Sequence[Notice]) -> None:
        """Send one message. Raises Undelivered where it is not answered with 2xx."""
        secret = read_secret(self._root, self._settings.secret_file, "notify.webhook.secret_file")
        events = [notice.to_json_object() for notice in notices]
        body = json.dumps({"version": 1, "events": events}).encode()
        headers = signed_headers(secret, body, int(clock.wall()))
        try:
            status = _post(
                self._settings.url or "", body, headers,
                seconds=self._settings.timeout_seconds, ca_file=self._ca_file(),
            )  # fmt: skip
        except (OSError, http.client.HTTPException, ValueError) as error:  # a host that is no name
            words = getattr(error, "strerror", None) or type(error).__name__
            raise Undelivered(f"the webhook cannot be reached: {words}") from error
        if not 200 <= status < 300:
            more = ", and redirects are not followed" if 300 <= status < 400 else ""
            raise Undelivered(f"the webhook answers {status}{more}")

    def _ca_file(self) -> Path | None:
        return self._root / self._settings.ca_file if self._settings.ca_file else None


def signed_headers(secret: str, body: bytes, at: int) -> dict[str, str]:
    """Return the headers of a message: HMAC-SHA256 over `<seconds since 1970>.<body>`."""
    signature = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "User-Agent": f"petct-ingest/{version('petct-ingest')}",
        "X-Petct-Timestamp": str(at),
        "X-Petct-Signature": f"sha256={signature}",
        "Connection": "close",
    }


def _post(
    url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, ca_file: Path | None
) -> int:
    """POST and return the status; what stands in the answer's body is not even read."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=os.fspath(ca_file) if ca_file else None)
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=seconds, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.connect()
        with _cut_off_after(seconds, connection.sock):
            path = parts.path or "/"
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request("POST", target, body=body, headers=dict(headers))
            return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def _cut_off_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """End a connection when the time is over, however lively the other side drips."""

    def cut_off() -> None:
        with suppress(OSError):  # it has ended
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
