"""Many small instances quickly: one header per series, stamped with what differs."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from workers.phantom import headers
from workers.phantom.encoding import complete
from workers.phantom.numbers import uid
from workers.phantom.pictures import Picture
from workers.phantom.planes import Plane, ticks
from workers.phantom.spec import PhantomSpec

_SIDE = 16
_FANOUT = 16
"""Folders beside each other; more of them lie one level deeper."""
_SERIES_PER_STUDY = 12
_MOST = 99_999
"""Instances of one series: their numbers have five digits."""
_MARK_UID = uid("mark")
_MARK_NUMBER = "86421"
_MARK_Z = "-99999"


def write_many(
    folder: Path, count: int, *, folders: int = 1, patient_number: int = 1
) -> dict[str, Path]:
    """Write `count` valid axial CT instances of 16x16 pixels, about 1.5 KB each, quickly.

    They lie in `folders` nested folders (`folder/00/03/00017.dcm`), each a series of its own,
    twelve series a study. Returns the file of each SOPInstanceUID; patient numbers share none.
    """
    if not 1 <= folders <= max(count, 1) or count > folders * _MOST:
        raise ValueError(f"{count} instances do not fit {folders} folders (1 to {_MOST} in each)")
    written: dict[str, Path] = {}
    for series in range(folders):
        target = Path(folder) / f"{series // _FANOUT:02d}" / f"{series % _FANOUT:02d}"
        target.mkdir(parents=True, exist_ok=True)
        template = _Template(patient_number, series)
        share = range(count * series // folders, count * (series + 1) // folders)
        for number in range(1, len(share) + 1):
            sop_instance_uid, content = template.stamp(number)
            path = target / f"{number:05d}.dcm"
            path.write_bytes(content)
            written[sop_instance_uid] = path
    return written


class _Template:
    """An encoded instance of one series, cut at the places that differ from one to the next."""

    def __init__(self, patient_number: int, series: int) -> None:
        spec = PhantomSpec(patient_number, 1 + series // _SERIES_PER_STUDY, size="tiny")
        self._key = ("many", patient_number, series)
        start = spec.identity.study_start
        plan = headers.SeriesPlan(
            f"many {series}",
            f"BATCH {series + 1}",
            series % _SERIES_PER_STUDY + 1,
            "CT",
            1,
            uid(*self._key),
            start,
            ("ORIGINAL", "PRIMARY", "AXIAL"),
        )
        across = ticks(0.0, 20.0, _SIDE)
        plane = Plane(across, across, (0.0,), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (20.0, 20.0), 1.0)
        ds = headers.common(spec, plan, 0, start)
        headers.image(ds, Picture(plane, np.zeros((_SIDE, _SIDE), np.int16), "1", "-1024"))
        headers.ct(ds, padded=False)
        ds.StudyInstanceUID = uid("many", patient_number, "study", series // _SERIES_PER_STUDY)
        ds.FrameOfReferenceUID = uid(ds.StudyInstanceUID, "frame of reference")
        ds.SOPInstanceUID = _MARK_UID
        ds.InstanceNumber = _MARK_NUMBER
        ds.ImagePositionPatient[2] = _MARK_Z
        grey = np.full((_SIDE, _SIDE), 1064, np.int16)
        buffer = io.BytesIO()
        dcmwrite(buffer, complete(ds, grey, ExplicitVRLittleEndian), enforce_file_format=True)
        self._content = buffer.getvalue()

    def stamp(self, number: int) -> tuple[str, bytes]:
        """Return SOPInstanceUID and file of one instance; its number is in its first two pixels."""
        sop_instance_uid = uid(*self._key, number)
        content = (
            self._content.replace(_MARK_UID.encode(), sop_instance_uid.encode())
            .replace(_MARK_NUMBER.encode() + b" ", f"{number:05d} ".encode())
            .replace(_MARK_Z.encode(), f"{-number:6d}".encode())
        )
        pixels = 2 * _SIDE * _SIDE
        return sop_instance_uid, content[:-pixels] + struct.pack("<I", number) + content[
            4 - pixels :
        ]
