"""What cannot work in settings that are valid each by itself: a pure rule over a few facts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings

_FILES = (
    "receiver.tls.certificate",
    "receiver.tls.key",
    "receiver.tls.client_ca",
    "redis.password_file",
    "redis.sentinel_password_file",
    "redis.ca_file",
    "web.password_file",
    "web.token_file",
    "web.certificate",
    "web.key",
    "notify.webhook.secret_file",
    "notify.webhook.ca_file",
    "notify.email.password_file",
    "notify.email.ca_file",
    "mirror.credentials_file",
    "mirror.ca_file",
)
"""The settings that name a file that must be there; a relative one counts from the root."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing about a setting: `fails` where it cannot work, else it is a warning."""

    key: str
    words: str
    fails: bool = True


def find_problems(
    settings: Settings,
    readable: Callable[[Path], str | None],
    device: Callable[[Path], int | None],
) -> tuple[Problem, ...]:
    """Return what does not fit together.

    `readable` says what is wrong with a file, or None; `device` returns the file system of a folder
    or of the nearest above it, None where it is not known.
    """
    return (
        *_folders(settings),
        *_disks(settings, device),
        *_files(settings, readable),
        *_ports(settings),
    )


def _folders(settings: Settings) -> Iterator[Problem]:
    """Folders of ours that lie in one another, and watched ones that would eat what is ours."""
    layout = settings.layout
    own = {
        "paths.archive": layout.archive,
        "paths.spool": layout.spool,
        "paths.quarantine": layout.quarantine,
        "paths.run": layout.run,
    }
    names = list(own)
    for key in names:
        for other in names:
            if key != other and own[key].is_relative_to(own[other]):
                same = own[key] == own[other]
                if not same or key < other:
                    verb = "is also" if same else "lies inside"
                    yield Problem(key, f"{own[key]} {verb} {other}")
    inbox_given = settings.watch is None
    for number, watch in enumerate(settings.watched):
        key = "paths.inbox" if inbox_given else f"watch[{number}].path"
        for other, folder in own.items():
            if watch.path.is_relative_to(folder):
                yield Problem(key, f"{watch.path} lies inside {other}: what is ours would be taken")
        if layout.root.is_relative_to(watch.path):
            yield Problem(key, f"{watch.path} holds the root itself: watch a folder of its own")
        for earlier in settings.watched[:number]:
            if earlier.path == watch.path:
                yield Problem(key, f"{watch.path} is watched twice")


def _disks(settings: Settings, device: Callable[[Path], int | None]) -> Iterator[Problem]:
    layout = settings.layout
    spool = device(layout.spool)
    folders = {"paths.archive": layout.archive, "paths.inbox": layout.inbox}
    for key, folder in folders.items():
        if key == "paths.inbox" and settings.watch is not None:
            continue
        if device(folder) != spool:
            words = f"{folder} is not on the spool's disk: every file is copied once more"
            yield Problem(key, words, fails=False)


def _files(settings: Settings, readable: Callable[[Path], str | None]) -> Iterator[Problem]:
    for key in _FILES:
        value: object = settings
        for name in key.split("."):
            value = getattr(value, name)
        if isinstance(value, Path):
            path = settings.layout.root / value
            wrong = readable(path)
            if wrong is not None:
                yield Problem(key, f"{path}: {wrong}")


def _ports(settings: Settings) -> Iterator[Problem]:
    receiver, web = settings.receiver, settings.web
    if web.enabled and receiver.port == web.port != 0:
        yield Problem("web.port", f"{web.port} is the receiver's port too")
    if receiver.host not in ("127.0.0.1", "::1", "localhost") and not (
        receiver.allow_addresses or receiver.allow_calling_ae or receiver.tls.client_ca
    ):
        words = "everybody who reaches the port may send; receiver.allow_addresses names who may"
        yield Problem("receiver.host", words, fails=False)


def why_unreadable(path: Path) -> str | None:
    """Say why a file cannot be read; None where it can."""
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def device_of(folder: Path) -> int | None:
    """Return the file system that a folder lies on, or would lie on."""
    while True:
        try:
            return os.stat(folder).st_dev
        except OSError:
            if folder == folder.parent:
                return None
            folder = folder.parent
