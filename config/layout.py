"""Where things lie under one root."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one installation; every path is absolute."""

    root: Path
    archive: Path
    inbox: Path
    spool: Path
    quarantine: Path
    run: Path

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
    def archive_private(self) -> Path:
        """Identity, journal and temporary files of the archive."""
        return self.archive / ".petct"

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

    def make_private(self) -> None:
        """Make the folders that only this user may look into (0700), and the inbox."""
        self.root.mkdir(mode=0o750, parents=True, exist_ok=True)  # tree and index name patients
        for folder in (self.spool, self.quarantine, self.run):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for folder in (self.incoming, self.ready, self.notes, self.spool_private, self.locks):
            folder.mkdir(exist_ok=True)
        self.commitment.mkdir(mode=0o700, exist_ok=True)
        self.inbox.mkdir(parents=True, exist_ok=True)
