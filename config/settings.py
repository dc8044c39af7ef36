"""Every setting of petct-ingest, typed, with its default.

Settings come, strongest first, from the command line, from `PETCT_INGEST_…` environment variables
(tables joined by two underscores: `PETCT_INGEST_RECEIVER__PORT=104`), from one TOML file, and from
the defaults here, which config/default.toml repeats with a comment for each key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from config.errors import BadValue, ConfigUnreadable, UnknownKey
from config.layout import Layout

ENV_PREFIX = "PETCT_INGEST_"


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

    minimum_free_mb: int = Field(default=1024, ge=0)
    minimum_free_inodes: int = Field(default=10000, ge=0)
    resume_factor: float = Field(default=1.25, ge=1)


class RedisSettings(_Table):
    """The queue server."""

    url: str | None = Field(default=None, repr=False)  # it may hold a password
    password_file: Path | None = None
    ca_file: Path | None = None
    memory_mb: int = Field(default=256, ge=16)

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.startswith(("redis://", "rediss://", "unix://")):
                raise ValueError("it begins with redis://, rediss:// or unix://")
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
        if self.url is None and (self.password_file or self.ca_file):
            raise ValueError("password_file and ca_file belong to a server of your own: give url")
        if self.password_file and self.url and urlsplit(self.url).password:
            raise ValueError("the password is given in url or in password_file, not in both")
        if self.ca_file and self.url and not self.url.startswith("rediss://"):
            raise ValueError("ca_file asks for a url that begins with rediss://")
        return self


class IndexSettings(_Table):
    """The metadata index."""

    url: str | None = Field(default=None, repr=False)  # it may hold a password


class FilingSettings(_Table):
    """What the filing workers do."""

    workers: int = Field(default=1, ge=1)
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
    workers: int = Field(default=1, ge=1)
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


class Settings(BaseSettings):
    """All settings; frozen, made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    root: Path
    paths: PathSettings = PathSettings()
    receiver: ReceiverSettings = ReceiverSettings()
    commitment: CommitmentSettings = CommitmentSettings()
    watch: tuple[WatchSettings, ...] | None = None
    spool: SpoolSettings = SpoolSettings()
    redis: RedisSettings = RedisSettings()
    index: IndexSettings = IndexSettings()
    filing: FilingSettings = FilingSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    pairing: PairingSettings = PairingSettings()
    files: FilesSettings = FilesSettings()
    deidentify: DeidentifySettings = DeidentifySettings()
    labels: LabelsSettings = LabelsSettings()
    logging: LoggingSettings = LoggingSettings()
    sources: tuple[SourcePolicy, ...] = ()

    @property
    def layout(self) -> Layout:
        """The places of this installation, every path absolute."""
        root = self.root.absolute()
        return Layout(  # a relative path counts from the root: a service has no folder of its own
            root=root,
            archive=root / (self.paths.archive or "archive"),
            inbox=root / (self.paths.inbox or "inbox"),
            spool=root / (self.paths.spool or "spool"),
            quarantine=root / (self.paths.quarantine or "quarantine"),
            run=root / (self.paths.run or "run"),
            output_root=root / (self.pairing.output_root or "pairs"),
            file_mode=int(self.files.mode, 8),
            folder_mode=int(self.files.folder_mode, 8),
        )

    @property
    def watched(self) -> tuple[WatchSettings, ...]:
        """The watched folders: those given, else the inbox, moved."""
        if self.watch is None:
            return (WatchSettings(path=self.layout.inbox),)
        root = self.root.absolute()
        return tuple(one.model_copy(update={"path": root / one.path}) for one in self.watch)

    @property
    def seed_file(self) -> Path:
        """The secret seed of de-identification."""
        return self.root.absolute() / (self.deidentify.seed_file or "deidentify.seed")

    @property
    def index_url(self) -> str:
        """The SQLAlchemy URL of the index."""
        return self.index.url or f"sqlite:///{self.layout.index}"

    def policy(self, *, calling_ae: str, called_ae: str, address: str, folder: str) -> SourcePolicy:
        """The first source that matches, else the default policy."""
        root = self.root.absolute()
        for policy in self.sources:
            if policy.folder is not None:
                policy = policy.model_copy(update={"folder": root / policy.folder})
            if policy.matches(
                calling_ae=calling_ae, called_ae=called_ae, address=address, folder=folder
            ):
                return policy
        return SourcePolicy(calling_ae=calling_ae or None, folder=Path(folder or "/"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keep `load_settings` the only way in: it merges the sources itself."""
        return (init_settings,)


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting and table."""
    for name, info in model.model_fields.items():
        yield prefix + name
        inner = _table_of(info.annotation)
        if inner is not None:
            yield from known_keys(inner, f"{prefix}{name}.")


def load_settings(
    config: Path | None = None,
    *,
    root: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings of one installation.

    Parameters
    ----------
    config : Path, optional
        A TOML file.
    root : Path, optional
        The root folder; wins over file and environment.
    overrides : mapping, optional
        Nested values of the command line, e.g. ``{"receiver": {"port": 104}}``.
    environ : mapping, optional
        The environment; `os.environ` when absent.

    Raises
    ------
    ConfigError
        Unknown key (with the nearest), bad value, unreadable file, no root.
    """
    environ = os.environ if environ is None else environ
    values = _read_toml(config) if config else {}
    _refuse_unknown(values, str(config) if config else "the configuration")
    if config and isinstance(values.get("root"), str):
        values["root"] = config.parent / values["root"]  # relative to the file, not to the caller
    _merge(values, _read_environment(environ))
    _merge(values, dict(overrides or {}))
    if root is not None:
        values["root"] = root
    for name in ("watch", "sources"):
        if isinstance(values.get(name), Mapping):
            raise BadValue(name, "a table", f"there may be several: write [[{name}]]")
    if "root" not in values:
        raise ConfigUnreadable(
            f"no root folder: give --root DIR, --config FILE with root, or {ENV_PREFIX}ROOT"
        )
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UnknownKey(key, known_keys(), str(config or "the settings")) from None
        raise BadValue(key, _shown(key, first.get("input")), first["msg"]) from None


def _shown(key: str, value: object) -> object:
    """Return what may be said of a bad value: addresses may hold a password."""
    if isinstance(value, Mapping):
        return sorted(value)
    return "…" if key.endswith("url") and "@" in str(value) else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigUnreadable(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigUnreadable(f"{path} is no TOML: it is not in UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigUnreadable(f"{path} is no TOML: {error}") from error


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    known = set(known_keys())

    def walk(table: Mapping[str, Any], prefix: str) -> None:
        for name, value in table.items():
            key = prefix + name
            if key not in known:
                raise UnknownKey(key, known, where)
            items = value if isinstance(value, list) else [value]
            for item in items:
                if isinstance(item, Mapping):
                    walk(item, key + ".")

    walk(values, "")


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read `PETCT_INGEST_…`; the library parses values, we refuse names that are none of ours."""
    known = {key.replace(".", "__").upper(): key for key in known_keys()}
    for name in environ:
        if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].upper() not in known:
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            raise UnknownKey(key, known.values(), f"the environment ({name})")
    mine = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    source = _GivenEnvironment(Settings, mine)
    try:
        return source()
    except Exception as error:  # the library wraps JSON errors of complex values in its own type
        raise BadValue("environment", sorted(mine), str(error)) from error


class _GivenEnvironment(EnvSettingsSource):
    """The environment as it was handed in, not as the process has it."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._given = {name.lower(): value for name, value in environ.items()}
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _table_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    for inner in get_args(annotation):
        found = _table_of(inner)
        if found is not None:
            return found
    return None


__all__ = ["Settings", "known_keys", "load_settings"]
