"""The password of the web page: a file of our user's alone that holds its scrypt hash.

    $scrypt$ln=15,r=8,p=3$<salt>$<hash>      salt and hash in base64 without padding

N = 2^15, r = 8, p = 3 is one of the minimum settings of OWASP's Password Storage Cheat Sheet; it
takes 32 MiB, so that a few checks never starve a small machine.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemon.errors import AccessUnusable
from workers import durable

SHORTEST = 12
"""Characters of a password at least: tries are few and slow, but nobody else is asked."""

LONGEST = 1024

_LOG2_N, _R, _P = 15, 8, 3
_SALT_BYTES = _HASH_BYTES = 32
_MOST_MEMORY = 1 << 30
_FILE_BYTES = 4096
_FORM = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,3}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{22,86})\$([A-Za-z0-9+/]{43,86})"
)


@dataclass(frozen=True, slots=True)
class HashedPassword:
    """What is kept of a password."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> Self:
        """Hash a new password with a salt of its own."""
        salt = secrets.token_bytes(_SALT_BYTES)
        return cls(_LOG2_N, _R, _P, salt, _scrypt(password, salt, _LOG2_N, _R, _P, _HASH_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form above. Raises ValueError, also for what would take over 1 GiB to check."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError("it holds no scrypt hash: `petct-ingest web password` writes one")
        log2_n, r, p = int(match[1]), int(match[2]), int(match[3])
        if not (min(log2_n, r, p) >= 1 and p <= 16 and 128 * r << log2_n <= _MOST_MEMORY):
            raise ValueError("the parameters of its scrypt hash are out of bounds")
        return cls(log2_n, r, p, _decoded(match[4]), _decoded(match[5]))

    def __str__(self) -> str:
        words = f"$scrypt$ln={self.log2_n},r={self.r},p={self.p}"
        return f"{words}${_encoded(self.salt)}${_encoded(self.digest)}"

    def fits(self, password: str) -> bool:
        """Tell whether this is the password; takes a good part of a second, whatever it is."""
        given = _scrypt(password[:LONGEST], self.salt, self.log2_n, self.r, self.p,
                        len(self.digest))  # fmt: skip
        return hmac.compare_digest(given, self.digest)

    @property
    def fingerprint(self) -> str:
        """What changes with the password; sessions end when it does."""
        return hashlib.sha256(str(self).encode()).hexdigest()


def why_unfit(password: str) -> str | None:
    """Say why a password cannot be chosen, or None."""
    if not SHORTEST <= len(password) <= LONGEST:
        return f"a password has {SHORTEST} to {LONGEST} characters; a few words make a good one"
    if len(set(password)) < 5:
        return "a password of fewer than five different characters is guessed at once"
    return None


def read_password(path: Path) -> HashedPassword:
    """Read the password's file. Raises AccessUnusable, which names the setting and no path."""
    try:
        return HashedPassword.parse(read_secret(path, "web.password_file"))
    except ValueError as error:
        raise AccessUnusable("web.password_file", str(error)) from None


def write_password(path: Path, password: str) -> None:
    """Keep the hash of a password, durable; whoever is logged in must log in anew."""
    durable.replace_file(path, f"{HashedPassword.of(password)}\n".encode("ascii"), 0o600)


def read_secret(path: Path, setting: str) -> str:
    """Read a small file that holds a secret. Raises AccessUnusable where it cannot be."""
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_BYTES).decode("utf-8").strip()
    except OSError as error:
        why = error.strerror or type(error).__name__
        if isinstance(error, FileNotFoundError) and setting == "web.password_file":
            why = "it is not there: `petct-ingest web password` writes it"
        raise AccessUnusable(setting, why) from None
    except UnicodeDecodeError:
        raise AccessUnusable(setting, "it is no text") from None


def _scrypt(password: str, salt: bytes, log2_n: int, r: int, p: int, size: int) -> bytes:
    # NFKC: the same characters typed on another keyboard are the same password (NIST SP 800-63B)
    words = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    memory = (128 * r << log2_n) + 128 * r * p + (1 << 20)
    return hashlib.scrypt(words, salt=salt, n=1 << log2_n, r=r, p=p, maxmem=memory, dklen=size)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
