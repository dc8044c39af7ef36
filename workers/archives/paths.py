"""Give members paths: relative, of safe parts, below no other member, each only once."""

from __future__ import annotations

import hashlib
import os

_PART_BYTES = 255
_PATH_BYTES = 1024
_PARTS = 32


def safe_path(name: str) -> tuple[str, str]:
    """Make a relative path of a member's name; say what was wrong with the name, or "".

    A name that is too long in whole or in a part becomes its hash. Nothing that the name says leads
    out of where the path is used.
    """
    parts = [part for part in name.replace("\0", "_").split("/") if part not in ("", ".")]
    kept = [part for part in parts if part != ".."]
    wrong = ""
    if len(kept) < len(parts):
        wrong = "a name that leads upwards (..)"
    elif name.startswith("/"):
        wrong = "an absolute name"
    elif "\0" in name:
        wrong = "a name with a NUL"
    path = "/".join(kept)
    if _too_long(kept):
        return _hash(name), "a name that is too long"
    if not kept:
        return _hash(name), wrong or "no name"
    return path, wrong


class Paths:
    """Hand out the paths of one archive; two members never get one, nor one below the other.

    Of each path eight bytes are remembered, so that a million members take some 100 MB.
    """

    def __init__(self) -> None:
        self._files: set[int] = set()
        self._folders: set[int] = set()

    def give(self, name: str) -> tuple[str, str]:
        """Return a free path for a name, and what was wrong with the name, or ""."""
        path, wrong = safe_path(name)
        if self._is_taken(path):
            wrong = wrong or "another member has the same name"
            number = 1
            while self._is_taken(path):
                path, number = f"{_hash(name)}-{number}", number + 1
        self._files.add(_key(path))
        self._folders.update(_key(folder) for folder in _folders(path))
        return path, wrong

    def _is_taken(self, path: str) -> bool:
        key = _key(path)
        return (
            key in self._files
            or key in self._folders
            or any(_key(folder) in self._files for folder in _folders(path))
        )


def _too_long(parts: list[str]) -> bool:
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:  # a lone surrogate, which no file system takes
        return True
    too_long = any(length > _PART_BYTES for length in lengths)
    return too_long or len(parts) > _PARTS or sum(lengths) + len(parts) > _PATH_BYTES


def _folders(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _hash(name: str) -> str:
    data = name.encode("utf-8", "surrogatepass")
    return f"member-{hashlib.blake2b(data, digest_size=8).hexdigest()}"


def _key(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")
