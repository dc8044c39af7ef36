"""The servers that we stand on: queue server and index."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from config.sentinels import is_sentinel_url, read_sentinel_url
from config.tables.table import Table


class RedisSettings(Table):
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


class IndexSettings(Table):
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
