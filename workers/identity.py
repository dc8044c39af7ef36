"""The identity of a store: a file that tells our disk from an empty mount point.

Archive and spool each carry `.petct/id`. The index knows both; a store whose file is missing or
another is not written to (design.md 2). Only a fresh index gives an identity. What the index knows
stands in `<root>/stores.json` too, for the intakes, which do not open it.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from config.layout import Layout
from workers.durable import (
    fsync_folder,
    make_folders,
    rename_new,
    replace_file,
    write_new,
)
from workers.errors import StoreUnavailable


def read_identity(store: Path) -> str | None:
    """Return the identity of a store, or None where it has none."""
    try:
        found = (store / ".petct" / "id").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"{store} cannot be read: {error.strerror}") from error
    return found.decode("ascii", "replace").strip() or None


def give_identity(store: Path, folder_mode: int = 0o700) -> str:
    """Return the identity of a store; give it one if it has none.

    `folder_mode` are the permissions of the store itself, where it is made here.
    """
    identity = read_identity(store)
    if identity is None:
        identity = secrets.token_hex(16)
        make_folders(store, folder_mode)
        make_folders(store / ".petct", folder_mode & ~0o022)  # ours alone to write, whoever files
        identity = _write_identity(store / ".petct" / "id", identity)
    return identity


def _write_identity(path: Path, identity: str) -> str:
    """Write an identity, unless somebody else did so just now; return the one that counts."""
    temporary = path.with_name(f".id.{identity}.tmp")
    write_new(temporary, (identity.encode() + b"\n",), 0o644)
    try:
        rename_new(temporary, path)
    except FileExistsError:
        found = read_identity(path.parent.parent)
        if found is not None:
            temporary.unlink()
            return found
        os.replace(temporary, path)  # it was empty
    fsync_folder(path.parent)
    return identity


def give_archive_identity(layout: Layout) -> str:
    """Return the identity of the archive; give it one if it has none.

    An archive that is there and may not be written to gets it in `pairing.output_root`, with the
    journal if it has one: from then on it counts as read-only (Layout.output).
    """
    if not layout.is_read_only and layout.archive.is_dir() and not _may_write(layout.archive):
        identity = read_identity(layout.archive)
        if identity is not None:
            _take_over_private(layout, identity)
        else:
            give_identity(layout.output_root, layout.folder_mode)
    return give_identity(layout.output, layout.folder_mode)


def check_archive(layout: Layout, expected: str) -> None:
    """Raise StoreUnavailable unless the archive is the one that is meant.

    One that was adopted read-only carries no mark of ours: it is there when it holds anything.
    """
    check_identity(layout.output, expected, "archive")
    if not layout.is_read_only:
        return
    try:
        with os.scandir(layout.archive) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        raise StoreUnavailable(f"{layout.archive} cannot be read: {error.strerror}") from error
    if empty:
        raise StoreUnavailable(
            f"the archive at {layout.archive} is empty: is its disk mounted? Nothing was touched."
        )


def check_takes_instances(layout: Layout) -> None:
    """Raise StoreUnavailable where nothing can be filed into the archive."""
    if layout.is_read_only:
        raise StoreUnavailable(
            f"the archive at {layout.archive} was adopted read-only: nothing new is filed into it. "
            "Give new instances a root and an archive of their own."
        )
    check_writable(layout.archive, "archive")


def check_identity(store: Path, expected: str, what: str) -> None:
    """Raise StoreUnavailable unless the store is the one that is meant."""
    found = read_identity(store)
    if found != expected:
        state = "has no identity file" if found is None else "is another one"
        raise StoreUnavailable(
            f"the {what} at {store} {state} (.petct/id): is its disk mounted? Nothing was touched."
        )


def check_writable(store: Path, what: str) -> None:
    """Raise StoreUnavailable where a store is mounted read-only, or cannot be looked at."""
    try:
        read_only = os.statvfs(store).f_flag & os.ST_RDONLY
    except OSError as error:
        raise StoreUnavailable(f"{store} cannot be read: {error.strerror}") from error
    if read_only:
        raise StoreUnavailable(f"the {what} at {store} is mounted read-only. Nothing was touched.")


def _may_write(store: Path) -> bool:
    return os.access(store, os.W_OK | os.X_OK)


def _take_over_private(layout: Layout, identity: str) -> None:
    """Give `output_root` the journal and then the identity of an archive of ours."""
    private = layout.output_root / ".petct"
    make_folders(layout.output_root, layout.folder_mode)
    make_folders(private, layout.folder_mode & ~0o022)
    journal = layout.archive / ".petct" / "facts.jsonl"
    if journal.is_file():
        replace_file(private / journal.name, journal.read_bytes(), layout.file_mode)
    replace_file(private / "id", identity.encode() + b"\n", 0o644)


def write_stores(layout: Layout, archive: str, spool: str) -> None:
    """Write down, durably, which stores the index knows; nothing where it stands there already."""
    known = {"archive": archive, "spool": spool}
    if _read_stores(layout) != known:
        replace_file(layout.stores, json.dumps(known).encode() + b"\n", 0o644)


def _read_stores(layout: Layout) -> dict[str, str]:
    """Read which stores the index knows; empty before it was prepared, or where nobody can tell."""
    try:
        found = json.loads(layout.stores.read_bytes())
        return {what: str(found[what]) for what in ("archive", "spool")}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


class PinnedStores:
    """Spool and archive as an intake knows them.

    An archive that was adopted read-only takes nothing.

    An intake does not open the index: it takes its word from `stores.json`, and where that is not
    written, the first identity that it finds is the one that is meant. A store without any, or with
    another than that, is an empty mount point or another disk.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._identities: dict[str, str] = {}

    def check(self) -> None:
        """Raise StoreUnavailable unless both stores are there and the ones that are meant."""
        if self._layout.is_read_only:
            check_takes_instances(self._layout)
        self._identities |= _read_stores(self._layout)
        stores = {"spool": self._layout.spool, "archive": self._layout.archive}
        for what, store in stores.items():
            if what not in self._identities:
                found = read_identity(store)
                if found is not None:
                    self._identities[what] = found
            check_identity(store, self._identities.get(what, ""), what)
