"""Every setting of petct-ingest, typed, with its default.

Settings come, strongest first, from the command line, from `PETCT_INGEST_…` environment variables
(tables joined by two underscores: `PETCT_INGEST_RECEIVER__PORT=104`), from one TOML file, and from
the defaults here, which config/default.toml repeats with a comment for each key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from config.errors import BadValue, ConfigUnreadable, UnknownKey
from config.layout import Layout
from config.tables.intake import (
    CommitmentSettings,
    ReceiverSettings,
    SourcePolicy,
    SpoolSettings,
    WatchSettings,
)
from config.tables.servers import IndexSettings, RedisSettings
from config.tables.telling import LoggingSettings, MirrorSettings, NotifySettings, WebSettings
from config.tables.work import (
    CompletenessSettings,
    DeidentifySettings,
    FilesSettings,
    FilingSettings,
    LabelsSettings,
    PairingSettings,
    PathSettings,
)

ENV_PREFIX = "PETCT_INGEST_"


class Settings(BaseModel):
    """All settings; frozen, made by `load_settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

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
    web: WebSettings = WebSettings()
    notify: NotifySettings = NotifySettings()
    mirror: MirrorSettings = MirrorSettings()
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
    values = given_by_file(config) if config else {}
    _refuse_unknown(values, str(config) if config else "the configuration")
    if config and isinstance(values.get("root"), str):
        values["root"] = config.parent / values["root"]  # relative to the file, not to the caller
    _merge(values, given_by_environment(environ))
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


def given_by_file(path: Path) -> dict[str, Any]:
    """Read what a TOML file says. Raises ConfigUnreadable."""
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


def given_by_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read `PETCT_INGEST_…`; the library parses values, we refuse names that are none of ours."""
    known = {key.replace(".", "__").upper(): key for key in known_keys()}
    for name in environ:
        if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].upper() not in known:
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            raise UnknownKey(key, known.values(), f"the environment ({name})")
    mine = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    if not mine:
        return {}
    from config.environment import GivenEnvironment  # takes as long to load as all settings

    try:
        return GivenEnvironment(Settings, ENV_PREFIX, mine)()
    except Exception as error:  # the library wraps JSON errors of complex values in its own type
        raise BadValue("environment", sorted(mine), str(error)) from error


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


__all__ = ["Settings", "given_by_environment", "given_by_file", "known_keys", "load_settings"]
