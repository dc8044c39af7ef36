"""Studies and series in a few words, for tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST_UID = 64  # PS3.5 9.1


def day(date: str | None) -> str:
    """Show a DA (20260131) as a date; what is none as it is."""
    text = str(date or "")
    is_date = len(text) == 8 and text.isdecimal()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date else text


def words_of(series: Mapping[str, Any]) -> str:
    """Name a series of `list_studies`: `ct 84`, `pet_ac 7 of 8 inconsistent`."""
    words = f"{series['role'] or series['modality']} {series['instances']:,}"
    if series["expected"] and series["expected"] != series["instances"]:
        words += f" of {series['expected']:,}"
    return words if series["state"] == "complete" else f"{words} {series['state']}"
