"""Where exactly a setting was given: the line of a TOML file, the name of a variable."""

from __future__ import annotations

import re

from config.settings import ENV_PREFIX

_TABLE = re.compile(r"^\s*\[\[?\s*([\w.]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([\w.]+)\s*=")


def lines_of(text: str) -> dict[str, int]:
    """Map each key of a TOML text to the line that gives it; of several `[[…]]`, to the first.

    Keys are found as they are mostly written; one in quotes or inside an inline table is left out.
    """
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = header[1] + "."
            found.setdefault(header[1], number)
        elif key := _KEY.match(line):
            found.setdefault(table + key[1], number)
    return found


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + key.upper().replace(".", "__")
