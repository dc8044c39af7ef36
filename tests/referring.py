"""Small objects that refer to images: an RTSTRUCT to its CT, a SEG to the series it segments."""

from __future__ import annotations

from collections.abc import Sequence

import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

_OF_THE_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription",
    "ReferringPhysicianName", "Manufacturer",
)  # fmt: skip


def structure_set(images: Sequence[Dataset]) -> Dataset:
    """An RTSTRUCT (PS3.3 A.19) with one empty structure, in the frame of reference of a CT."""
    first = images[0]
    dataset = _of_the_study(first, RTStructureSetStorage, "RTSTRUCT", "STRUCTURES")
    dataset.StructureSetLabel = "TUMOUR"
    dataset.StructureSetDate, dataset.StructureSetTime = first.StudyDate, first.StudyTime
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = pydicom.Sequence([_reference(one) for one in images])
    study = Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = pydicom.Sequence([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = pydicom.Sequence([study])
    dataset.ReferencedFrameOfReferenceSequence = pydicom.Sequence([frame])
    structure = Dataset()
    structure.ROINumber, structure.ROIName = 1, "GTV"
    structure.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    structure.ROIGenerationAlgorithm = "MANUAL"
    dataset.StructureSetROISequence = pydicom.Sequence([structure])
    dataset.ROIContourSequence = dataset.RTROIObservationsSequence = pydicom.Sequence()
    return dataset


def segmentation(images: Sequence[Dataset]) -> Dataset:
    """A SEG (PS3.3 A.51) of one empty binary segment over the first image."""
    first = images[0]
    dataset = _of_the_study(first, SegmentationStorage, "SEG", "SEGMENTATION")
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.InstanceNumber = 1
    dataset.ContentLabel = "LESION"
    dataset.SegmentationType = "BINARY"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 8, 8, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ReferencedInstanceSequence = pydicom.Sequence([_reference(one) for one in images])
    dataset.ReferencedSeriesSequence = pydicom.Sequence([series])
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Lesion"
    segment.SegmentAlgorithmType = "MANUAL"
    dataset.SegmentSequence = pydicom.Sequence([segment])
    dataset.PixelData = bytes(8)
    return dataset


def _of_the_study(first: Dataset, sop_class: str, modality: str, description: str) -> Dataset:
    dataset = Dataset()
    for keyword in _OF_THE_STUDY:
        if keyword in first:
            setattr(dataset, keyword, first[keyword].value)
    dataset.SOPClassUID, dataset.Modality = sop_class, modality
    dataset.SeriesDescription = description
    of = [first.SeriesInstanceUID, modality]
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*of, "series"])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*of, "instance"])
    dataset.SeriesNumber = 900
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _reference(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return item
