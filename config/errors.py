"""The errors of config.

ConfigError
├── UnknownKey        a key or environment variable that is none of ours, with the nearest that is
├── BadValue          a known key with a value that cannot be
├── ConfigUnreadable  the file is missing or is no TOML
└── FolderUnusable    a folder of the installation cannot be made
"""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """Root of every error that config raises on purpose."""


class UnknownKey(ConfigError):
    """A key that no setting has; names the nearest one."""

    def __init__(self, key: str, known: Iterable[str], where: str) -> None:
        names = sorted(known)
        last = key.rsplit(".", 1)[-1]
        near = [name for name in names if name.rsplit(".", 1)[-1] == last][:1]  # in another table
        near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
        super().__init__(f"unknown setting {key!r} in {where}: {hint}")
        self.key = key
        self.nearest = near[0] if near else None


class BadValue(ConfigError):
    """A known setting with a value that cannot be."""

    def __init__(self, key: str, value: object, reason: str) -> None:
        super().__init__(f"setting {key!r} cannot be {value!r}: {reason}")
        self.key = key


class ConfigUnreadable(ConfigError):
    """The configuration file is missing or is no TOML."""


class FolderUnusable(ConfigError):
    """A folder of the installation cannot be made or is none."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path} cannot be used as a folder: {reason}")
