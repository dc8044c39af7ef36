"""Read the address of a queue server that sentinels watch over.

`redis+sentinel://[user[:password]@]host[:port][,host[:port]…]/service[/database]`, and
`rediss+sentinel://` for TLS to sentinels and server alike. User and password are the server's; the
sentinels name the server that is in charge of `service` now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

_SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
_PORT = 26379
_HOST = re.compile(r"(?P<host>\[[\da-fA-F:.]+\]|[^\s\[\]:/@?#,]+)(?::(?P<port>\d{1,5}))?")
_WORDS = (
    "no address such as redis+sentinel://host:26379,host:26379/service/0;"
    " what is special in a user or password is written %XX"
)


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Whom to ask for the server of a service."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False


def is_sentinel_url(url: str) -> bool:
    """Tell whether an address is one of sentinels."""
    return url.partition("://")[0] in _SCHEMES


def read_sentinel_url(url: str) -> Sentinels:
    """Take the address apart. Raises ValueError, whose words quote nothing of it."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    found = [_HOST.fullmatch(host) for host in hosts.split(",")]
    service, _, database = path.partition("/")
    numbers = re.fullmatch(r"\d{0,5}", database)
    if scheme not in _SCHEMES or not re.fullmatch(r"[^\s/?#]+", service) or numbers is None:
        raise ValueError(_WORDS)
    addresses = []
    for one in found:
        if one is None or not 0 < int(one["port"] or _PORT) < 1 << 16:
            raise ValueError(_WORDS)
        addresses.append((one["host"].strip("[]"), int(one["port"] or _PORT)))
    return Sentinels(
        hosts=tuple(addresses),
        service=unquote(service),
        database=int(database or 0),
        user=unquote(user) or None,
        password=unquote(password) or None,
        tls=_SCHEMES[scheme],
    )
