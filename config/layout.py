"""Where things lie under one root."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from config.errors import FolderUnusable


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one installation; every path is absolute."""

    root: Path
    archive: Path
    inbox: Path
    spool: Path
    quarantine: Path
    run: Path
    output_root: Path
    """Where `.petct/` and pairs lie when the archive could not be written to."""
    file_mode: int = 0o640
    """Permissions of what is filed, of pairs, index and journal; all else is our user's alone."""
    folder_mode: int = 0o750

    @property
    def index(self) -> Path:
        return self.root / "index.sqlite"

    @property
    def stores(self) -> Path:
        """Which archive and spool the index knows, for those who do not open it."""
        return self.root / "stores.json"

    @property
    def incoming(self) -> Path:
        """What is being written; nothing here was acknowledged."""
        return self.spool / "incoming"

    @property
    def ready(self) -> Path:
        """Durable batches, waiting to be filed."""
        return self.spool / "ready"

    @property
    def notes(self) -> Path:
        """What the intakes tell the audit, until the sweeper has written it into the index."""
        return self.spool / "notes"

    @property
    def output(self) -> Path:
        """The tree of what we make: `.petct/` and the pairs. The archive, unless it was adopted
        read-only: then the identity that it was given stands in `output_root`.
        """
        return self.output_root if self.is_read_only else self.archive

    @property
    def is_read_only(self) -> bool:
        """Whether nothing is ever written into the archive: it was adopted without permission."""
        return (self.output_root / ".petct" / "id").exists()

    @property
    def archive_private(self) -> Path:
        """Identity, journal and temporary files of the archive."""
        return self.output / ".petct"

    @property
    def spool_private(self) -> Path:
        """Identity of the spool and the ledgers of the watcher."""
        return self.spool / ".petct"

    @property
    def commitment(self) -> Path:
        """Storage commitment: what was asked, what was decided."""
        return self.spool / "commitment"

    @property
    def locks(self) -> Path:
        return self.run / "locks"

    @property
    def metrics(self) -> Path:
        """What each process counts, for `/metrics`."""
        return self.run / "metrics"

    def make_private(self) -> None:
        """Make the root, the inbox, and the folders that only this user may look into (0700).

        Raises FolderUnusable, also where one is a link that another user made: a link of ours or
        of root is how a disk elsewhere is used.
        """
        _make(self.root, self.folder_mode)  # tree and index name patients
        for folder in (self.spool, self.quarantine, self.run):
            _make(folder, 0o700)
            folder.chmod(0o700)
        for folder in (
            self.incoming,
            self.ready,
            self.notes,
            self.commitment,
            self.spool_private,
            self.locks,
        ):
            _make(folder, 0o700)
        _make(self.inbox, self.folder_mode)


def _make(folder: Path, mode: int) -> None:
    """Make a folder with exactly these permissions; one that is there keeps its own."""
    try:
        if folder.is_symlink() and folder.lstat().st_uid not in (0, os.geteuid()):
            raise FolderUnusable(folder, "it is a symbolic link that another user made")
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode | folder.stat().st_mode & stat.S_ISGID)
    except OSError as error:
        raise FolderUnusable(folder, error.strerror or type(error).__name__) from error
