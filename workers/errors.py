"""The errors of workers.

WorkersError
├── DataError            the data is at fault: the entry goes to quarantine with this reason
│   ├── NotDicom
│   ├── Truncated
│   ├── BadIdentity      no usable SOPInstanceUID, StudyInstanceUID or SeriesInstanceUID
│   ├── Hostile          made to harm
│   │   └── Exceeded     beyond a limit (workers/limits.py), with that limit's code
│   ├── ArchiveDamaged   an archive, or a member of it, cannot be unpacked
│   ├── PixelError       pixel data absent, cut, or of an unknown compression
│   └── Identifiable     may name somebody in spite of de-identification
├── PairingRefused       the pair cannot be made; the message is the reason in plain words
├── PairDamaged          a finished pair cannot be read: a file is missing, cut or of another pair
├── StoreUnavailable     a store is missing, another one, or full: nothing is touched
│   ├── CannotDeidentify the seed, or room to write: entries of other sources go on
│   └── QueueUnusable    the queue server cannot be reached as configured (queue_server.py)
├── QueueSilent          the queue server did not tell how much it holds, in words
├── ExportFailed         what was asked for cannot be written, or does not exist
├── MirrorUnusable       the object store cannot be reached or used as configured
│   └── MirrorStopped    told to stop; what was begun is continued the next time
├── HostUnknown          no host of that name shares the index
└── IndexUnusable        missing, locked, on a network file system
    ├── IndexAway        it cannot be opened: what it lies on may be at fault
    │   └── IndexUnreached   its server does not answer: who waits may be let in
    ├── CopyRefused      a copy would go into what holds rows, or out of what is at work
    ├── CopyDiffers      a copy does not give back what was written
    ├── SpoolNameTaken   spool.name is another host's
    └── IndexOutdated    its schema is of another version
"""

from workers.limits import Limit


class WorkersError(Exception):
    """Root of every error that workers raises on purpose."""


class DataError(WorkersError):
    """The data of one entry is at fault; trying again gives the same result."""

    code = "bad-data"


class NotDicom(DataError):
    code = "not-dicom"


class Truncated(DataError):
    code = "truncated"


class BadIdentity(DataError):
    code = "bad-identity"


class Hostile(DataError):
    code = "hostile"


class Exceeded(Hostile):
    """Something is larger, longer, deeper or more than any real file has."""

    def __init__(self, limit: Limit, found: int | None = None, subject: str = "") -> None:
        """Say what was found; without `found` it was counted no further than the limit."""
        subject = subject or limit.what
        if found is None:
            words = f"{subject} more than {limit.maximum} {limit.unit}"
        else:
            words = f"{subject} {found} {limit.unit}; at most {limit.maximum} are taken"
        super().__init__(words)
        self.limit = limit
        self.code = limit.code


class ArchiveDamaged(DataError):
    code = "damaged-archive"


class PixelError(DataError):
    code = "pixels"


class Identifiable(DataError):
    """De-identification is asked for, and this instance may name somebody in spite of it."""

    code = "identifiable"


class PairingRefused(WorkersError):
    """A pair cannot be made from these series; the message says why in plain words."""


class PairDamaged(WorkersError):
    """A finished pair cannot be read as one; pairing the study again makes it anew."""


class StoreUnavailable(WorkersError):
    """A store is missing, replaced, read-only or full; nothing was touched."""


class CannotDeidentify(StoreUnavailable):
    """An entry cannot be de-identified now; one of a source that does not ask for it can go on."""


class QueueSilent(WorkersError):
    """The queue server did not tell how much it holds; the message says why."""


class IndexUnusable(WorkersError):
    """The index cannot be used as it is: missing, on a network file system, locked."""


class IndexAway(IndexUnusable):
    """The index is there, or should be, and cannot be opened."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(
            f"the index cannot be opened: {reason}; is its disk full, read-only or not mounted,"
            " or its server away?"
        )


class IndexUnreached(IndexAway):
    """The server of the index does not answer; it refused nobody."""


class SpoolNameTaken(IndexUnusable):
    """A host cannot have the name that its settings give its spool."""


class CopyRefused(IndexUnusable):
    """A copy would go into an index that holds rows, or out of one that is at work."""


class CopyDiffers(IndexUnusable):
    """A copy does not give back what was written; it was not kept."""


class IndexOutdated(IndexUnusable):
    """The index has the schema of another version of this program."""

    def __init__(self, found: str | None, needed: str) -> None:
        super().__init__(
            f"the index has schema {found}, this version needs {needed}: "
            "restart `petct-ingest run` (or the sweeper), which migrates it after a backup"
        )


class HostUnknown(WorkersError):
    """No host of that name shares the index."""


class ExportFailed(WorkersError):
    """An export was asked for what does not exist, or cannot be written where it should go."""


class MirrorUnusable(WorkersError):
    """The object store cannot be used; the message says why, and names no key and no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the mirror's store cannot be used: {reason}")


class MirrorStopped(MirrorUnusable):
    """The mirror was told to stop in the middle of a page."""

    def __init__(self) -> None:
        super().__init__("told to stop")
