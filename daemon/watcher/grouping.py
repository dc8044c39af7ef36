"""Rename files into a batch of the spool in groups, which share the fsync of their folders."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from config.layout import Layout
from workers import durable
from workers.spool.batches import BatchSource, BatchWriter, EntryName

GROUP_ENTRIES = 50
"""Renamed entries that share the fsync of their folders."""


class GroupedBatch:
    """A batch that is begun when the first file really goes into it.

    Renamed entries are offered in groups, each after its folders were fsynced: one fsync a file
    less. Until then a power cut brings the old name back, with the file.
    """

    def __init__(
        self, layout: Layout, source: BatchSource, offer: Callable[[EntryName], None]
    ) -> None:
        self._layout = layout
        self._source = source
        self._offer = offer
        self._writer: BatchWriter | None = None
        self._adopted: list[EntryName] = []

    @property
    def writer(self) -> BatchWriter:
        if self._writer is None:
            self._writer = BatchWriter(self._layout, self._source)
        return self._writer

    def adopt(self, file: Path, path: str) -> EntryName:
        """Rename a file in; `adopted` is to follow, once it is sure that it stays."""
        return self.writer.adopt(file, path, sync=False)

    def adopted(self, entry: EntryName) -> None:
        self._adopted.append(entry)
        if len(self._adopted) >= GROUP_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Make the entries durable and offer them."""
        entries, self._adopted = self._adopted, []
        for folder in {entry.where(self._layout).parent for entry in entries}:
            with suppress(FileNotFoundError):  # filed and tidied up already
                durable.fsync_folder(folder)
        for entry in entries:
            self._offer(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        finally:
            if self._writer is not None:
                self._writer.close()
