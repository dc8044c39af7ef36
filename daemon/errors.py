"""The errors of daemon.

DaemonError
├── AlreadyRunning       another daemon or server holds this root
├── NoServer             no Valkey or Redis server program can be found
├── QueueServerAway      the queue server does not answer (a role waits for it, it never starts one)
├── TlsUnusable          certificate, key or client CA of the receiver cannot be used
├── AccessUnusable       password or token of the web page cannot be used
├── UploadRefused        an upload is not taken, or not further
├── Undelivered          a message was not taken by whom it is for
└── CannotInstall        systemd units for these places or settings would not work
"""


class DaemonError(Exception):
    """Root of every error that daemon raises on purpose; its text is one line for the user."""


class AlreadyRunning(DaemonError):
    """Another process holds the lock of this root."""


class NoServer(DaemonError):
    """No Valkey or Redis server program can be found."""


class QueueServerAway(DaemonError):
    """The queue server does not answer, or went away while it was used."""


class TlsUnusable(DaemonError):
    """Files of `receiver.tls` cannot be used; paths stay unsaid, the setting is named."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting} cannot be used: {reason}")
        self.setting = setting
        self.reason = reason


class AccessUnusable(DaemonError):
    """Files that guard the web page cannot be used; paths stay unsaid, the setting is named."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting} cannot be used: {reason}")
        self.setting = setting
        self.reason = reason


class UploadRefused(DaemonError):
    """An upload is not taken, or not further; `status` is that of HTTP (RFC 9110)."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Undelivered(DaemonError):
    """Somebody who is to be told could not be; the message names no address and no secret."""


class CannotInstall(DaemonError):
    """Units for these places or settings would not work; the message says which and why."""
