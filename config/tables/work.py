"""What is done with an instance: places, filing, de-identification, completeness, pairing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
)

from config.tables.table import Table


class PathSettings(Table):
    """Where things lie; a relative path, and every one not given, lies below the root."""

    archive: Path | None = None
    inbox: Path | None = None
    spool: Path | None = None
    quarantine: Path | None = None
    run: Path | None = None


class FilingSettings(Table):
    """What the filing workers do."""

    workers: int = Field(default=1, ge=0)
    duplicates: Literal["keep-first", "quarantine", "replace"] = "keep-first"
    batch_entries: int = Field(default=100, ge=1)
    batch_seconds: float = Field(default=0.2, ge=0)
    poison_deaths: int = Field(default=3, ge=1)


class CompletenessSettings(Table):
    """When a series and a study count as complete."""

    quiet_seconds: float = Field(default=60, ge=0)
    hard_cap_minutes: float = Field(default=90, gt=0)


class PairingSettings(Table):
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


class FilesSettings(Table):
    """Who may read what is filed; spool and quarantine are always our user's alone."""

    mode: Annotated[str, AfterValidator(_mode(0o600))] = "0640"
    folder_mode: Annotated[str, AfterValidator(_mode(0o700))] = "0750"


class DeidentifySettings(Table):
    """What de-identification needs, for the sources that ask for it."""

    seed_file: Path | None = None


class LabelsSettings(Table):
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
