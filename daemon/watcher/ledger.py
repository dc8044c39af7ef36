"""What was taken from a folder whose files stay where they are (`mode = "copy"`).

One line of JSON a step, appended and fsynced; a file is known by path, inode, size and mtime, so a
changed file is taken again:

    {"batch": B, "took": [[path, inode, size, mtime_ns], …]}   before the batch is copied
    {"batch": B, "done": true, "dropped": [path, …]}           after; dropped: what was not copied

A batch without its second line was cut off by a kill: it is taken up again under its own name, so
that nothing is lost and nothing counts twice. The file is written anew when most of its lines speak
of files that are gone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from config.layout import Layout
from daemon.watcher.scanning import Found
from daemon.watcher.settling import FileState
from workers import durable

FORGET_SECONDS = 86_400.0
"""How long a file must be gone before it is forgotten: a share may be away for a while."""


def ledger_path(layout: Layout, folder: str) -> Path:
    """Return where the ledger of a watched folder lies."""
    return layout.spool_private / f"copied-{folder_key(folder)}.jsonl"


def folder_key(folder: str) -> str:
    """Return what stands for a watched folder in file names."""
    return hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()


class Ledger:
    """The ledger of one watched folder: read when made, written only by the watcher."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken: dict[str, FileState] = {}
        self._open: dict[str, dict[str, FileState]] = {}
        self._gone_since: dict[str, float] = {}
        self._lines_for = 0  # how many files the lines speak of
        self._torn = False
        self._read()

    def knows(self, found: Found) -> bool:
        """Tell whether this very file was taken."""
        return self._taken.get(found.path) == found.state

    def unfinished(self) -> dict[str, dict[str, FileState]]:
        """Return the batches that were begun and not finished: path and state of their files."""
        return {batch: dict(files) for batch, files in self._open.items()}

    def begin(self, batch: str, files: Sequence[Found]) -> None:
        """Write down, durably, what is about to be copied."""
        self._append(_begun(batch, ((found.path, found.state) for found in files)))
        self._open[batch] = {found.path: found.state for found in files}
        self._lines_for += len(files)

    def finish(self, batch: str, dropped: Iterable[str] = ()) -> None:
        """Write down that a batch lies in the spool, but for what was dropped."""
        dropped = list(dropped)
        self._append({"batch": batch, "done": True, "dropped": dropped})
        self._close(batch, dropped)

    def saw(self, present: Container[str], now: float) -> None:
        """Note what a whole scan found; files gone for long are forgotten (`now` is monotonic)."""
        gone = [path for path in self._taken if path not in present]
        self._gone_since = {path: self._gone_since.get(path, now) for path in gone}
        for path, since in self._gone_since.items():
            if now - since >= FORGET_SECONDS:
                del self._taken[path]
        if self._torn or self._lines_for > 2 * len(self._taken) + 1000:
            self._compact()

    def __len__(self) -> int:
        return len(self._taken)

    def _read(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in raw.splitlines(keepends=True):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self._torn = True  # the append that was cut off: its batch never began
        self._torn = self._torn or not raw.endswith(b"\n")

    def _apply(self, line: dict[str, Any]) -> None:
        if "took" in line:
            files = {path: FileState(*state) for path, *state in line["took"]}
            self._open[line["batch"]] = files
            self._lines_for += len(files)
        elif "done" in line:
            self._close(line["batch"], line["dropped"])

    def _close(self, batch: str, dropped: Iterable[str]) -> None:
        files = self._open.pop(batch, {})
        for path in dropped:
            files.pop(path, None)
        self._taken.update(files)

    def _append(self, line: dict[str, Any]) -> None:
        if self._torn:
            self._compact()
        descriptor = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            size = os.fstat(descriptor).st_size
            raw = _encoded(line)
            try:
                if os.write(descriptor, raw) != len(raw):
                    raise OSError(28, "the ledger could not be written whole", str(self._path))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if size == 0:
            durable.fsync_folder(self._path.parent)

    def _compact(self) -> None:
        lines = [_encoded(_begun("", self._taken.items())), _encoded(_DONE)]
        lines += [_encoded(_begun(batch, files.items())) for batch, files in self._open.items()]
        durable.replace_file(self._path, b"".join(lines))
        self._torn = False
        self._lines_for = len(self._taken) + sum(len(files) for files in self._open.values())


_DONE: dict[str, Any] = {"batch": "", "done": True, "dropped": []}


def _begun(batch: str, files: Iterable[tuple[str, FileState]]) -> dict[str, Any]:
    took = [[path, state.inode, state.size, state.mtime_ns] for path, state in files]
    return {"batch": batch, "took": took}


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"  # ASCII: any file name survives
