"""Find the files that come with the program: beside the installed packages, or in the checkout."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from workers.errors import ExportFailed

_SHARE = "petct_ingest_share"


def bundled(name: str) -> Path:
    """Return the folder `notebooks` or `systemd`. Raises ExportFailed where there is none."""
    checkout = Path(__file__).resolve().parents[2]
    places = [checkout / _SHARE / name, Path(sysconfig.get_path("purelib")) / _SHARE / name]
    if (checkout / "pyproject.toml").is_file():
        places.insert(0, checkout / name)  # an editable installation keeps copies that grow old
    for place in places:
        if place.is_dir():
            return place
    raise ExportFailed(f"the folder {name}/ did not come with this installation")
