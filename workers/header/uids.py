"""UIDs: cleaned, checked before they name anything."""

import re

_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)*")


def clean(value: bytes) -> str:
    """Decode a UID's bytes and strip its padding (NUL by the standard, spaces by habit)."""
    return without_nul(value.decode("ascii", "backslashreplace").strip("\0 \t\r\n"))


def without_nul(text: str) -> str:
    """Replace what no database takes in a text, so that two values stay two."""
    return text.replace("\0", "\ufffd")


def is_valid(uid: str) -> bool:
    """Tell whether this is digits and dots of at most 64 characters (PS3.5 9.1).

    Components with leading zeros are let through: real scanners write them, and they harm nobody.
    """
    return len(uid) <= 64 and _PATTERN.fullmatch(uid) is not None


def shown(value: str) -> str:
    """Quote a hostile value so that it can stand in a message."""
    text = value[:80].encode("unicode_escape").decode("ascii")
    return f"'{text}'" + ("…" if len(value) > 80 else "")
