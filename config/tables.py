"""The tables of the configuration file, typed, each key with its default and its own check."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from config.sentinels import is_sentinel_url, read_sentinel_url


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PathSettings(_Table):
    """Where things lie; a relative path, and every one not given, lies below the root."""

    archive: Path | None = None
    inbox: Path | None = None
    spool: Path | None = None
    quarantine: Path | None = None
    run: Path | None = None


def _ae_title(value: str) -> str:
    # PS3.5 6.2: the AE representation forbids backslash and control characters
    if (
        not 1 <= len(value) <= 16
        or value != value.strip()
        or "\\" in value
        or not value.isascii()
        or not value.isprintable()
    ):
        raise ValueError("an AE title is 1-16 printable ASCII characters without backslash")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]


def _network(value: str) -> str:
    ip_network(value)  # ValueError in words of its own
    return value


Network = Annotated[str, AfterValidator(_network)]
"""An address or a network: 10.0.0.7, 10.0.0.0/24, fd00::/8."""


class TlsSettings(_Table):
    """TLS of the receiver; on as soon as a certificate is given."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    require_client_certificate: bool = True
    minimum_version: Literal["1.2", "1.3"] = "1.2"

    @model_validator(mode="after")
    def _is_whole(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca asks for a certificate of our own")
        return self

    @property
    def on(self) -> bool:
        """Whether the port speaks TLS."""
        return self.certificate is not None


class ReceiverSettings(_Table):
    """The DICOM network receiver."""

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    ae_title: AETitle = "PETCT_INGEST"
    maximum_associations: int = Field(default=64, ge=1)
    maximum_associations_per_peer: int = Field(default=32, ge=1)
    maximum_pdu: int = Field(default=131072, ge=0)
    maximum_instance_mb: int = Field(default=16384, ge=1)
    allow_calling_ae: tuple[AETitle, ...] = ()
    allow_called_ae: tuple[AETitle, ...] = ()
    allow_addresses: tuple[Network, ...] = ()
    network_timeout_seconds: float = Field(default=120, gt=0)
    acse_timeout_seconds: float = Field(default=30, gt=0)
    dimse_timeout_seconds: float = Field(default=120, gt=0)
    stop_seconds: float = Field(default=20, gt=0)
    tls: TlsSettings = TlsSettings()


class PeerSettings(_Table):
    """Where an application entity listens."""

    ae_title: AETitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class CommitmentSettings(_Table):
    """Storage commitment: our word that an instance may be deleted by its sender."""

    enabled: bool = True
    retry_hours: float = Field(default=24, ge=0)
    peers: tuple[PeerSettings, ...] = ()


class WatchSettings(_Table):
    """One watched folder."""

    path: Path
    mode: Literal["move", "copy"] = "move"
    settle_seconds: float = Field(default=2.0, ge=0)
    events: Literal["native", "poll"] = "native"
    scan_seconds: float = Field(default=60.0, gt=0)


class SpoolSettings(_Table):
    """The durable spool between intake and filing."""

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    minimum_free_mb: int = Field(default=1024, ge=0)
    minimum_free_inodes: int = Field(default=10000, ge=0)
    resume_factor: float = Field(default=1.25, ge=1)


class RedisSettings(_Table):
    """The queue server."""

    url: str | None = Field(default=None, repr=False)  # it may hold a password
    password_file: Path | None = None
    sentinel_password_file: Path | None = None
    ca_file: Path | None = None
    memory_mb: int = Field(default=256, ge=16)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and is_sentinel_url(value):
            read_sentinel_url(value)  # ValueError in words of its own
        elif value is not None:
            if not value.startswith(("redis://", "rediss://", "unix://")):
                raise ValueError(
                    "it begins with redis://, rediss://, unix://, redis+sentinel:// or"
                    " rediss+sentinel://"
                )
            try:
                _ = urlsplit(value).port
            except ValueError:  # its words quote a part of the address, perhaps of a password
                raise ValueError(
                    "no address such as redis://host:6379/0; what is special in a user or password"
                    " is written %XX, or give redis.password_file"
                ) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> RedisSettings:
        if self.url is None:
            if self.password_file or self.sentinel_password_file or self.ca_file:
                raise ValueError("files with passwords and ca_file belong to a server: give url")
            return self
        if is_sentinel_url(self.url):
            password = read_sentinel_url(self.url).password
        else:
            password = urlsplit(self.url).password
        if self.password_file and password:
            raise ValueError("the password is given in url or in password_file, not in both")
        if self.ca_file and not self.url.startswith("rediss"):
            raise ValueError(
                "ca_file asks for a url that begins with rediss:// or rediss+sentinel://"
            )
        return self


class IndexSettings(_Table):
    """The metadata index."""

    url: str | None = Field(default=None, repr=False)  # it may hold a password
    password_file: Path | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> IndexSettings:
        if self.password_file is None:
            return self
        if not (self.url or "").startswith("postgresql"):
            raise ValueError("password_file belongs to a PostgreSQL of your own: give url")
        if self.url and urlsplit(self.url).password:
            raise ValueError("the password is given in url or in password_file, not in both")
        return self


class FilingSettings(_Table):
    """What the filing workers do."""

    workers: int = Field(default=1, ge=0)
    duplicates: Literal["keep-first", "quarantine", "replace"] = "keep-first"
    batch_entries: int = Field(default=100, ge=1)
    batch_seconds: float = Field(default=0.2, ge=0)
    poison_deaths: int = Field(default=3, ge=1)


class CompletenessSettings(_Table):
    """When a series and a study count as complete."""

    quiet_seconds: float = Field(default=60, ge=0)
    hard_cap_minutes: float = Field(default=90, gt=0)


class PairingSettings(_Table):
    """What is paired and how."""

    enabled: bool = True
    workers: int = Field(default=1, ge=0)
    memory_mb: int | None = Field(default=None, ge=256)
    ct_preference: Literal["attenuation", "diagnostic"] = "attenuation"
    minimum_coverage: float = Field(default=0.9, ge=0, le=1)
    grid: str = "pet"
    ct_dtype: Literal["int16", "float32"] = "int16"
    nifti: bool = False
    strict_suv: bool = False
    require_suv: bool = False
    output_root: Path | None = None

    @field_validator("grid")
    @classmethod
    def _is_a_grid(cls, value: str) -> str:
        kind, _, size = value.partition(":")
        if value in ("pet", "ct"):
            return value
        try:
            if kind == "isotropic" and 0.1 <= float(size) <= 50:
                return value
        except ValueError:
            pass  # falls through to the one message
        raise ValueError('a grid is "pet", "ct" or "isotropic:<mm>" with 0.1 to 50 mm')


def _mode(ours: int) -> Callable[[str], str]:
    """Return the check of a mode that leaves us at least `ours`."""

    def check(value: str) -> str:
        if not re.fullmatch(r"0?[0-7]{3}", value) or int(value, 8) & 0o002:
            raise ValueError('modes are octal digits such as "0640"; not writable by everybody')
        if int(value, 8) & ours != ours:
            raise ValueError(f"we must use it ourselves: at least 0{ours:o}")
        return value

    return check


class FilesSettings(_Table):
    """Who may read what is filed; spool and quarantine are always our user's alone."""

    mode: Annotated[str, AfterValidator(_mode(0o600))] = "0640"
    folder_mode: Annotated[str, AfterValidator(_mode(0o700))] = "0750"


class DeidentifySettings(_Table):
    """What de-identification needs, for the sources that ask for it."""

    seed_file: Path | None = None


class LabelsSettings(_Table):
    """Which labels a path of a dropped file carries."""

    pattern: str = r"(?:^|/)(?P<subject>[^/]+)/imaging/(?P<session>[^/]+)/"

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from None
        if not {"subject", "session"} >= set(groups) or "subject" not in groups:
            raise ValueError("it names the groups subject and, if there is one, session")
        return value


class LoggingSettings(_Table):
    """Structured logs, on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "text"


class WebSettings(_Table):
    """The web page, and what machines ask of it."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8050, ge=0, le=65535)
    password_file: Path | None = None
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    behind_tls: bool = False
    allow_hosts: tuple[str, ...] = ()
    session_hours: float = Field(default=12, gt=0)
    uploads: bool = True
    maximum_upload_mb: int = Field(default=65536, ge=1)

    @model_validator(mode="after")
    def _is_safe(self) -> WebSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together")
        reached = not self.is_loopback or self.behind_tls or self.allow_hosts
        if self.enabled and reached and self.password_file is None:
            raise ValueError(
                "a page that others reach (host, behind_tls, allow_hosts) asks for a password: give"
                " web.password_file (petct-ingest web password writes it), or host 127.0.0.1"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class WebhookSettings(_Table):
    """A server of yours that is told by HTTP; on as soon as an address is given."""

    url: str | None = Field(default=None, repr=False)  # it may hold a secret
    secret_file: Path | None = None
    ca_file: Path | None = None
    timeout_seconds: float = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _is_signed(self) -> WebhookSettings:
        if self.url is None:
            return self
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("url is http://… or https://…, without a user")
        if self.secret_file is None:
            raise ValueError("url asks for secret_file: the receiver checks the signature with it")
        return self


class EmailSettings(_Table):
    """E-mail by SMTP; on as soon as a host is given."""

    host: str | None = None
    port: int = Field(default=587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    ca_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    sender: str = ""
    recipients: tuple[str, ...] = ()
    timeout_seconds: float = Field(default=30, gt=0)

    @field_validator("sender", "recipients")
    @classmethod
    def _are_addresses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for one in (value,) if isinstance(value, str) else value:
            if one and not re.fullmatch(r"[!-;=?-~]+@[!-;=?-~]+", one):  # no space, <, > or control
                raise ValueError("an address is name@host.example, nothing around it")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> EmailSettings:
        if self.host is not None and not (self.sender and self.recipients):
            raise ValueError("host asks for sender and recipients")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file are given together")
        if self.user is not None and self.security == "none":
            raise ValueError('a password is not sent in the clear: security "starttls" or "tls"')
        return self


class NotifySettings(_Table):
    """Who is told of what happens."""

    on: tuple[Literal["ready", "held", "quarantined", "disk"], ...] = (
        "ready",
        "held",
        "quarantined",
        "disk",
    )
    batch_seconds: float = Field(default=60, ge=0)
    disk_factor: float = Field(default=2.0, ge=1)
    include_identifiers: bool = False
    public_url: str | None = None
    webhook: WebhookSettings = WebhookSettings()
    email: EmailSettings = EmailSettings()

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s?#@]+", value):
            raise ValueError("public_url is http://… or https://…, without user or query")
        return value

    @property
    def enabled(self) -> bool:
        """Whether anybody is told."""
        return self.webhook.url is not None or self.email.host is not None


class MirrorSettings(_Table):
    """A copy in an S3-compatible object store; on as soon as an address is given."""

    url: str | None = None
    what: Literal["pairs", "all"] = "all"
    endpoint_url: str | None = None
    region: str | None = None
    credentials_file: Path | None = None
    ca_file: Path | None = None
    connections: int = Field(default=4, ge=1, le=64)
    megabytes_per_second: float = Field(default=0, ge=0)
    part_mb: int = Field(default=16, ge=5, le=1024)

    @field_validator("url")
    @classmethod
    def _is_a_bucket(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(
            r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.+=@-]+)*/?", value, re.ASCII
        ):
            raise ValueError("url is s3://bucket or s3://bucket/prefix, without user or query")
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+/?", value):
            raise ValueError("endpoint_url is https://host or https://host:port, without user")
        return value

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and prefix; the prefix ends with a slash or is empty."""
        bucket, _, prefix = (self.url or "").removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        return bucket, f"{prefix}/" if prefix else ""

    @property
    def enabled(self) -> bool:
        """Whether there is a store to mirror to."""
        return self.url is not None


class SourcePolicy(_Table):
    """What is done with what comes from one source; every given key must match."""

    calling_ae: str | None = None
    called_ae: str | None = None
    address: str | None = None
    folder: Path | None = None
    patient_id_prefix: str = ""
    deidentify: Literal["off", "dicognito"] = "off"
    patient_id: Literal["keep", "subject"] = "keep"

    @classmethod
    def nowhere(cls) -> SourcePolicy:
        """The policy of what no source speaks of."""
        return cls(folder=Path("/"))

    @model_validator(mode="after")
    def _names_a_source(self) -> SourcePolicy:
        if self.patient_id == "subject" and self.deidentify == "off":
            raise ValueError('patient_id = "subject" goes with deidentify = "dicognito"')
        if not (self.calling_ae or self.called_ae or self.address or self.folder):
            raise ValueError("a source needs calling_ae, called_ae, address or folder")
        return self

    def matches(self, *, calling_ae: str, called_ae: str, address: str, folder: str) -> bool:
        """Tell whether this policy speaks of a batch from there."""
        wanted = (
            (self.calling_ae, calling_ae),
            (self.called_ae, called_ae),
            (self.address, address),
            (os.fspath(self.folder) if self.folder else None, folder),
        )
        return all(want is None or want == have for want, have in wanted)
