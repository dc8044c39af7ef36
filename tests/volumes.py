"""Small synthetic series for the tests of pairing: any orientation, any values known everywhere."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
)

from workers.header.facts import InstanceFacts
from workers.header.read import read_header
from workers.pairing.suv import SuvStatus, SuvVerdict
from workers.pairing.volume import SeriesInput

SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
FEET_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Field = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scan:
    """A series in space: where its planes lie and how its values are stored."""

    modality: str = "CT"
    size: tuple[int, int, int] = (12, 10, 8)
    """Columns, rows, slices."""
    spacing: tuple[float, float] = (2.0, 3.0)
    """Between rows, between columns."""
    step: float = 4.0
    origin: tuple[float, float, float] = (-20.0, -15.0, 100.0)
    orientation: tuple[float, ...] = SUPINE
    positions: tuple[float, ...] | None = None
    """Along the normal, where they are not even."""
    slope: float = 1.0
    intercept: float = 0.0
    signed: bool = True
    frame_of_reference: str = "1.2.3.9"
    changes: tuple[tuple[str, object], ...] = ()
    """Elements to set on every slice."""
    uid: str = "1.2.3.1"

    def with_(self, **changes: object) -> "Scan":
        return dataclasses.replace(self, **changes)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    def place(self, k: int) -> np.ndarray:
        along = self.positions[k] if self.positions else k * self.step
        return np.array(self.origin) + along * self.normal

    def points(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """LPS of every pixel of slice k, (rows, columns) each."""
        columns, rows, _ = self.size
        row = np.array(self.orientation[:3]) * self.spacing[1]
        column = np.array(self.orientation[3:]) * self.spacing[0]
        points = (
            self.place(k)
            + np.arange(columns)[None, :, None] * row
            + np.arange(rows)[:, None, None] * column
        )
        return points[..., 0], points[..., 1], points[..., 2]


def dataset(scan: Scan, k: int, field: Field) -> Dataset:
    """Slice k of a scan whose values are `field` of the place, as a data set."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pet = scan.modality == "PT"
    ds.SOPClassUID = PositronEmissionTomographyImageStorage if pet else CTImageStorage
    ds.SOPInstanceUID = f"{scan.uid}.{k + 1}"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = scan.uid
    ds.FrameOfReferenceUID = scan.frame_of_reference
    ds.Modality = scan.modality
    ds.PatientPosition = "HFS"
    ds.InstanceNumber = k + 1
    ds.ImagePositionPatient = [round(float(v), 6) for v in scan.place(k)]
    ds.ImageOrientationPatient = [round(float(v), 9) for v in scan.orientation]
    ds.PixelSpacing = list(scan.spacing)
    ds.Columns, ds.Rows = scan.size[:2]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(scan.signed)
    ds.RescaleSlope = scan.slope
    ds.RescaleIntercept = scan.intercept
    if pet:
        ds.Units = "BQML"
    stored = np.rint((field(*scan.points(k)) - scan.intercept) / scan.slope)
    ds.PixelData = stored.astype("<i2" if scan.signed else "<u2").tobytes()
    for keyword, value in scan.changes:
        setattr(ds, keyword, value)
    return ds


def write(scan: Scan, folder: Path, field: Field, *, skip: Sequence[int] = ()) -> SeriesInput:
    """Write a scan and return it as the series that pairing gets."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(scan.size[2]):
        if k not in skip:
            dataset(scan, k, field).save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)
    return series_of(folder)


def series_of(folder: Path) -> SeriesInput:
    """Read what lies in a folder as one series, in the order of the file names."""
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix == ".dcm"))
    facts = tuple(read_header(path).facts for path in files)
    return SeriesInput(facts[0].series_instance_uid, files, facts, ("",) * len(files))


def facts(scan: Scan) -> list[InstanceFacts]:
    """The facts of a scan without any file."""
    return [
        InstanceFacts(
            sop_class_uid=CTImageStorage,
            sop_instance_uid=f"{scan.uid}.{k + 1}",
            study_instance_uid="1.2.3",
            series_instance_uid=scan.uid,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            image_position_patient=tuple(float(v) for v in scan.place(k)),
            image_orientation_patient=scan.orientation,
            pixel_spacing=scan.spacing,
            rows=scan.size[1],
            columns=scan.size[0],
            rescale_slope=scan.slope,
            rescale_intercept=scan.intercept,
        )
        for k in range(scan.size[2])
    ]


def suv(factor: float | tuple[float, ...] = 1.0) -> SuvVerdict:
    """A verdict that all is well."""
    return SuvVerdict(SuvStatus.OK, factor, "given by the test", None, (), "suvbw")


def turned(degrees: float, axis: int = 2) -> tuple[float, ...]:
    """Row and column directions turned about a patient axis (0 x, 1 y, 2 z)."""
    angle = np.radians(degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    matrix = np.eye(3)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix[one, one] = matrix[other, other] = cos
    matrix[one, other], matrix[other, one] = -sin, sin
    return (*matrix[:, 0], *matrix[:, 1])
