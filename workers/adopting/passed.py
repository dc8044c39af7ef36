"""What a walk opened and passed over for its bytes alone: remembered, so that it is opened once.

`.petct/passed-over.jsonl` holds a line for each such file: path, size, mtime and what was found. It
is a hint: without it, and after another version of the program wrote it, the files are opened
again. What stands elsewhere too (a copy) is not here, for the index decides about that anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version

from config.layout import Layout
from workers.adopting.walking import Finding, FindingCode, FoundFile, Leaf
from workers.durable import replace_file

NAME = "passed-over.jsonl"
_FOR_ITS_BYTES = (FindingCode.NOT_ADOPTED, FindingCode.SKIPPED)

_Line = tuple[str, int, int, str, str]
"""Path relative to the archive, size, mtime_ns, code, words."""


class PassedOver:
    """The files of an archive that are no instances, as earlier walks and this one found them."""

    def __init__(self, layout: Layout) -> None:
        self._place = layout.archive_private / NAME
        self._mode = layout.file_mode
        self._version = version("petct-ingest")
        self._before = {line[0]: line for line in self._lines()}
        self._now: list[_Line] = []

    def finding_of(self, leaf: Leaf, file: FoundFile) -> Finding | None:
        """Return what was found in a file that is as it was; None where it must be opened."""
        path = f"{leaf.path}/{file.name}"
        line = self._before.get(path)
        if line is None or line[1:3] != (file.size, file.mtime_ns):
            return None
        self._now.append(line)
        return Finding(FindingCode(line[3]), path, line[4])

    def note(self, finding: Finding, file: FoundFile) -> None:
        """Remember what was found in a file, as it was before it was opened."""
        if finding.code in _FOR_ITS_BYTES:
            self._now.append(
                (finding.path, file.size, file.mtime_ns, str(finding.code), finding.words)
            )

    def keep(self) -> None:
        """Write down what this walk passed over, when it has ended; nothing where that is known.

        Where it cannot be written, the next walk opens these files again.
        """
        if {line[0]: line for line in self._now} == self._before:
            return
        lines = [[self._version], *self._now]
        data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        with suppress(OSError):
            replace_file(self._place, data, self._mode)

    def _lines(self) -> Iterator[_Line]:
        try:
            first, *rest = self._place.read_text("ascii").splitlines()
            if json.loads(first) != [self._version]:
                return
            for line in rest:
                path, size, mtime_ns, code, words = json.loads(line)
                yield (str(path), int(size), int(mtime_ns), FindingCode(code), str(words))
        except (OSError, ValueError, TypeError, RecursionError):
            return  # none yet, or damaged: opened again
