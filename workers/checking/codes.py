"""What `check` can find: a stable code each, how bad it is, and what can be done about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is; a note alone leaves the installation clean."""

    NOTE = "note"
    DRIFT = "drift"
    DAMAGE = "damage"


class Code(StrEnum):
    """The name of a finding, for programs and for docs/check.md."""

    ROW_WITHOUT_FILE = "row-without-file"
    FILE_WITHOUT_ROW = "file-without-row"
    MISPLACED = "misplaced"
    STRAY_COPY = "stray-copy"
    STRANGER = "stranger"
    LITTER = "litter"
    SIZE_DIFFERS = "size-differs"
    BYTES_DIFFER = "bytes-differ"
    NOT_REGULAR = "not-regular"
    UNREADABLE = "unreadable"
    COUNT_DIFFERS = "count-differs"
    COLUMNS_DIFFER = "columns-differ"
    ARRIVAL_WITHOUT_INSTANCE = "arrival-without-instance"
    EMPTY_ROWS = "empty-rows"
    QUARANTINE_WITHOUT_ARRIVAL = "quarantine-without-arrival"
    QUARANTINE_WITHOUT_REASON = "quarantine-without-reason"
    QUARANTINE_WITHOUT_FILE = "quarantine-without-file"
    INCOMING_LEFT_OVER = "incoming-left-over"
    ENTRY_KNOWN = "entry-known"
    ENTRY_WAITING = "entry-waiting"
    BATCH_WITHOUT_DESCRIPTION = "batch-without-description"
    PAIR_MISSING = "pair-missing"
    PAIR_DIFFERS = "pair-differs"
    PAIR_DAMAGED = "pair-damaged"
    PAIR_WITHOUT_ROW = "pair-without-row"
    EXCHANGE_UNFINISHED = "exchange-unfinished"
    TEMPORARY_LEFT_OVER = "temporary-left-over"
    JOURNAL_LINE_MISSING = "journal-line-missing"
    JOURNAL_TORN = "journal-torn"
    QUEUE_FOREIGN = "queue-foreign"
    QUEUE_STALE = "queue-stale"
    QUEUE_DEAD = "queue-dead"
    QUEUES_UNREACHABLE = "queues-unreachable"
    STORE_READ_ONLY = "store-read-only"
    MODE_WIDE = "mode-wide"
    INDEX_DAMAGED = "index-damaged"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code means in words, and what --repair does about it."""

    severity: Severity
    words: str
    repair: str


_LEFT = "left as it is"
_NOTE, _DRIFT, _DAMAGE = Severity.NOTE, Severity.DRIFT, Severity.DAMAGE

MEANINGS: dict[Code, Meaning] = {
    Code.ROW_WITHOUT_FILE: Meaning(
        _DAMAGE,
        "the index knows an instance whose file is not in the tree",
        "given back where quarantine or spool hold the same bytes; else left: send it again",
    ),
    Code.FILE_WITHOUT_ROW: Meaning(
        _DRIFT,
        "an instance lies where it belongs, but the index does not know it",
        "handed to filing through the spool",
    ),
    Code.MISPLACED: Meaning(
        _DRIFT,
        "a filed instance lies in another folder than the index says",
        "moved back, once its bytes are verified",
    ),
    Code.STRAY_COPY: Meaning(
        _NOTE,
        "another file of an instance that is filed",
        f"{_LEFT}: remove it if you do not need it",
    ),
    Code.STRANGER: Meaning(
        _NOTE,
        "a file that was never filed",
        f"{_LEFT}: to be filed, an instance is dropped into the inbox, or adopted by "
        "`petct-ingest reindex`",
    ),
    Code.LITTER: Meaning(_NOTE, "a file that some system left there", _LEFT),
    Code.SIZE_DIFFERS: Meaning(
        _DAMAGE,
        "a file is not as long as when it was filed",
        f"{_LEFT}: send the instance again; it is kept in quarantine as a conflict. Move the "
        "damaged file away, then `petct-ingest quarantine retry` puts the good one in its place",
    ),
    Code.BYTES_DIFFER: Meaning(
        _DAMAGE,
        "a file has other bytes than when it was filed",
        f"{_LEFT}: as size-differs",
    ),
    Code.NOT_REGULAR: Meaning(
        _DAMAGE,
        "a symbolic link, or something else that is no file, where files of ours lie",
        f"{_LEFT}; it is not followed",
    ),
    Code.UNREADABLE: Meaning(
        _DAMAGE, "a file or folder that the system cannot read", f"{_LEFT}: look at the disk"
    ),
    Code.COUNT_DIFFERS: Meaning(
        _DRIFT, "a series counts other than the instances it has", "counted again"
    ),
    Code.COLUMNS_DIFFER: Meaning(
        _DRIFT,
        "columns of an instance contradict its own facts or its folder",
        "columns taken from the header are written anew; a folder of another series is left",
    ),
    Code.ARRIVAL_WITHOUT_INSTANCE: Meaning(
        _DAMAGE,
        "an arrival says that an instance was filed, and the index has no such instance",
        f"{_LEFT}, unless its file is found without a row: send it again",
    ),
    Code.EMPTY_ROWS: Meaning(
        _NOTE, "a series or folder without instances, left over by a kill: harmless", _LEFT
    ),
    Code.QUARANTINE_WITHOUT_ARRIVAL: Meaning(
        _DRIFT,
        "a file in quarantine of which the index knows nothing",
        "its arrival is written from the reason beside it; without one it is left",
    ),
    Code.QUARANTINE_WITHOUT_REASON: Meaning(
        _DRIFT,
        "a file in quarantine without the reason beside it",
        "the reason is written from the index",
    ),
    Code.QUARANTINE_WITHOUT_FILE: Meaning(
        _DAMAGE, "the index knows a file in quarantine that is not there", _LEFT
    ),
    Code.INCOMING_LEFT_OVER: Meaning(
        _NOTE,
        "half-received by a process that was killed; never acknowledged",
        f"{_LEFT}: the sweeper removes it after an hour",
    ),
    Code.ENTRY_KNOWN: Meaning(
        _DRIFT,
        "an entry of the spool that is filed already",
        "removed, once the bytes in tree or quarantine are verified",
    ),
    Code.ENTRY_WAITING: Meaning(
        _NOTE, "an entry waits in the spool for more than ten minutes", f"{_LEFT}: is `run` on?"
    ),
    Code.BATCH_WITHOUT_DESCRIPTION: Meaning(
        _DRIFT,
        "entries wait in the spool, and nothing says where they came from",
        f"{_LEFT}: they are filed as from an unknown folder",
    ),
    Code.PAIR_MISSING: Meaning(_DRIFT, "a pair's folder is missing", "asked for again"),
    Code.PAIR_DIFFERS: Meaning(
        _DRIFT,
        "a pair's folder holds another revision or study than the index says",
        "asked for again",
    ),
    Code.PAIR_DAMAGED: Meaning(
        _DAMAGE, "the files of a pair are not what its pair.json says", "asked for again"
    ),
    Code.PAIR_WITHOUT_ROW: Meaning(_DRIFT, "a pair's folder that the index does not know", _LEFT),
    Code.EXCHANGE_UNFINISHED: Meaning(
        _DRIFT, "a kill interrupted the exchange of a pair's folder", "finished"
    ),
    Code.TEMPORARY_LEFT_OVER: Meaning(
        _NOTE,
        "half-made by a process that was killed",
        f"{_LEFT}: the sweeper removes it after an hour",
    ),
    Code.JOURNAL_LINE_MISSING: Meaning(
        _DRIFT,
        "the index knows a source or an override that the archive's journal does not tell",
        "written into the journal",
    ),
    Code.JOURNAL_TORN: Meaning(
        _NOTE, "a line of the journal is cut or damaged; it is skipped", _LEFT
    ),
    Code.QUEUE_FOREIGN: Meaning(
        _DRIFT, "jobs that this program did not make: no worker runs them", "dropped"
    ),
    Code.QUEUE_STALE: Meaning(
        _NOTE, "jobs for entries that are filed already: they end at once", _LEFT
    ),
    Code.QUEUE_DEAD: Meaning(
        _NOTE, "jobs whose worker died", f"{_LEFT}: the next worker puts them back within seconds"
    ),
    Code.QUEUES_UNREACHABLE: Meaning(
        _NOTE, "the queue server does not answer; it holds only hints", _LEFT
    ),
    Code.STORE_READ_ONLY: Meaning(
        _NOTE, "a store is mounted read-only: nothing can be filed", "refused"
    ),
    Code.MODE_WIDE: Meaning(
        _DRIFT, "a file or folder is open to more people than the settings say", "narrowed"
    ),
    Code.INDEX_DAMAGED: Meaning(
        _DAMAGE,
        "the database finds damage in itself",
        f"{_LEFT}: restore a backup, or make it anew (`petct-ingest reindex`)",
    ),
}
