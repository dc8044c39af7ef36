"""Settings from environment variables, as pydantic-settings reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import BaseModel
from pydantic_settings import BaseSettings, EnvSettingsSource


class GivenEnvironment(EnvSettingsSource):
    """The environment as it was handed in, not as the process has it."""

    def __init__(self, model: type[BaseModel], prefix: str, environ: Mapping[str, str]) -> None:
        self._given = {name.lower(): value for name, value in environ.items()}
        super().__init__(
            cast(type[BaseSettings], model),  # whose fields are all that is asked
            env_prefix=prefix,
            env_nested_delimiter="__",
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given
