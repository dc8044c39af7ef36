"""Write tables and files for others: whole or not at all, row after row, in bounded memory."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from workers import durable
from workers.errors import ExportFailed

_ROWS_A_GROUP = 10_000
_NUMBERS = frozenset({"instances"})
_FLOATS = frozenset({"MR_repetition_time", "MR_echo_time", "MR_magnetic_field_strength"})


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary name beside `target`; it takes its place, durable, when all went well.

    Raises ExportFailed where the folder cannot be written to.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        durable.fsync_file(temporary)
        os.replace(temporary, target)
        durable.fsync_folder(target.parent)
    except OSError as error:
        raise ExportFailed(f"{target} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # renamed, or never made
            temporary.unlink()


def write_csv(target: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a CSV file (RFC 4180, UTF-8); an absent value is blank. Return how many rows."""
    with replacing(target) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        return write_csv_to(file, columns, rows)


def write_csv_to(file: IO[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as CSV into an open text file. Return how many."""
    writer = csv.DictWriter(file, columns, lineterminator="\r\n")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({name: _text(row[name]) for name in columns})
        count += 1
    return count


def write_parquet(target: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a Parquet file, a row group at a time. Return how many rows.

    Raises ExportFailed where pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ExportFailed(
            "Parquet needs pyarrow: pip install 'petct-ingest[parquet]', or export csv"
        ) from None
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in columns])
    count = 0
    with replacing(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for group in _groups(columns, rows):
            writer.write_table(pa.table(group, schema))
            count += len(group[columns[0]])
    return count


def _groups(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, list[Any]]]:
    """Turn rows into columns, so many rows at a time."""
    rest = iter(rows)
    while True:
        group: dict[str, list[Any]] = {name: [] for name in columns}
        for row in islice(rest, _ROWS_A_GROUP):
            for name, values in group.items():
                values.append(_clean(row[name]))
        if not group[columns[0]]:
            return
        yield group


def _arrow_type(pa: Any, name: str) -> Any:
    if name in _NUMBERS:
        return pa.int64()
    return pa.float64() if name in _FLOATS else pa.string()


def _clean(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """Return a value that every UTF-8 reader takes: what no character set explains becomes "?"."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return "" if value is None else value
