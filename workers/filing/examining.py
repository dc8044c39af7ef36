"""Examine an entry: is it an instance, system litter, or nothing that can be filed?"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO

from workers.errors import BadIdentity, DataError, NotDicom
from workers.header import uids
from workers.header.facts import InstanceFacts
from workers.header.read import PREAMBLE_BYTES, Header, MediaDirectory, read_open_header
from workers.spool.batches import BatchSource

_PAIRED = "Auto-Paired"
_OF_PAIRS = (".npy", ".json", ".png", ".nii", ".nii.gz")
_LITTER = frozenset({"dicomdir", ".ds_store", "thumbs.db", "desktop.ini"})
_CHUNK_BYTES = 1 << 16
"""It stays in the processor's own memory between the two digests."""


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of the whole file and of its data set alone (behind the file meta)."""

    file: str
    dataset: str


@dataclass(frozen=True, slots=True)
class Instance:
    """An entry that can be filed."""

    facts: InstanceFacts
    digests: Digests
    size: int
    mtime_ns: int | None = None
    """Before it was read: who finds another one must read again."""


@dataclass(frozen=True, slots=True)
class Skip:
    """An entry that is passed over on purpose."""

    reason: str


def is_litter(name: str) -> bool:
    """Tell whether a system, not a person, put a file of this name there."""
    return name.lower() in _LITTER or name.startswith("._")


def is_of_pair(path: str) -> bool:
    """Tell whether a file was made by a pairing, here or elsewhere, by its folder and suffix."""
    *folders, name = path.split("/")
    paired = any(folder.startswith(_PAIRED) for folder in folders)
    return paired and name.lower().endswith(_OF_PAIRS)


def examine(file: BinaryIO, path: str, source: BatchSource) -> Instance | Skip:
    """Examine one open entry.

    A path of litter or of a pair is believed only where the bytes do not say DICOM: nobody's slice
    is lost for its name. Raises DataError where the entry belongs in quarantine; what another
    system made of a study does, for somebody may want it.
    """
    name = os.path.basename(path)
    mtime_ns = os.fstat(file.fileno()).st_mtime_ns
    if is_litter(name) or is_of_pair(path):
        file.seek(0)
        if file.read(PREAMBLE_BYTES)[128:] != b"DICM":
            if is_litter(name):
                return Skip("a file of the system, not an instance")
            raise NotDicom("a file of a pair that was made before, not an instance: kept here")
    try:
        header = read_open_header(file)
    except MediaDirectory as error:
        return Skip(str(error))
    except DataError:
        if name.lower() == "dicomdir":
            return Skip("a media directory that cannot be read, not an instance")
        raise
    _check_command_set(header, source)
    digests = _digests(file, header.dataset_offset)
    return Instance(header.facts, digests, header.size, mtime_ns)


def _check_command_set(header: Header, source: BatchSource) -> None:
    """Refuse an instance whose command set and data set disagree about what it is.

    On an association the file meta is the command set's. In a dropped file it is often left over
    from before de-identification; there the data set alone counts.
    """
    if source.kind != "association":
        return
    for keyword, said, found in (
        ("SOPInstanceUID", header.meta_sop_instance_uid, header.facts.sop_instance_uid),
        ("SOPClassUID", header.meta_sop_class_uid, header.facts.sop_class_uid),
    ):
        if said != found:
            raise BadIdentity(
                f"the sender announced {keyword} {uids.shown(said)}, "
                f"the data set says {uids.shown(found)}"
            )


def _digests(file: BinaryIO, offset: int) -> Digests:
    file.seek(0)
    head = file.read(offset)
    whole, dataset = hashlib.sha256(head), hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        whole.update(view[:count])
        dataset.update(view[:count])
    return Digests(whole.hexdigest(), dataset.hexdigest())
