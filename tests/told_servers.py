"""Whoever is told things in tests: a webhook and a mail server, real sockets on loopback."""

import base64
import contextlib
import email
import email.policy
import hashlib
import hmac
import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = "a secret of thirty-two characters"


@dataclass
class Hook:
    """What a webhook's receiver got, and how it answers."""

    port: int = 0
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    before_answer: Callable[[], None] = lambda: None
    asked: int = 0
    taken: list[dict] = field(default_factory=list)
    """Messages that were answered with 2xx."""
    raw: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?from=petct"

    @property
    def ids(self) -> list[str]:
        return [one["id"] for message in self.taken for one in message["events"]]

    def take(self, headers, body: bytes) -> None:
        """Check a message as docs/notifications.md tells its receiver to."""
        signed = f"{headers['X-Petct-Timestamp']}.".encode() + body
        wanted = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(headers["X-Petct-Signature"], f"sha256={wanted}")
        self.raw += body
        self.taken.append(json.loads(body))


@contextlib.contextmanager
def a_hook(port: int = 0) -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.asked += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.before_answer()
            if 200 <= hook.status < 300:
                hook.take(self.headers, body)
            self.send_response(hook.status)
            for name, value in hook.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            pass  # who asked was killed

    server = Server(("127.0.0.1", port), Handler)
    hook.port = server.server_port
    with _serving(server):
        yield hook


@dataclass
class Mailbox:
    """What a mail server took; `password` is asked for where there is one."""

    port: int = 0
    password: str = ""
    context: ssl.SSLContext | None = None
    messages: list = field(default_factory=list)
    envelopes: list[tuple[str, list[str]]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)


class _Smtp(socketserver.StreamRequestHandler):
    """As much of RFC 5321, 3207 and 4954 as smtplib asks for."""

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def handle(self) -> None:
        with contextlib.ExitStack() as stack:
            self.talk(self.server.box, stack)

    def talk(self, box: Mailbox, stack: contextlib.ExitStack) -> None:
        secure = known = False
        sender, recipients = "", []
        self.say("220 test")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self.say("250-test")
                    if box.context and not secure:
                        self.say("250-STARTTLS")
                    self.say("250 AUTH PLAIN")
                case "STARTTLS":
                    self.say("220 go on")
                    wrapped = box.context.wrap_socket(self.request, server_side=True)
                    stack.enter_context(wrapped)
                    self.rfile = stack.enter_context(wrapped.makefile("rb"))
                    self.wfile = stack.enter_context(wrapped.makefile("wb", 0))
                    secure = True
                case "AUTH":
                    given = base64.b64decode(rest.split()[1]).split(b"\0")[2].decode()
                    known = given == box.password
                    self.say("235 yes" if known else "535 no")
                case "MAIL":
                    sender = rest
                    self.say("250 ok" if known or not box.password else "530 log in")
                case "RCPT":
                    recipients.append(rest)
                    self.say("250 ok")
                case "DATA":
                    self.say("354 go on")
                    data = b""
                    while (more := self.rfile.readline()) != b".\r\n":
                        data += more.removeprefix(b".") if more.startswith(b"..") else more
                    message = email.message_from_bytes(data, policy=email.policy.default)
                    box.messages.append(message)
                    box.envelopes.append((sender, recipients))
                    box.encrypted.append(secure)
                    self.say("250 taken")
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("500 what?")


@contextlib.contextmanager
def a_mailbox(
    password: str = "", certificate: tuple[Path, Path] | None = None
) -> Iterator[Mailbox]:
    box = Mailbox(password=password)
    if certificate is not None:
        box.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        box.context.load_cert_chain(*certificate)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            pass  # who spoke went away

    server = Server(("127.0.0.1", 0), _Smtp)
    server.box = box
    box.port = server.server_address[1]
    with _serving(server):
        yield box


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="told"
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
