"""Who is told, and where copies go: logs, page, notifications, mirror."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from config.tables.table import Table


class LoggingSettings(Table):
    """Structured logs, on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["json", "text"] = "text"


class WebSettings(Table):
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


class WebhookSettings(Table):
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


class EmailSettings(Table):
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


class NotifySettings(Table):
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


class MirrorSettings(Table):
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
