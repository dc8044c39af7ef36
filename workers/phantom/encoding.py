"""Stored pixels into a complete instance: file meta information, transfer syntax, Part 10 file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, ExplicitVRLittleEndian

from workers.phantom.numbers import uid

IMPLEMENTATION_CLASS_UID = uid("implementation")
IMPLEMENTATION_VERSION_NAME = "PETCT_PHANTOM"


def complete(ds: Dataset, pixels: NDArray[np.int16], transfer_syntax_uid: str) -> Dataset:
    """Add pixel data and file meta information to a header, encoded as asked; returns `ds`."""
    syntax = UID(transfer_syntax_uid)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.file_meta = meta
    ds.PixelData = pixels.astype("<i2", copy=False).tobytes()
    ds["PixelData"].VR = "OW"
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
        if len(ds.PixelData) == pixels.nbytes:
            # Readers take compressed data of exactly this length for uncompressed; an empty offset
            # table (PS3.5 A.4) is four bytes shorter.
            ds.PixelData = encapsulate([get_frame(ds.PixelData, 0)], has_bot=False)
    return ds


def write(ds: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a valid Part 10 file."""
    dcmwrite(Path(path), ds, enforce_file_format=True)
