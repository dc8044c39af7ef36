"""TLS of the receiver: the context for the next handshake, fresh whenever its files change.

What is negotiated follows the BCP 195 profiles of DICOM (PS3.15 B.12, with RFC 8996 and RFC 9325):
TLS 1.3 preferred and 1.2 taken, nothing older; of TLS 1.2 the suites with ECDHE and an
authenticated cipher alone; no compression, no renegotiation, no tickets: a session never outlives
the certificates that it was begun with.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from config.logs import get_logger
from config.tables.intake import TlsSettings
from daemon.errors import TlsUnusable

LOOK_SECONDS = 1.0
"""How often the files are looked at, at most."""

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

log = get_logger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]


class ServerTls:
    """The TLS of a listening port; for one thread.

    Relative paths count from `root`.

    Raises
    ------
    TlsUnusable
        Certificate, key or client CA cannot be used; only at first, later the old ones are kept.
    """

    def __init__(self, settings: TlsSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._looked_at = float("-inf")
        self._stamp = _stamp(self._files)
        self._broken: _Stamp | None = None
        self._context = self._load()

    @property
    def _files(self) -> tuple[Path, ...]:
        given = (self._settings.certificate, self._settings.key, self._settings.client_ca)
        return tuple(self._root / path for path in given if path is not None)

    def context(self, now: float) -> ssl.SSLContext:
        """Return what the next handshake is made with; `now` is monotonic seconds.

        Files that were replaced by broken ones, or by half of what belongs together, leave the old
        certificate in use; they are tried again until they are whole.
        """
        if now - self._looked_at < LOOK_SECONDS:
            return self._context
        self._looked_at = now
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return self._context
        try:
            self._context = self._load()
        except TlsUnusable as error:
            if stamp != self._broken:
                self._broken = stamp
                log.warning("tls-files-broken", setting=error.setting, reason=error.reason)
            return self._context
        self._stamp, self._broken = stamp, None
        log.info("tls-files-reloaded")
        return self._context

    def _load(self) -> ssl.SSLContext:
        settings = self._settings
        if settings.certificate is None or settings.key is None:
            raise TlsUnusable("receiver.tls", "no certificate is given")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[settings.minimum_version]
        context.set_ciphers(_CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0
        key = self._root / settings.key
        try:
            # an encrypted key is refused, not asked about on a terminal
            context.load_cert_chain(self._root / settings.certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise TlsUnusable("receiver.tls.certificate or key", _why(error)) from error
        if settings.client_ca is not None:
            try:
                context.load_verify_locations(self._root / settings.client_ca)
            except (OSError, ValueError) as error:
                raise TlsUnusable("receiver.tls.client_ca", _why(error)) from error
            # what the file names is trusted, also where it is no root
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            required = settings.require_client_certificate
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        _warn_of_readers(key)
        return context


def handshake_trouble(error: OSError) -> str:
    """Name why a handshake failed in a few words of OpenSSL's, without anything of the peer's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or "certificate verify failed"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "the peer hung up"
    return _why(error)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__


def _stamp(files: tuple[Path, ...]) -> _Stamp:
    """Return what changes when a file does."""

    def of(path: Path) -> tuple[int, int, int] | None:
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    return tuple(of(path) for path in files)


def _warn_of_readers(key: Path) -> None:
    try:
        mode = os.stat(key).st_mode
    except OSError:
        return
    if mode & 0o007:
        log.warning("tls-key-open-to-others", mode=f"{mode & 0o777:04o}", do="chmod o= the key")
