"""Tell people by e-mail: one message for all that happened meanwhile, over SMTP (RFC 5321)."""

from __future__ import annotations

import hashlib
import os
import smtplib
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from email.utils import formatdate
from types import MappingProxyType

from config.settings import Settings
from config.tables.telling import EmailSettings
from daemon.errors import Undelivered
from daemon.notifying.notices import Notice, Topic
from daemon.notifying.private import read_secret
from workers import clock

MOST_NOTICES = 1000
"""Of one message."""

MOST_LINES = 50
"""Of one topic; the rest is only counted."""

_TITLES: Mapping[Topic, str] = MappingProxyType(
    {
        Topic.DISK: "disk",
        Topic.HELD: "held",
        Topic.QUARANTINED: "set aside",
        Topic.READY: "ready",
    }
)


class Email:
    """The channel of `notify.email`."""

    name = "email"
    most = MOST_NOTICES

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.notify.email
        self._root = settings.root.absolute()
        self._page = settings.notify.public_url

    def send(self, notices: Sequence[Notice]) -> None:
        """Send one message. Raises Undelivered where the server takes it for nobody."""
        message = compose(notices, self._settings, self._page, clock.wall())
        try:
            with self._connected() as server:
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise Undelivered(f"the mail server does not take it: {_why(error)}") from error

    def _connected(self) -> smtplib.SMTP:
        mail = self._settings
        ca_file = os.fspath(self._root / mail.ca_file) if mail.ca_file else None
        host, seconds = mail.host or "", mail.timeout_seconds
        if mail.security == "tls":
            context = ssl.create_default_context(cafile=ca_file)
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, mail.port, timeout=seconds, context=context
            )
        else:
            server = smtplib.SMTP(host, mail.port, timeout=seconds)
        try:
            if mail.security == "starttls":
                server.starttls(context=ssl.create_default_context(cafile=ca_file))
            if mail.user is not None:
                setting = "notify.email.password_file"
                server.login(mail.user, read_secret(self._root, mail.password_file, setting))
        except BaseException:
            server.close()
            raise
        return server


def compose(
    notices: Sequence[Notice], settings: EmailSettings, page: str | None, at: float
) -> EmailMessage:
    """Write a message; `at` is its date in seconds since 1970.

    The same notices make the same Message-ID: a mailbox may drop what comes twice.
    """
    by_topic = {
        topic: mine for topic in _TITLES if (mine := [one for one in notices if one.topic is topic])
    }
    counts = ", ".join(f"{len(mine)} {_TITLES[topic]}" for topic, mine in by_topic.items())
    digest = hashlib.sha256("\n".join(one.id for one in notices).encode()).hexdigest()[:32]
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = ", ".join(settings.recipients)
    message["Subject"] = f"petct-ingest: {counts}"
    message["Date"] = formatdate(at)
    message["Message-ID"] = f"<{digest}@{settings.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody answers from a holiday
    parts = [_section(_TITLES[topic], mine) for topic, mine in by_topic.items()]
    if page is not None:
        parts.append(page)
    message.set_content("\n\n".join(parts) + "\n")
    return message


def _section(title: str, notices: Sequence[Notice]) -> str:
    lines = [f"{title}: {len(notices)}"]
    lines += [_line(one) for one in notices[:MOST_LINES]]
    rest = Counter(one.words for one in notices[MOST_LINES:])
    lines += [f"- and {count} more: {words}" for words, count in rest.most_common(MOST_LINES)]
    return "\n".join(lines)


def _line(notice: Notice) -> str:
    words = [f"- {notice.at}"]
    if notice.study is not None:
        words.append(f"study {notice.study}:")
    words.append(_plain(notice.words))
    for key, value in notice.identifiers.items():
        words.append(f"\n    {key}: {_plain(str(value))}")
    if notice.link:
        words.append(f"\n    {notice.link}")
    return " ".join(words).replace(" \n", "\n")


def _plain(text: str) -> str:
    """Return a text in one line, without control characters: a header may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _why(error: Exception) -> str:
    """Say why without what the server quoted."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{type(error).__name__} {error.smtp_code}"
    return getattr(error, "strerror", None) or type(error).__name__
