"""What systemd is given: units, account and folders, made from our settings.

The files in systemd/ are whole as they stand, for the usual places. Here the places become those of
one installation, and each unit is allowed what the settings ask of it, and nothing more: folders
outside the root, a server elsewhere, the secrets that it reads (systemd.exec(5), CREDENTIALS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from config.sentinels import is_sentinel_url
from config.settings import Settings
from daemon.errors import CannotInstall

SHIPPED_PREFIX = Path("/opt/petct-ingest")
SHIPPED_ROOT = Path("/var/lib/petct-ingest")
SHIPPED_CONFIG = Path("/etc/petct-ingest/config.toml")
_SHIPPED_LISTEN = "ListenStream=127.0.0.1:11112"

_UNITS = Path("/etc/systemd/system")
_VALKEY = "petct-ingest-valkey.service"
_NOTIFY = "petct-ingest-notify.service"
_MIRROR = "petct-ingest-mirror.service"
_PLAIN_PATH = re.compile(r"/[\w./+-]*", re.ASCII)
_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what is hidden, by name
"""What ProtectHome and PrivateTmp hide from the units."""

_SECRETS = {
    "redis.password_file": ("receiver", "watcher", "worker@", "sweeper", "web"),
    "redis.sentinel_password_file": ("receiver", "watcher", "worker@", "sweeper", "web"),
    "index.password_file": ("worker@", "sweeper", "web", "notify"),
    "receiver.tls.key": ("receiver",),
    "web.password_file": ("web",),
    "web.token_file": ("web",),
    "web.key": ("web",),
    "notify.webhook.secret_file": ("notify",),
    "notify.email.password_file": ("notify",),
    "mirror.credentials_file": ("mirror",),
}
"""The settings that name a file with a secret, and the services that read it."""

_OFFLINE = ("watcher", "worker@", "sweeper")
"""Services that need a network only where queues or index are elsewhere."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where one installation has its program and its configuration."""

    prefix: Path = SHIPPED_PREFIX
    config: Path = SHIPPED_CONFIG
    rooted: bool = False
    """Whether the units name the root beside the configuration, because it says another or none."""


def render(shipped: Mapping[str, str], settings: Settings, places: Places) -> dict[Path, str]:
    """Return the files to install, by absolute path.

    `shipped` holds the files of systemd/ by their path below it. Raises CannotInstall for a path
    that a unit cannot name or see.
    """
    layout = settings.layout
    for path in (places.prefix, places.config, layout.root, *_outside(settings, "watcher")):
        _refuse_unfit(path)
    ours = {
        str(SHIPPED_CONFIG): str(places.config)
        + (f" --root {layout.root}" if places.rooted else ""),
        str(SHIPPED_PREFIX): str(places.prefix),
        str(SHIPPED_ROOT): str(layout.root),
        _SHIPPED_LISTEN: f"ListenStream={_address(settings)}",
    }
    for folder in ("archive", "inbox", "spool", "quarantine", "run"):
        ours[f"{SHIPPED_ROOT}/{folder}"] = str(getattr(layout, folder))
    # at once and the longest first: what was put in is not looked at again
    anyone = re.compile("|".join(re.escape(one) for one in sorted(ours, key=len, reverse=True)))
    found = {}
    for name, text in shipped.items():
        if name == _VALKEY and settings.redis.url:
            continue
        text = anyone.sub(lambda match: ours[match[0]], text)
        if settings.redis.url:
            text = re.sub(rf"^(Wants|After)={_VALKEY}\n", "", text, flags=re.M)
            text = text.replace(f"={_VALKEY} ", "=")
        if name == "petct-ingest.target":
            asked = {_NOTIFY: settings.notify.enabled, _MIRROR: settings.mirror.enabled}
            more = "".join(f"Wants={unit}\n" for unit, wanted in asked.items() if wanted)
            text = text.replace("\n[Install]", f"{more}\n[Install]", 1)
        if name.endswith(".service"):
            text = _allowed(text, name, settings)
        found[_place_of(name)] = text
    return found


def _place_of(name: str) -> Path:
    return _UNITS / name if "/" not in name else Path("/etc") / name


def _allowed(text: str, name: str, settings: Settings) -> str:
    """Give a service what the settings ask of it, behind its own words."""
    service = name.removeprefix("petct-ingest-").removesuffix(".service")
    outside = _outside(settings, service)
    more = [f"ReadWritePaths={path}" for path in outside]
    more += _credentials(settings, service)
    if service in _OFFLINE:
        more += _network(settings)
    mounts = "".join(f"RequiresMountsFor={path}\n" for path in outside)
    text = text.replace("\n[Service]", f"{mounts}\n[Service]", 1)
    if not more:
        return text
    return text.replace(
        "\n[Install]", "\n".join(["", "# As the settings ask:", *more, "", "[Install]"])
    )


def _outside(settings: Settings, service: str) -> list[Path]:
    """Name the folders that a service writes to and that lie outside the root."""
    layout = settings.layout
    folders = [layout.archive, layout.inbox, layout.spool, layout.quarantine, layout.run]
    if layout.is_read_only:
        folders[0] = layout.output_root
    if service == "watcher":
        folders += [watch.path for watch in settings.watched if watch.mode == "move"]
    outside = {path for path in folders if not path.is_relative_to(layout.root)}
    return sorted(outside)


def _credentials(settings: Settings, service: str) -> Iterator[str]:
    """Hand secrets over: only systemd must be able to read their files.

    One below the root is our user's own, and is read where it lies.
    """
    root = settings.layout.root
    for key, readers in _SECRETS.items():
        value: object = settings
        for name in key.split("."):
            value = getattr(value, name)
        if service not in readers or not isinstance(value, Path):
            continue
        path = root / value
        if path.is_relative_to(root):
            continue
        _refuse_unfit(path, seen=False)
        yield f"LoadCredential={key}:{path}"
        yield f"Environment=PETCT_INGEST_{key.upper().replace('.', '__')}=%d/{key}"


def _network(settings: Settings) -> list[str]:
    """Open the way to servers elsewhere: to their addresses, or wherever a name leads."""
    hosts = set()
    for url in (settings.redis.url, settings.index.url):
        if url and is_sentinel_url(url):
            hosts.add("any")  # they may name any server
        elif url and not url.startswith(("unix:", "sqlite:")):
            hosts.add(urlsplit(url).hostname or "localhost")
    if not hosts:
        return []
    numeric = all(re.fullmatch(r"[\d.]+|[\da-f:]+:[\da-f:.]*|localhost", host) for host in hosts)
    allowed = sorted(hosts) if numeric else ["any"]  # names are looked up, and move
    return ["RestrictAddressFamilies=AF_INET AF_INET6", f"IPAddressAllow={' '.join(allowed)}"]


def _address(settings: Settings) -> str:
    receiver = settings.receiver
    return (
        f"[{receiver.host}]:{receiver.port}"
        if ":" in receiver.host
        else (f"{receiver.host}:{receiver.port}")
    )


def _refuse_unfit(path: Path, *, seen: bool = True) -> None:
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise CannotInstall(
            f"{path} cannot stand in a unit: choose a path of letters, digits and ._+-/"
        )
    if seen and any(path.is_relative_to(hidden) for hidden in _UNSEEN):
        raise CannotInstall(
            f"{path} cannot be seen by the units (ProtectHome, PrivateTmp): choose one below"
            " /opt, /srv or /var/lib"
        )
