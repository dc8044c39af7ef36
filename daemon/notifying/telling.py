"""The role `notify`: each channel in a thread of its own, so that none waits for another."""

from __future__ import annotations

import threading
from contextlib import closing

import sqlalchemy as sa

from config.logs import get_logger
from config.settings import Settings
from daemon.notifying.channel import MARKS, Channel, Sender
from daemon.notifying.mail import Email
from daemon.notifying.notices import Notice, Topic
from daemon.notifying.webhook import Webhook
from workers import clock
from workers.errors import IndexAway, IndexUnusable
from workers.index.engine import MetadataIndex, open_index
from workers.index.marks import forget_marks

_LOOK_SECONDS = 1.0
_STOP_SECONDS = 5.0

log = get_logger(__name__)


def senders_of(settings: Settings) -> list[Sender]:
    """Return the channels that the settings name."""
    found: list[Sender] = []
    if settings.notify.webhook.url is not None:
        found.append(Webhook(settings))
    if settings.notify.email.host is not None:
        found.append(Email(settings))
    return found


def run_notifier(settings: Settings, stop: threading.Event) -> None:
    """Tell whoever is to be told until `stop` is set.

    Raises whatever ended a channel's thread: the process is then to be started again.
    """
    index = _open(settings, stop)
    if index is None:
        return
    with closing(index):
        senders = senders_of(settings)
        keep = [f"{MARKS}{one.name}:{what}" for one in senders for what in ("after", "disks")]
        forget_marks(index, MARKS, keep)  # one that is turned on again begins anew
        failures: list[BaseException] = []
        threads = [
            threading.Thread(
                target=_run_one, args=(index, settings, one, stop, failures),
                name=f"notify-{one.name}", daemon=True,
            )
            for one in senders
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        log.info("notifying", channels=[one.name for one in senders])
        stop.wait()
        for thread in threads:
            thread.join(_STOP_SECONDS)  # what is being sent is sent again, if it must be
        if failures:
            raise failures[0]


def greeting() -> Notice:
    """Return a message that says that messages arrive."""
    at = clock.utc_now()
    return Notice(f"test-{at}", at, Topic.DISK, "test", "petct-ingest can tell you things")


def _open(settings: Settings, stop: threading.Event) -> MetadataIndex | None:
    """Open the index as soon as there is one; None when stopped meanwhile."""
    told = ""
    while not stop.is_set():
        try:
            return open_index(settings)
        except IndexUnusable as error:
            if str(error) != told:
                log.info("index-awaited")
            told = str(error)
        stop.wait(_LOOK_SECONDS)
    return None


def _run_one(
    index: MetadataIndex,
    settings: Settings,
    sender: Sender,
    stop: threading.Event,
    failures: list[BaseException],
) -> None:
    try:
        _follow(index, settings, sender, stop)
    except Exception as error:  # noqa: BLE001 - the thread's boundary: the process ends with it
        failures.append(error)
        stop.set()


def _follow(
    index: MetadataIndex, settings: Settings, sender: Sender, stop: threading.Event
) -> None:
    channel = None
    trouble = ""
    while not stop.is_set():
        more = False
        try:
            if channel is None:
                channel = Channel(index, settings, sender)
            more = channel.tick(clock.monotonic())
            trouble = ""
        except (OSError, IndexAway, sa.exc.DBAPIError) as error:  # the next look tries again
            before, trouble = trouble, type(error).__name__
            if trouble != before:
                log.warning("notify-waits", channel=sender.name, error=trouble)
        if not more:
            stop.wait(_LOOK_SECONDS)
