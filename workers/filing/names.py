"""Names of the tree: hostile header values into single path components, UIDs into digits. Pure.

<archive>/<PatientID>/<AccessionNumber>/studies/<5>/<5>/<5>/<5>/<SOPInstanceUID>.dcm
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

_MAXIMUM_LENGTH = 64
_SUFFIX_DIGITS = 12
_ORDINARY = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
# names that Windows gives to devices, with any extension: the tree is shared over SMB
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """A component and the value that it stands for; `value` tells two equal names apart."""

    name: str
    value: str


def uid_digits(uid: str, attempt: int = 0) -> tuple[str, str]:
    """Return the two five-digit folders of a UID; another pair for each attempt after a clash."""
    text = uid if attempt == 0 else f"{uid}#{attempt}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    digits = f"{number % 10**10:010d}"
    return digits[:5], digits[5:]


def patient_name(patient_id: str, study_uid: str, prefix: str = "") -> Named:
    """Name the patient's folder; an empty PatientID is never shared between studies."""
    return _named(prefix + _plain(patient_id) if _plain(patient_id) else "", "UNKNOWN", study_uid)


def accession_name(accession_number: str, study_uid: str) -> Named:
    """Name the accession's folder; an empty AccessionNumber is never shared between studies."""
    return _named(_plain(accession_number), "NOACC", study_uid)


def with_suffix(named: Named) -> str:
    """Return another name for a value whose plain name is taken by a twin."""
    return _cut(named.name, _hash(f"twin of {named.value}"))  # not the hash that cut a long one


def encoded(value: str) -> str:
    """Percent-encode a value into one safe path component; injective.

    Everything outside [A-Za-z0-9._-] is encoded byte for byte (UTF-8), and so are a leading or
    trailing dot and the first letter of a Windows device name. Over 64 characters it is cut and a
    hash tells it apart.
    """
    raw = value.encode("utf-8", "surrogatepass")
    words = [chr(byte) if byte in _ORDINARY else f"%{byte:02X}" for byte in raw]
    if words and words[0] == ".":
        words[0] = "%2E"
    if words and words[-1] == ".":
        words[-1] = "%2E"
    if words and _DEVICE.fullmatch(value):
        words[0] = f"%{raw[0]:02X}"
    name = "".join(words)
    return name if len(name) <= _MAXIMUM_LENGTH else _cut(name, _hash(value))


def _named(value: str, fallback: str, study_uid: str) -> Named:
    if value:
        return Named(encoded(value), value)
    # no header value begins with a space: they are stripped
    return Named(f"{fallback}-{''.join(uid_digits(study_uid))}", f" {fallback} {study_uid}")


def _plain(value: str) -> str:
    return unicodedata.normalize("NFC", value).strip(" \0")


def _hash(value: str) -> str:
    data = value.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_SUFFIX_DIGITS // 2).hexdigest()


def _cut(name: str, suffix: str) -> str:
    head = name[: _MAXIMUM_LENGTH - len(suffix) - 1]
    head = re.sub(r"%[0-9A-F]?$", "", head)  # never half an escape
    return f"{head}-{suffix}"
