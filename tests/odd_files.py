"""Write the files that nobody should send: each is named by what is odd about it."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from workers.phantom.study import write_many

PREAMBLE = bytes(128) + b"DICM"
TEXT = b"Dear colleague,\nno DICOM in here, however hard you try.\n" * 20
DEPTH = 5000
TWINS = (("same-1.dcm", "same-2.dcm"), ("uid-1.dcm", "uid-2.dcm"))
"""Of the first two the bytes are equal, of the others only the SOPInstanceUID."""


def write_odd_files(folder: Path, aside: Path) -> dict[str, str]:
    """Write every odd file; return what must become of each when it is dropped.

    The valid instances that they are made from are written into `aside`.
    """
    writer = _Writer(folder, aside)
    _no_dicom(writer)
    _bad_uids(writer)
    _hostile_names(writer)
    _met_before(writer)
    _litter(writer)
    return writer.expected


class _Writer:
    """Valid instances, each a new one, to be spoiled."""

    def __init__(self, folder: Path, aside: Path) -> None:
        self.folder = folder
        self.expected: dict[str, str] = {}
        self._valid = iter(write_many(aside, 60, patient_number=900).values())
        folder.mkdir(parents=True)

    def valid(self) -> bytes:
        return next(self._valid).read_bytes()

    def put(self, name: str, content: bytes, expected: str) -> None:
        (self.folder / name).write_bytes(content)
        self.expected[name] = expected

    def spoil(self, name: str, expected: str, change: Callable[[Dataset], object]) -> Dataset:
        """Write a new instance, with other elements."""
        path = self.folder / name
        path.write_bytes(self.valid())
        header = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            change(header)
            header.save_as(path)
        self.expected[name] = expected
        return header


def _no_dicom(to: _Writer) -> None:
    whole = to.valid()
    meta_end = whole.index(b"\x08\x00", 132)
    nested = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    to.put("text.dcm", TEXT, "quarantined")
    to.put("text-with-a-group.dcm", b"\x08\x00\x05\x00" + TEXT, "quarantined")
    to.put("empty.dcm", b"", "quarantined")
    to.put("one-byte.dcm", b"\x00", "quarantined")
    to.put("zeros.dcm", bytes(4096), "quarantined")
    to.put("only-preamble.dcm", PREAMBLE, "quarantined")
    to.put("garbage-after-preamble.dcm", PREAMBLE + TEXT, "quarantined")
    to.put("no-preamble.dcm", to.valid()[132:], "quarantined")
    to.put("no-meta-header.dcm", whole[meta_end:], "quarantined")
    to.put("preamble-but-no-meta.dcm", PREAMBLE + whole[meta_end:], "quarantined")
    to.put("only-meta-header.dcm", whole[:meta_end], "quarantined")
    to.put("cut-in-the-header.dcm", to.valid()[: meta_end + 200], "quarantined")
    to.put("cut-in-the-pixels.dcm", to.valid()[:-100], "quarantined")
    to.put("cut-by-one-byte.dcm", to.valid()[:-1], "quarantined")
    long = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 0xFFFFFFF0)
    to.put("says-four-gigabytes.dcm", whole[:meta_end] + long + b"x" * 64, "quarantined")
    to.put("nested-deeply.dcm", to.valid()[:-524] + (nested + item) * DEPTH, "quarantined")
    to.put("image.png", b"\x89PNG\r\n\x1a\n" + bytes(500), "quarantined")
    to.put("archive.zip", b"PK\x03\x04" + bytes(500), "quarantined")


def _bad_uids(to: _Writer) -> None:
    def no_uid(header: Dataset) -> None:
        del header.SOPInstanceUID

    def no_series(header: Dataset) -> None:
        del header.SeriesInstanceUID

    to.spoil("no-sop-instance-uid.dcm", "quarantined", no_uid)
    to.spoil("no-series-uid.dcm", "quarantined", no_series)
    for name, uid in {
        "uid-with-slash": "1.2.3/4.5",
        "uid-with-dots": "1.2.3/../../../../etc",
        "uid-of-dots": "..",
        "uid-with-letters": "1.2.840.abc",
        "uid-with-wildcard": "1.2.3.*",
        "uid-too-long": "1." + "2" * 80,
        "uid-with-newline": "1.2.3\n4",
    }.items():
        to.spoil(f"{name}.dcm", "quarantined", lambda h, uid=uid: setattr(h, "SOPInstanceUID", uid))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        to.spoil(
            f"{keyword}-with-dots.dcm", "quarantined", lambda h, k=keyword: setattr(h, k, "../../1")
        )


def _hostile_names(to: _Writer) -> None:
    """Whatever stands in PatientID and AccessionNumber, the file is filed, below the archive."""
    values = {
        "traversal": "../../etc",
        "absolute": "/etc/passwd",
        "dot": ".",
        "dots": "..",
        "hidden": ".petct",
        "backslash": "..\\..\\windows",
        "device": "CON",
        "device-with-ending": "NUL.txt",
        "300-characters": "P" * 300,
        "300-umlauts": "ä" * 300,
        "studies": "studies",
        "tab-and-newline": "A\tB\nC",
        "percent": "%2e%2e%2f",
        "empty": "",
        "spaces": "   ",
    }
    for name, value in values.items():

        def change(header: Dataset, name: str = name, value: str = value) -> None:
            header.SpecificCharacterSet = "ISO_IR 192"
            header.PatientID = header.AccessionNumber = value
            header.PatientName = value
            header.StudyInstanceUID = f"{header.StudyInstanceUID[:40]}.{len(to.expected)}"
            header.SeriesInstanceUID = f"{header.SeriesInstanceUID[:40]}.{len(to.expected)}"

        to.spoil(f"patient-{name}.dcm", "filed", change)
    to.put("n" * 250 + ".dcm", to.valid(), "filed")
    to.put("-rf.dcm", to.valid(), "filed")
    to.put("two\nlines.dcm", to.valid(), "filed")
    to.put(os.fsdecode("latin-1-äöü.dcm".encode("latin-1")), to.valid(), "filed")
    to.put("no-ending", to.valid(), "filed")


def _met_before(to: _Writer) -> None:
    """What is the same, and what only looks the same."""
    first = to.spoil("accession-1.dcm", "filed", lambda h: setattr(h, "AccessionNumber", "SHARED"))

    def another_study(header: Dataset) -> None:
        header.PatientID = first.PatientID
        header.AccessionNumber = "SHARED"
        header.StudyInstanceUID = f"{first.StudyInstanceUID[:50]}.7"
        header.SeriesInstanceUID = f"{first.SeriesInstanceUID[:50]}.7"

    to.spoil("accession-2.dcm", "filed", another_study)
    whole = to.valid()
    to.put("same-1.dcm", whole, "filed")
    to.put("same-2.dcm", whole, "duplicate")
    whole = to.valid()
    to.put("uid-1.dcm", whole, "filed")
    to.put("uid-2.dcm", whole[:-2] + b"\x01\x02", "conflict")


def _litter(to: _Writer) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "DICOMDIR", "._photo.dcm"):
        to.put(name, b"\x00\x05\x16\x07" + bytes(60), "skipped")
