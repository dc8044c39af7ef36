"""De-identify an entry in the spool before anything else sees it.

The de-identified file takes the entry's name by rename; what it was is not kept. A note beside the
spool, durable before the rename, says which bytes are the de-identified ones, so that a run which
was killed is taken up and nothing is de-identified twice. The note also keeps a keyed digest (HMAC
with the seed) of the data set that was received: it tells a repeated instance again, and nobody
without the seed what it was.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread, dcmwrite
from pydicom.errors import BytesLengthException

from config.layout import Layout
from workers import durable
from workers.deidentify.notes import keep_note, read_note
from workers.deidentify.rules import Deidentifier, why_held
from workers.deidentify.secret import seed_of_archive
from workers.errors import DataError, Hostile, Identifiable
from workers.header.read import check_whole, read_open_header

_CHUNK_BYTES = 1 << 20
_DECODING_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError,
    NotImplementedError, RuntimeError, struct.error, BytesLengthException,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deidentified:
    """An entry that holds de-identified bytes now."""

    file: BinaryIO
    """Open and locked, at its beginning."""
    received: str
    """HMAC of the data set as it was received, hex."""


class EntryDeidentifier:
    """De-identify the entries of one installation; one object a worker process."""

    def __init__(self, layout: Layout, seed_file: Path) -> None:
        self._seed = seed_of_archive(layout, seed_file)
        self._rules = Deidentifier(self._seed)
        self._layout = layout
        self._temporaries = layout.incoming

    def deidentify(
        self, path: Path, file: BinaryIO, identifier: str, patient_id: str | None
    ) -> Deidentified:
        """Make sure that a locked entry is de-identified.

        Raises
        ------
        DataError
            It cannot be, and why: Identifiable where its pixels or text may name somebody.
        OSError
            The system's; running again goes on.
        """
        note = read_note(self._layout, identifier)
        if note is not None and note["sha256"] == _sha256(file):
            return Deidentified(file, str(note["received"]))
        header = read_open_header(file)
        reason = why_held(header.facts)
        if reason is not None:
            raise Identifiable(reason)
        received = self._hmac(file, header.dataset_offset)
        temporary = self._temporaries / f"deidentify-{identifier}"
        temporary.unlink(missing_ok=True)  # of a run that was killed
        opened = self._write(file, temporary, patient_id)
        try:
            keep_note(self._layout, identifier, _sha256(opened), received)
            os.rename(temporary, path)
            durable.fsync_folder(path.parent)
        except BaseException:
            opened.close()
            raise
        return Deidentified(opened, received)

    def _write(self, file: BinaryIO, temporary: Path, patient_id: str | None) -> BinaryIO:
        """Write the de-identified data set, durable; return it open and locked."""
        with blaming_the_data():
            check_whole(file)
            file.seek(0)
            dataset = dcmread(file)
            self._rules.apply(dataset, patient_id=patient_id)
            descriptor = os.open(
                temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640
            )
            opened = open(descriptor, "r+b")  # noqa: SIM115 - handed to the caller
            try:
                durable.try_lock(descriptor)
                dcmwrite(opened, dataset, enforce_file_format=True)
                opened.flush()
                os.fsync(descriptor)
            except BaseException:
                opened.close()
                temporary.unlink(missing_ok=True)
                raise
        opened.seek(0)
        return opened

    def _hmac(self, file: BinaryIO, offset: int) -> str:
        digest = hmac.new(self._seed.encode(), digestmod=hashlib.sha256)
        file.seek(offset)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def blaming_the_data() -> Iterator[None]:
    """Turn what a data set makes a decoder raise into DataError, which quotes no value."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            yield
    except RecursionError:
        raise Hostile("sequences nested deeper than can be de-identified") from None
    except OSError as error:
        if error.errno is not None:
            raise  # of the system; pydicom's own have no number
        raise DataError("it cannot be de-identified: a value cannot be written") from None
    except _DECODING_ERRORS as error:
        kind = type(error).__name__
        raise DataError(f"it cannot be de-identified: {kind} while reading it") from None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
