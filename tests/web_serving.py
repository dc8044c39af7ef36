"""The web page of one installation, served by a real server in a thread, and who asks it."""

import base64
import contextlib
import hashlib
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import uvicorn
from running import wait_until

from config.settings import Settings
from daemon.web.app import make_app

_FIELD = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


def quick_hash(password: str) -> str:
    """A hash that is checked in no time: what takes long is tested once."""
    salt = secrets.token_bytes(32)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=16, r=8, p=1, dklen=32)
    words = [base64.b64encode(part).decode().rstrip("=") for part in (salt, digest)]
    return f"$scrypt$ln=4,r=8,p=1${words[0]}${words[1]}\n"


@dataclass
class Served:
    """A page that listens on loopback."""

    app: object
    port: int
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def services(self):
        return self.app.state.services

    def client(self, **options) -> "Visitor":
        """A browser of its own: its cookies are nobody else's."""
        one = Visitor(base_url=self.address, timeout=20, trust_env=False, **options)
        self.clients.append(one)
        return one


class Visitor(httpx.Client):
    """Ask like a browser that fills in forms."""

    def token(self, page: str = "/upload") -> str:
        """The token that the forms of a page carry."""
        return _FIELD.search(self.get(page).text)[1]

    def submit(self, path: str, page: str | None = None, **fields: object) -> httpx.Response:
        """Fill in the form of a page (of the same address, if no other is named) and send it."""
        token = self.token(page or path)
        return self.post(path, data={"csrf": token, **fields}, headers={"Origin": self.origin})

    def log_in(self, password: str, **fields: object) -> httpx.Response:
        return self.submit("/login", password=password, **fields)

    @property
    def origin(self) -> str:
        return str(self.base_url).rstrip("/")


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[Served]:
    app = make_app(settings)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="on",
                                timeout_graceful_shutdown=1)  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="page")
        thread.start()
        one = Served(app, bound.getsockname()[1])
        try:
            wait_until(lambda: server.started or not thread.is_alive(), 10, "a page")
            yield one
        finally:
            for client in one.clients:
                client.close()
            server.should_exit = True
            thread.join(20)
