"""Headers of the phantom's instances, module by module (PS3.3 A.3 CT Image, A.21 PET Image)."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from workers.phantom.numbers import HALF_LIFE_S
from workers.phantom.pictures import CT_PADDING, Picture
from workers.phantom.spec import PhantomSpec

FRAME_SECONDS = 120
"""Counting time of one PET bed position."""
BED_MOVE_SECONDS = 2

CT_DESCRIPTION = "CT IMAGES"

_CORRECTIONS = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "RADL", "DCAL", "SLSENS", "NORM"]
_CORRECTIONS_NAC = ["DECY", "DTIM", "RAN", "RADL", "SLSENS", "NORM"]


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """What all instances of a series share."""

    name: str
    """Unique in the study; the folder that `write_study` makes."""
    description: str
    number: int
    modality: str
    count: int
    series_uid: str
    start: dt.datetime
    image_type: tuple[str, ...]

    @property
    def sop_class(self) -> UID:
        return CTImageStorage if self.modality == "CT" else PositronEmissionTomographyImageStorage


def common(spec: PhantomSpec, plan: SeriesPlan, index: int, acquired: dt.datetime) -> Dataset:
    """Patient, study, series, equipment and SOP common modules of instance `index` (from 0)."""
    who = spec.identity
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = plan.sop_class
    ds.SOPInstanceUID = instance_uid(spec, plan, index)
    ds.ImageType = list(plan.image_type)
    ds.PatientName = who.patient_name
    ds.PatientID = who.patient_id if spec.patient_id is None else spec.patient_id
    ds.PatientBirthDate = _da(who.birth_date)
    ds.PatientSex = who.sex
    ds.PatientAge = f"{(who.study_start.date() - who.birth_date).days // 365:03d}Y"
    ds.PatientSize = _ds(who.height_m)
    ds.PatientWeight = _ds(who.weight_kg)
    ds.StudyInstanceUID = spec.uid()
    ds.StudyDate, ds.StudyTime = _da(who.study_start), _tm(who.study_start)
    ds.StudyID = who.study_id
    ds.StudyDescription = "PET/CT phantom"
    ds.AccessionNumber = (
        who.accession_number if spec.accession_number is None else spec.accession_number
    )
    ds.ReferringPhysicianName = ""
    ds.Modality = plan.modality
    ds.SeriesInstanceUID = plan.series_uid
    ds.SeriesNumber = plan.number
    ds.SeriesDescription = plan.description
    ds.SeriesDate, ds.SeriesTime = _da(plan.start), _tm(plan.start)
    ds.AcquisitionDate, ds.AcquisitionTime = _da(acquired), _tm(acquired)
    ds.ContentDate, ds.ContentTime = _da(acquired), _tm(acquired)
    ds.PatientPosition = spec.orientation
    ds.FrameOfReferenceUID = spec.uid("frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer = "petct-ingest"
    ds.ManufacturerModelName = "Phantom"
    ds.SoftwareVersions = "1"
    ds.AcquisitionNumber = 1
    ds.InstanceNumber = index + 1
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    return ds


def instance_uid(spec: PhantomSpec, plan: SeriesPlan, index: int) -> str:
    """SOPInstanceUID of instance `index` (from 0)."""
    return spec.uid(plan.name, index + 1)


def image(ds: Dataset, picture: Picture) -> None:
    """Add image plane, image pixel and rescale; the pixels themselves come with the encoding."""
    plane = picture.plane
    ds.PixelSpacing = [_ds(step) for step in plane.pixel_spacing_mm]
    ds.ImageOrientationPatient = [_ds(cosine) for cosine in plane.orientation]
    ds.ImagePositionPatient = [_ds(coordinate) for coordinate in plane.position]
    ds.SliceThickness = _ds(plane.thickness_mm)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = picture.pixels.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.RescaleIntercept = picture.intercept
    ds.RescaleSlope = picture.slope


def ct(ds: Dataset, *, padded: bool) -> None:
    """Add the CT image module (C.8.2.1)."""
    ds.RescaleType = "HU"
    ds.KVP = "120"
    ds.XRayTubeCurrent = 160
    ds.ExposureTime = 500
    ds.ConvolutionKernel = "STANDARD"
    ds.GantryDetectorTilt = "0"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    if padded:
        ds.PixelPaddingValue = CT_PADDING


def pet(ds: Dataset, spec: PhantomSpec, plan: SeriesPlan, index: int, bed: int) -> None:
    """Add PET series, image, isotope and orientation modules (C.8.9.1, C.8.9.4, C.8.9.2, C.8.4.6).

    Values are decay corrected to the series time (START). DecayFactor and FrameReferenceTime are
    what they mean on a scanner: from the frame's average time back to the series time.
    """
    corrected = plan.name != "PET NAC"
    ds.SliceLocation = ds.ImagePositionPatient[2]
    ds.SeriesType = ["WHOLE BODY", "REPROJECTION" if plan.name == "MIP" else "IMAGE"]
    if plan.name == "MIP":
        ds.ReprojectionMethod = "MAX PIXEL"
    ds.Units = "BQML" if corrected else "PROPCPS"
    ds.CountsSource = "EMISSION"
    ds.CorrectedImage = list(_CORRECTIONS if corrected else _CORRECTIONS_NAC)
    ds.DecayCorrection = "START"
    ds.RandomsCorrectionMethod = "SING"
    ds.ScatterCorrectionMethod = "Model based" if corrected else ""
    ds.ReconstructionMethod = "OSEM 3i24s"
    ds.CollimatorType = "NONE"
    ds.NumberOfSlices = plan.count
    ds.ImageIndex = index + 1
    ds.ActualFrameDuration = FRAME_SECONDS * 1000
    average = bed * (FRAME_SECONDS + BED_MOVE_SECONDS) + average_activity_seconds(FRAME_SECONDS)
    ds.FrameReferenceTime = _ds(average * 1000.0)
    ds.DecayFactor = _ds(2.0 ** (average / HALF_LIFE_S))
    ds.RadiopharmaceuticalInformationSequence = [_injection(spec)]
    ds.PatientOrientationCodeSequence = [_code("F-10450", "SRT", "recumbent")]
    ds.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = [
        _code("F-10340", "SRT", "supine")
        if spec.orientation.endswith("S")
        else _code("F-10310", "SRT", "prone")
    ]
    ds.PatientGantryRelationshipCodeSequence = [
        _code("F-10470", "SRT", "headfirst")
        if spec.orientation.startswith("HF")
        else _code("F-10480", "SRT", "feet-first")
    ]
    _attenuation(ds, spec, corrected=corrected)


def average_activity_seconds(frame_seconds: float) -> float:
    """Time into a frame at which the activity equals its mean: ln(λT/(1-e^-λT))/λ."""
    decay = math.log(2.0) / HALF_LIFE_S
    return math.log(decay * frame_seconds / -math.expm1(-decay * frame_seconds)) / decay


def _attenuation(ds: Dataset, spec: PhantomSpec, *, corrected: bool) -> None:
    if not corrected:
        ds.AttenuationCorrectionMethod = "NONE"
    elif not spec.references_ct:
        ds.AttenuationCorrectionMethod = "measured,, 0.096000 cm-1,"
    else:
        ds.AttenuationCorrectionMethod = f"measured,{CT_DESCRIPTION}"
        related = Dataset()
        related.StudyInstanceUID = spec.uid()
        related.SeriesInstanceUID = spec.uid(CT_DESCRIPTION)
        related.PurposeOfReferenceCodeSequence = [
            _code("122403", "DCM", "For Attenuation Correction")
        ]
        ds.RelatedSeriesSequence = [related]


def _injection(spec: PhantomSpec) -> Dataset:
    who = spec.identity
    item = Dataset()
    item.Radiopharmaceutical = "FDG"
    item.RadiopharmaceuticalRoute = ""
    item.RadiopharmaceuticalStartTime = _tm(who.injection)
    item.RadiopharmaceuticalStartDateTime = _da(who.injection) + _tm(who.injection)
    item.RadionuclideTotalDose = str(who.dose_bq)
    item.RadionuclideHalfLife = _ds(HALF_LIFE_S)
    item.RadionuclidePositronFraction = "0.967"
    item.RadionuclideCodeSequence = [_code("C-111A1", "SRT", "^18^Fluorine")]
    item.RadiopharmaceuticalCodeSequence = [_code("C-B1031", "SRT", "Fluorodeoxyglucose F^18^")]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def _ds(value: float) -> str:
    """Write a decimal string of at most 16 characters without needless digits."""
    return format_number_as_ds(float(value)).removesuffix(".0")


def _da(moment: dt.date) -> str:
    return moment.strftime("%Y%m%d")


def _tm(moment: dt.datetime) -> str:
    return moment.strftime("%H%M%S.%f" if moment.microsecond else "%H%M%S")
