"""Look at ports and at the queue server: free, ours, or another's."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from config.layout import Layout
from config.settings import Settings
from daemon.doctor.findings import Finding, Level, judge_queue_server
from daemon.errors import NoServer
from daemon.receiver.access import address_allowed
from daemon.valkey import server_program
from workers.measuring import is_counting

_SECONDS = 5.0
_VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4: C-ECHO


def examine_network(settings: Settings) -> Iterator[Finding]:
    """Yield what is to be said of what listens."""
    yield _receiver(settings)
    if settings.web.enabled:
        yield _page(settings)
    yield _queue_server(settings)


def _receiver(settings: Settings) -> Finding:
    layout, receiver = settings.layout, settings.receiver
    port = _port_of(layout, "receiver.port", receiver.port)
    name = f"DICOM port {port}"
    host = _reachable(receiver.host)
    taken = _taken(receiver.host, port) if port else "no port yet: a free one is taken at start"
    if taken != _IN_USE:
        if taken is None:
            return Finding(name, Level.OK, "free; no receiver runs")
        level = Level.OK if not port else Level.FAIL
        return Finding(name, level, taken, "" if not port else _BIND_ADVICE)
    answers, words = _asked(settings, host, port)
    if not answers:
        advice = f"see who has it: ss -ltnp 'sport = :{port}'; or set receiver.port"
        return Finding(name, Level.FAIL, words, advice)
    if not is_counting(layout, "receive"):
        advice = f"another installation? ss -ltnp 'sport = :{port}'; or set receiver.port"
        return Finding(name, Level.WARN, f"{words}, but is not of this root", advice)
    return Finding(name, Level.OK, words)


def ask_receiver(settings: Settings) -> Finding:
    """Ask whether the receiver of this root answers, as far as it lets us; fails where none runs.

    For the health check of its container: nothing of it is told in the audit.
    """
    layout, name = settings.layout, "receiver"
    port = _port_of(layout, "receiver.port", 0)
    host = _reachable(settings.receiver.host)
    if not is_counting(layout, "receive") or not port:
        return Finding(name, Level.FAIL, "no receiver of this root listens")
    if _taken(settings.receiver.host, port) != _IN_USE:
        return Finding(name, Level.FAIL, f"nothing listens on port {port}")
    answers, words = _asked(settings, host, port)
    return Finding(name, Level.OK if answers else Level.FAIL, words)


def ask_page(settings: Settings) -> Finding:
    """Ask whether the page of this root answers; fails where none is served."""
    layout, web, name = settings.layout, settings.web, "page"
    port = _port_of(layout, "web.port", 0)
    if not is_counting(layout, "web") or not port:
        return Finding(name, Level.FAIL, "no page of this root listens")
    host = _reachable(web.host)
    connection = (
        HTTPSConnection(host, port, timeout=_SECONDS, context=_unverified())
        if web.certificate
        else HTTPConnection(host, port, timeout=_SECONDS)
    )
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return Finding(name, Level.FAIL, f"does not answer ({type(error).__name__})")
    finally:
        connection.close()
    level = Level.OK if status == HTTPStatus.OK else Level.FAIL
    return Finding(name, level, f"answers {status}")


def _unverified() -> ssl.SSLContext:
    """We ask ourselves, by an address that no certificate names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _asked(settings: Settings, host: str, port: int) -> tuple[bool, str]:
    """Ask what listens on the receiver's port; say whether that may be a receiver, in words."""
    receiver = settings.receiver
    if receiver.tls.on:
        return True, "something listens; it speaks TLS and is not asked"
    if not address_allowed(host, receiver.allow_addresses):
        return True, "something listens; allow_addresses has not this machine, so it is not asked"
    return echo(settings, host, port)


def echo(settings: Settings, host: str, port: int) -> tuple[bool, str]:
    """Send a C-ECHO as an allowed sender would; say whether a DICOM receiver is there, in words."""
    from pynetdicom.ae import ApplicationEntity

    receiver = settings.receiver
    ae = ApplicationEntity((*receiver.allow_calling_ae, "DOCTOR")[0])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _SECONDS
    ae.add_requested_context(_VERIFICATION)
    called = (*receiver.allow_called_ae, receiver.ae_title)[0]
    association = ae.associate(host, port, ae_title=called)
    if association.is_rejected:
        return True, "a DICOM receiver answers, and does not let this machine in (allow_…)"
    if not association.is_established:
        return False, "what listens there is no DICOM receiver"
    try:
        status = association.send_c_echo()
    finally:
        association.release()
    answered = getattr(status, "Status", None) == 0
    return answered, "answers C-ECHO" if answered else "does not answer C-ECHO"


def _page(settings: Settings) -> Finding:
    layout, web = settings.layout, settings.web
    port = _port_of(layout, "web.port", web.port)
    name = f"page on port {port}"
    if not port:
        return Finding("page", Level.OK, "takes a free port when it is served")
    taken = _taken(web.host, port)
    if taken is None:
        return Finding(name, Level.OK, "free; no page is served")
    if taken == _IN_USE and is_counting(layout, "web"):
        return Finding(name, Level.OK, "served")
    advice = f"ss -ltnp 'sport = :{port}' says who has it; or set web.port"
    return Finding(
        name, Level.FAIL, "another program has it" if taken == _IN_USE else taken, advice
    )


def _queue_server(settings: Settings) -> Finding:
    import redis

    from workers.queue_server import connect, why
    from workers.queue_socket import socket_path

    name = "queue server"
    if not settings.redis.url and not socket_path(settings.layout).exists():
        try:
            return Finding(name, Level.OK, f"not running; {server_program().name} is there")
        except NoServer as error:
            return Finding(name, Level.FAIL, "there is none", str(error))
    try:
        with connect(settings) as connection:
            info = connection.info()
    except redis.RedisError as error:
        todo = "start it, or correct [redis]" if settings.redis.url else "start `petct-ingest run`"
        return Finding(name, Level.FAIL, why(error), f"{todo}; nothing is lost meanwhile")
    found = info.get("valkey_version") or info["redis_version"]
    return judge_queue_server(str(found), info.get("maxmemory_policy"))


_IN_USE = "in use"
_BIND_ADVICE = (
    "below 1024 let systemd open it (petct-ingest install); else receiver.host is no address of"
    " this machine"
)


def _taken(host: str, port: int) -> str | None:
    """Say what keeps us from listening there; None where nothing does."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.create_server(address[:2], family=family):
            return None
    except OSError as error:
        return _IN_USE if error.errno == errno.EADDRINUSE else error.strerror or str(error)


def _port_of(layout: Layout, file: str, given: int) -> int:
    """Return the port that a running role says it has, else the one that the settings give."""
    try:
        return int((layout.run / file).read_text("ascii"))
    except (OSError, ValueError):
        return given


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - read, not bound
