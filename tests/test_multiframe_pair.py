"""A PET that comes as one multi-frame instance gives the pair that its single slices give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from config.tables.work import PairingSettings
from workers.pairing.load import load_pair
from workers.pairing.offline import pair_folder
from workers.phantom.study import PhantomSpec, make_study, write_study

ENHANCED = "1.2.840.10008.5.1.4.1.1.130"
LEGACY = "1.2.840.10008.5.1.4.1.1.128.1"
ORDER = (5, 2, 7, 0, 1, 6, 3, 4)
"""Frames need not come in order of position."""


def item(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def frame_of(one: Dataset, sop_class: str) -> Dataset:
    frame = item(
        PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
        PixelValueTransformationSequence=[
            item(
                RescaleSlope=one.RescaleSlope,
                RescaleIntercept=one.RescaleIntercept,
                RescaleType="US",
            )
        ],
        FrameContentSequence=[item(FrameReferenceDateTime=one.SeriesDate + one.SeriesTime)],
    )
    if sop_class == LEGACY:
        frame.UnassignedPerFrameConvertedAttributesSequence = [
            item(AcquisitionTime=one.AcquisitionTime, DecayFactor=one.DecayFactor)
        ]
    return frame


def multiframe(slices: list[Dataset], sop_class: str) -> Dataset:
    """Put classic slices into one enhanced or legacy-converted instance."""
    first = slices[0]
    whole = Dataset()
    whole.file_meta = first.file_meta
    for keyword in (
        "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber",
        "Modality", "FrameOfReferenceUID", "Rows", "Columns", "BitsAllocated", "BitsStored",
        "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
        "PatientWeight", "PatientSex", "PatientPosition", "SeriesDate", "SeriesTime",
        "AcquisitionDate", "StudyDate", "StudyTime", "SeriesNumber", "ReferencedImageSequence",
        "RelatedSeriesSequence", "Manufacturer",
    ):  # fmt: skip
        if keyword in first:
            whole[keyword] = first[keyword]
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = sop_class
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(slices)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelMeasuresSequence=[
            item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
        ],
    )
    dose = first.RadiopharmaceuticalInformationSequence[0]
    if sop_class == ENHANCED:
        whole.AttenuationCorrected = whole.DecayCorrected = "YES"
        whole.DecayCorrectionDateTime = first.SeriesDate + first.SeriesTime
        in_mbq = item(
            RadionuclideTotalDose=str(float(dose.RadionuclideTotalDose) / 1e6),
            RadionuclideHalfLife=dose.RadionuclideHalfLife,
            RadiopharmaceuticalStartDateTime=dose.RadiopharmaceuticalStartDateTime,
        )
        whole.RadiopharmaceuticalInformationSequence = [in_mbq]
        units = item(CodeValue="Bq/ml", CodingSchemeDesignator="UCUM", CodeMeaning="Bq/ml")
    else:
        shared.UnassignedSharedConvertedAttributesSequence = [
            item(
                Units="BQML",
                CorrectedImage=list(first.CorrectedImage),
                DecayCorrection="START",
                SeriesType=list(first.SeriesType),
                ActualFrameDuration=first.ActualFrameDuration,
                RadiopharmaceuticalInformationSequence=[dose],
            )
        ]
    frames = [frame_of(one, sop_class) for one in slices]
    if sop_class == ENHANCED:
        for frame, one in zip(frames, slices, strict=True):
            mapping = item(
                MeasurementUnitsCodeSequence=[units],
                RealWorldValueSlope=float(one.RescaleSlope),
                RealWorldValueIntercept=float(one.RescaleIntercept),
            )
            frame.RealWorldValueMappingSequence = [mapping]
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.PixelData = b"".join(one.PixelData for one in slices)
    return whole


@pytest.mark.parametrize("sop_class", [ENHANCED, LEGACY], ids=["enhanced", "legacy-converted"])
def test_a_multiframe_pet_gives_the_pair_of_its_slices(tmp_path: Path, sop_class: str) -> None:
    spec = PhantomSpec(size="tiny")
    classic, converted = tmp_path / "classic", tmp_path / "converted"
    write_study(spec, classic, only={"CT IMAGES", "PET AC"})
    write_study(spec, converted, only={"CT IMAGES"})
    pet = make_study(spec).named("PET AC")
    whole = multiframe([pet.dataset(number) for number in ORDER], sop_class)
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.save_as(converted / "pet.dcm", enforce_file_format=True)

    expected = pair_folder(classic, tmp_path / "one", PairingSettings())
    found = pair_folder(converted, tmp_path / "other", PairingSettings())
    assert (expected.state, found.state) == ("ready", "ready"), found.reasons
    one, other = load_pair(tmp_path / "one"), load_pair(tmp_path / "other")
    assert one.units == other.units == "suvbw"
    assert one.pet.shape == other.pet.shape
    np.testing.assert_allclose(other.affine, one.affine, atol=1e-6)
    np.testing.assert_allclose(other.pet, one.pet, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(other.ct, one.ct)
