"""Reach the queue server: the embedded one on its private socket, or one of your own.

A password stands in a file and never in a message; neither does the address, which may hold one.
"""

from __future__ import annotations

import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as ConnectionRetry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from config.layout import Layout
from config.sentinels import is_sentinel_url, read_sentinel_url
from config.settings import Settings
from workers.errors import StoreUnavailable
from workers.queue_socket import socket_path as socket_path

_COMMAND_SECONDS = 2.0
_CONNECT_SECONDS = 1.0
_PASSWORD_BYTES = 4096


class QueueUnusable(StoreUnavailable, redis.ConnectionError):
    """The queue server cannot be reached as configured; the message says what to mend."""


def make_socket_folder(layout: Layout) -> Path:
    """Make the folder of the embedded server's socket (0700) if need be; return the socket's path.

    Raises
    ------
    QueueUnusable
        The folder exists and belongs to somebody else, or others may write to it.
    """
    path = socket_path(layout)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _check_socket_folder(layout, path.parent)
    return path


def remove_socket_folder(layout: Layout) -> None:
    """Remove the folder in /tmp that stood in for a path too long, once its server has ended."""
    path = socket_path(layout)
    if path.parent != layout.run:
        with suppress(OSError):  # never made, or another server is quicker
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def _check_socket_folder(layout: Layout, folder: Path) -> None:
    """Refuse a folder in /tmp that another user laid out for us."""
    if folder == layout.run:
        return
    facts = os.lstat(folder)
    owner = os.stat(layout.run).st_uid
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != owner or facts.st_mode & 0o077:
        raise QueueUnusable(
            f"{folder} must belong to the user who owns {layout.run}, with mode 0700: remove it"
        )


def connect(settings: Settings) -> redis.Redis:
    """Return a client of the queue server; it connects when first used and gives up within seconds.

    Raises
    ------
    QueueUnusable
        The folder of the embedded server's socket is not ours; the password or the CA file of
        another server cannot be read.
    """
    options: dict[str, Any] = {
        "socket_timeout": _COMMAND_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "retry": ConnectionRetry(NoBackoff(), 0),
        "driver_info": None,  # to tell the server its version, it would search for it each time
    }
    if settings.redis.url:
        options |= _credentials(settings)
        if is_sentinel_url(settings.redis.url):
            return _ask_sentinels(settings, options)
        return redis.Redis.from_url(settings.redis.url, **options)
    path = socket_path(settings.layout)
    if path.parent.exists():
        _check_socket_folder(settings.layout, path.parent)
    return redis.Redis(unix_socket_path=str(path), **options)


class _MasterPool(SentinelConnectionPool):
    """Connections to the server that the sentinels name; closing it closes those to them too."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # else only the server has changed
            self.sentinel_manager.close()


def _ask_sentinels(settings: Settings, options: dict[str, Any]) -> redis.Redis:
    """Return a client of the server in charge: the sentinels are asked at each new connection.

    A connection to a server that is not in charge any more fails, and the next one finds another.
    """
    asked = read_sentinel_url(settings.redis.url or "")
    known = options | {"ssl": True} if asked.tls else options
    to_sentinels = {name: value for name, value in known.items() if name != "password"}
    password = _password(settings, "sentinel_password_file")
    sentinels = Sentinel(
        asked.hosts,
        sentinel_kwargs=to_sentinels | ({"password": password} if password else {}),
    )  # type: ignore[no-untyped-call]
    server = {"db": asked.database, "username": asked.user, "password": asked.password}
    client: redis.Redis = sentinels.master_for(
        asked.service, connection_pool_class=_MasterPool, **server | known
    )  # type: ignore[no-untyped-call]
    return client


def _credentials(settings: Settings) -> dict[str, Any]:
    """Read what redis.password_file and redis.ca_file name."""
    found: dict[str, Any] = {}
    ca_file = settings.redis.ca_file
    if password := _password(settings, "password_file"):
        found["password"] = password
    if ca_file is not None:
        found["ssl_ca_certs"] = os.fspath(settings.layout.root / ca_file)
        try:
            with open(found["ssl_ca_certs"], "rb"):
                pass
        except OSError as error:
            raise QueueUnusable(f"[redis] {error.filename}: {error.strerror}") from error
    return found


def _password(settings: Settings, name: str) -> str | None:
    """Read the password in the file that a setting of [redis] names, if it names one."""
    path: Path | None = getattr(settings.redis, name)
    if path is None:
        return None
    try:
        with open(settings.layout.root / path, "rb") as file:
            found = file.read(_PASSWORD_BYTES).decode().rstrip("\r\n")
    except OSError as error:
        raise QueueUnusable(f"[redis] {error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QueueUnusable(f"redis.{name} holds no text") from error
    if not found:
        raise QueueUnusable(f"the file redis.{name} is empty")
    return found


def why(error: BaseException) -> str:
    """Say in words why the server could not be used; no address and no password is in them."""
    if isinstance(error, QueueUnusable):
        return str(error)
    for kind, words in (
        (MasterNotFoundError, "no sentinel names a queue server that is in charge (redis.url)"),
        (redis.AuthenticationError, "the queue server refuses our password (redis.password_file)"),
        (redis.exceptions.AuthorizationError, "the queue server does not let our user do this"),
        (redis.exceptions.NoPermissionError, "the queue server does not let our user do this"),
        (redis.OutOfMemoryError, "the queue server's memory is full"),
        (redis.ReadOnlyError, "the queue server is a read-only replica"),
        (redis.BusyLoadingError, "the queue server is still loading"),
        (redis.TimeoutError, "the queue server does not answer in time"),
    ):
        if isinstance(error, kind):
            return words
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the queue server's certificate is not trusted: {cause.verify_message} (redis.ca_file)"
        )
    if isinstance(cause, ssl.SSLError):
        return "no TLS with the queue server (rediss:// and its port, redis.ca_file)"
    if isinstance(error, redis.ConnectionError):
        return "the queue server does not answer"
    return f"the queue server refuses ({type(error).__name__})"
