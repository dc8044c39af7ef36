"""How data comes in: receiver, commitment, watched folders, spool, sources."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from config.tables.table import Table


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


class TlsSettings(Table):
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


class ReceiverSettings(Table):
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


class PeerSettings(Table):
    """Where an application entity listens."""

    ae_title: AETitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class CommitmentSettings(Table):
    """Storage commitment: our word that an instance may be deleted by its sender."""

    enabled: bool = True
    retry_hours: float = Field(default=24, ge=0)
    peers: tuple[PeerSettings, ...] = ()


class WatchSettings(Table):
    """One watched folder."""

    path: Path
    mode: Literal["move", "copy"] = "move"
    settle_seconds: float = Field(default=2.0, ge=0)
    events: Literal["native", "poll"] = "native"
    scan_seconds: float = Field(default=60.0, gt=0)


class SpoolSettings(Table):
    """The durable spool between intake and filing."""

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    minimum_free_mb: int = Field(default=1024, ge=0)
    minimum_free_inodes: int = Field(default=10000, ge=0)
    resume_factor: float = Field(default=1.25, ge=1)


class SourcePolicy(Table):
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
