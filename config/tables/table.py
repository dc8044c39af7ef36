"""What every table of the configuration file is: its keys are known, its values stay."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """One table; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
