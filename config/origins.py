"""Say of every setting what it is, where that came from, and what it means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from config.settings import Settings, given_by_environment, given_by_file, known_keys

_COMMENTED = re.compile(r"^(?:# )?(\w+) = [^#]*#\s(.+)$")
_TABLE = re.compile(r"^(?:# )?\[\[?([\w.]+)\]\]?")
_SECRET = re.compile(r"(?:^|_)(?:password|secret|token|key)$")
_HIDDEN = "…"


class Origin(StrEnum):
    """Where a value came from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting; secrets are hidden in `value`."""

    key: str
    value: str
    origin: Origin
    meaning: str
    """Its comment in default.toml; empty where it has none of its own."""

    @property
    def table(self) -> str:
        """The table that it stands in, empty for the first level."""
        return self.key.rpartition(".")[0]


def explain(
    settings: Settings, config: Path | None, environ: Mapping[str, str] | None = None
) -> tuple[Explained, ...]:
    """Explain every setting, in the order of default.toml's tables.

    `config` is the file that they were read from.
    """
    environ = os.environ if environ is None else environ
    from_file = set(_leaves(given_by_file(config))) if config else set()
    from_environment = set(_leaves(given_by_environment(environ)))
    default = Settings(root=settings.root)
    meanings = dict(_meanings())
    found = []
    for key in known_keys():
        value = _value_of(settings, key)
        if isinstance(value, BaseModel) or value is _MISSING:
            continue  # a table: its keys follow; or a key of each of several tables
        if key in from_environment:
            origin = Origin.ENVIRONMENT
        elif key in from_file:
            origin = Origin.FILE
        elif key == "root" or value != _value_of(default, key):
            origin = Origin.COMMAND_LINE
        else:
            origin = Origin.DEFAULT
        found.append(Explained(key, shown(key, value), origin, meanings.get(key, "")))
    return tuple(found)


def shown(key: str, value: Any) -> str:
    """Show a value in one line as TOML would, without what only its owner may know."""
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{name} = {shown(name, one)}" for name, one in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(key, one) for one in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if _SECRET.search(key) and not isinstance(value, Path):
        return _HIDDEN
    if "://" in text:
        text = _without_secrets(key, text)
    return f'"{text}"'


def _without_secrets(key: str, address: str) -> str:
    """Hide what stands before the host of an address, its query, and a webhook's path."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return _HIDDEN
    host = f"{_HIDDEN}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    query = _HIDDEN if parts.query else ""
    path = f"/{_HIDDEN}" if "webhook" in key and parts.path.strip("/") else parts.path
    return parts._replace(netloc=host, path=path, query=query).geturl()


class _Missing:
    pass


_MISSING = _Missing()


def _value_of(settings: BaseModel, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        if not isinstance(value, BaseModel):
            return _MISSING
        value = getattr(value, name)
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")


def _meanings() -> Iterator[tuple[str, str]]:
    """Yield each key of default.toml with the comment behind it."""
    table = ""
    lines = (Path(__file__).parent / "default.toml").read_text("utf-8").splitlines()
    for line in lines:
        if found := _TABLE.match(line):
            table = found[1] + "."
        elif found := _COMMENTED.match(line):
            yield table + found[1], found[2]
