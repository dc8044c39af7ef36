"""Serve the page: the role `web`.

The server runs in a thread of its own, because signals are ours already; a port that another
program has is tried again for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from config.layout import Layout
from config.logs import get_logger
from config.settings import Settings
from config.tables.telling import WebSettings
from daemon.errors import TlsUnusable
from daemon.processes import Notifier
from daemon.web.access.cookies import is_secure
from daemon.web.app import make_app
from workers.durable import replace_file
from workers.measuring import Measures

_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 30.0
_BACKLOG = 128
_TICK_SECONDS = 1.0
"""How often the server puts its clock, for the header Date, right."""
_LAST_WORDS_SECONDS = 3
"""How long a response in progress may still take when the page stops."""

log = get_logger(__name__)


def port_file(layout: Layout) -> Path:
    """Return the file that says which port the page has, while it listens."""
    return layout.run / "web.port"


def address_of(settings: Settings) -> str:
    """Return where a browser finds the page, as far as this machine can know."""
    web = settings.web
    host = f"[{web.host}]" if ":" in web.host else web.host
    port: int | str = web.port
    with contextlib.suppress(OSError):
        port = port_file(settings.layout).read_text("ascii").strip()
    return f"{'https' if web.certificate else 'http'}://{host}:{port}/"


def run_web(settings: Settings, stop: threading.Event, *, config: Path | None = None) -> None:
    """Serve the page until `stop` is set; `config` is the file that the settings were read from.

    Raises TlsUnusable where certificate or key cannot be used.
    """
    bound = _bind(settings.web, stop)
    if bound is None:
        return
    with bound, Measures(settings.layout, "web") as place:
        place.flush()  # by which others know that the page lives (`is_counting`)
        app = make_app(settings, config)
        server = _Server(_server_config(app, settings))
        with _serving(server, bound, stop):
            port = bound.getsockname()[1]
            replace_file(port_file(settings.layout), f"{port}\n".encode("ascii"), 0o644)
            if not settings.web.is_loopback and not is_secure(settings.web):
                log.warning("page-unencrypted", advice="set web.certificate and web.key")
            log.info("page-listens", host=settings.web.host, port=port)
            try:
                stop.wait()
            finally:
                app.state.pulse.stopping = True
                port_file(settings.layout).unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Uvicorn's, told to leave instead of asking ten times a second whether it should."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        self._leaving = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _TICK_SECONDS)

    def leave(self) -> None:
        """Make the server end; any thread may."""
        self.should_exit = True  # before its loop is looked for: it looks after it has one
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._leaving.set)


@contextlib.contextmanager
def _serving(server: _Server, bound: socket.socket, stop: threading.Event) -> Iterator[None]:
    """Run the server in a thread; if it ends by itself, `stop` is set and that is an error."""
    ended_early = threading.Event()

    def serve() -> None:
        server.run(sockets=[bound])
        if not stop.is_set():
            ended_early.set()
            stop.set()

    thread = threading.Thread(target=serve, name="web", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.leave()
        thread.join()
    if ended_early.is_set():
        raise RuntimeError("the web server ended by itself")


def _bind(web: WebSettings, stop: threading.Event) -> socket.socket | None:
    """Take the port, again and again while another program has it; None when stopped meanwhile."""
    wait = _FIRST_RETRY_SECONDS
    told = ""
    while not stop.is_set():
        try:
            family, *_, address = socket.getaddrinfo(
                web.host, web.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            number = error.errno or 0  # below 0: of getaddrinfo
            why = os.strerror(number) if number > 0 else str(error)
            Notifier.from_environment().status(
                f"the page does not listen: port {web.port} of {web.host} cannot be had ({why});"
                " it is tried again, or set web.port"
            )
            if why != told:
                log.warning("port-unavailable", host=web.host, port=web.port, reason=why,
                            longest_wait_in_seconds=_LONGEST_RETRY_SECONDS)  # fmt: skip
            told = why
        stop.wait(wait)
        wait = min(2 * wait, _LONGEST_RETRY_SECONDS)
    return None


def _server_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    web, root = settings.web, settings.layout.root
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,  # ours
        access_log=False,  # an address line may name a study
        server_header=False,
        proxy_headers=web.behind_tls,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        ssl_certfile=os.fspath(root / web.certificate) if web.certificate else None,
        ssl_keyfile=os.fspath(root / web.key) if web.key else None,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise TlsUnusable("web.certificate or web.key", error.strerror or str(error)) from None
    return config
