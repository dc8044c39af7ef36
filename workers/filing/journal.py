"""The archive's journal: what DICOM cannot tell, so that a lost index can be rebuilt exactly.

`<output>/.petct/facts.jsonl` is append-only, one JSON object a line, fsynced: where a series came
from, overrides of a person, labels, client numbers. The output is the archive, unless that was
adopted read-only (Layout.output).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workers import durable

NAME = "facts.jsonl"


def append_facts(output: Path, facts: Sequence[dict[str, Any]], mode: int = 0o640) -> None:
    """Append facts, durable when this returns; a line is never torn by another process.

    `mode` are the permissions of a new journal.
    """
    if not facts:
        return
    lines = "".join(json.dumps(fact, separators=(",", ":")) + "\n" for fact in facts)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(output / ".petct" / NAME, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.fstat(descriptor).st_size
        if not end:
            durable.give_mode(descriptor, mode)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            lines = "\n" + lines  # a power cut tore the last line: keep ours apart from it
        durable.write_whole(descriptor, lines.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_facts(output: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line; a torn one is skipped."""
    try:
        with open(output / ".petct" / NAME, "rb") as file:
            for line in file:
                try:
                    fact = json.loads(line)
                except ValueError:
                    continue
                if isinstance(fact, dict):
                    yield fact
    except FileNotFoundError:
        return
