"""Send files to the store: several at once, large ones in parts, within a bound on the bandwidth.

What is sent is compared with its digest first: bytes that went bad in the tree never reach the
store. An upload in parts that was cut off is continued: the store tells which parts it has.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from config.logs import get_logger, short
from config.tables.telling import MirrorSettings
from workers import clock
from workers.errors import MirrorStopped
from workers.mirroring.planning import Part, StoredPart, Wanted, fits, judge, parts_of
from workers.mirroring.store import ObjectStore, base64_of
from workers.rooted import LinkRefused, folder_below

log = get_logger(__name__)

_MIB = 1 << 20
Opener = Callable[[Wanted], BinaryIO]


@dataclass(slots=True)
class Sent:
    """What came of sending."""

    objects: int = 0
    bytes: int = 0
    left_out: list[Wanted] = field(default_factory=list)
    """Whose file is missing, or holds other bytes than the index says."""

    def add(self, other: Sent) -> None:
        self.objects += other.objects
        self.bytes += other.bytes
        self.left_out += other.left_out


def book(free_at: float, now: float, size: int, bytes_per_second: float) -> tuple[float, float]:
    """Return when so many bytes may be sent, and from when on the way is free again (seconds)."""
    if not bytes_per_second:
        return now, now
    begin = max(now, free_at)
    return begin, begin + size / bytes_per_second


class Sender:
    """Sends to one store, with threads of its own while it is entered."""

    def __init__(self, store: ObjectStore, settings: MirrorSettings, stop: threading.Event) -> None:
        self.store = store
        self._part_bytes = settings.part_mb * _MIB
        self._rate = settings.megabytes_per_second * 1e6
        self._stop = stop
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.pool = ThreadPoolExecutor(settings.connections, thread_name_prefix="mirror")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def send(self, wanted: Iterable[Wanted], opener: Opener) -> Sent:
        """Send these objects, opened by `opener`; returns when the store has them.

        Raises MirrorUnusable, and OSError other than of a missing file.
        """
        small: list[Wanted] = []
        large: list[Wanted] = []
        for one in wanted:
            (small if one.size <= self._part_bytes else large).append(one)
        sent = Sent()
        for one, well in zip(
            small, self.pool.map(lambda one: self._send_small(one, opener), small), strict=True
        ):
            _count(sent, one, well=well)
        for one in large:
            _count(sent, one, well=self._send_large(one, opener))
        return sent

    def _send_small(self, wanted: Wanted, opener: Opener) -> bool:
        try:
            with opener(wanted) as file:
                data = file.read(wanted.size + 1)
        except (FileNotFoundError, LinkRefused):
            return False
        if len(data) != wanted.size or hashlib.sha256(data).hexdigest() != wanted.sha256:
            return False
        self._wait_for_turn(len(data))
        self.store.put(wanted.key, data, wanted.sha256)
        return True

    def _send_large(self, wanted: Wanted, opener: Opener) -> bool:
        try:
            file = opener(wanted)
        except (FileNotFoundError, LinkRefused):
            return False
        with file:
            if _digest(file) != (wanted.size, wanted.sha256):
                return False
            self._send_parts(wanted, file)
            if judge(wanted, self.store.head(wanted.key)) is not None:
                self._send_parts(wanted, file)  # what was continued had been begun for other bytes
        return True

    def _send_parts(self, wanted: Wanted, file: BinaryIO) -> None:
        """Send a checked file in parts; what the store has of it already stays as it is."""
        upload, there = self._begun(wanted, file)
        if upload is None:
            upload = self.store.begin(wanted.key, wanted.sha256)
        name = upload

        def send(part: Part) -> tuple[int, StoredPart]:
            if part.number in there:
                return part.number, there[part.number]
            data = _read_at(file, part)
            self._wait_for_turn(part.size)
            sha256 = base64_of(hashlib.sha256(data).hexdigest())
            return part.number, self.store.put_part(wanted.key, name, part, data, sha256)

        parts = parts_of(wanted.size, self._part_bytes)
        self.store.complete(wanted.key, upload, dict(self.pool.map(send, parts)))

    def _begun(self, wanted: Wanted, file: BinaryIO) -> tuple[str | None, dict[int, StoredPart]]:
        """Return the upload to be continued and its parts; one that does not fit is given up."""
        upload = self.store.unfinished(wanted.key)
        if upload is None:
            return None, {}
        there = self.store.parts(wanted.key, upload)
        ours = {part.number: part for part in parts_of(wanted.size, self._part_bytes)}
        kept = {}
        for number, stored in there.items():
            data = _read_at(file, ours[number]) if number in ours else b""
            sha256 = base64_of(hashlib.sha256(data).hexdigest())
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if number in ours and fits(ours[number], stored, md5, sha256):
                kept[number] = StoredPart(stored.size, stored.etag, sha256)
        if kept and len(kept) == len(there):
            log.info("mirror-continues", file=short(wanted.key), parts=len(kept))
            return upload, kept
        self.store.abandon(wanted.key, upload)
        return None, {}

    def _wait_for_turn(self, size: int) -> None:
        """Wait until so many bytes fit into the bandwidth. Raises MirrorStopped."""
        with self._lock:
            now = clock.monotonic()
            begin, self._free_at = book(self._free_at, now, size, self._rate)
        if self._stop.wait(begin - now) if begin > now else self._stop.is_set():
            raise MirrorStopped


def in_tree(archive: Path) -> Opener:
    """Return what opens the files of the tree by their keys, and follows no link."""

    def opened(wanted: Wanted) -> BinaryIO:
        path = PurePosixPath(wanted.key)
        with folder_below(archive, path.parent) as folder:
            return open_in(folder, path.name)

    return opened


def open_in(folder: int, name: str) -> BinaryIO:
    """Open a file of an open folder to be read; a link is refused (LinkRefused)."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(name, flags, dir_fd=folder), "rb", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LinkRefused(name) from error
        raise


def _digest(file: BinaryIO) -> tuple[int, str]:
    """Return size and SHA-256 of an open file."""
    found, size = hashlib.sha256(), 0
    while data := os.pread(file.fileno(), _MIB, size):
        found.update(data)
        size += len(data)
    return size, found.hexdigest()


def _read_at(file: BinaryIO, part: Part) -> bytes:
    return os.pread(file.fileno(), part.size, part.offset)


def _count(sent: Sent, wanted: Wanted, *, well: bool) -> None:
    if well:
        sent.objects += 1
        sent.bytes += wanted.size
    else:
        sent.left_out.append(wanted)
        log.warning("mirror-left-out", file=short(wanted.key))
