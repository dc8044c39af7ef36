"""Find the files that come with the program: beside the installed packages, or in the checkout."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from workers.errors import ExportFailed

_SHARE = "petct_ingest_share"


def bundled(name: str) -> Path:
    """Return the folder `notebooks` or `systemd`. Raises ExportFailed where there is none."""
    checkout = Path(__file__).resolve().parents[2]
    for place in (checkout / _SHARE / name, Path(sysconfig.get_path("purelib")) / _SHARE / name):
        if place.is_dir():
            return place
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise ExportFailed(f"the folder {name}/ did not come with this installation")
