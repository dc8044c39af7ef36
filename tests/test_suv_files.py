"""SUV of objects read from files: enhanced, legacy-converted, private blocks in every encoding."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from workers.completeness.roles import Role, judge_role
from workers.completeness.series import SeriesState, judge_completeness
from workers.header.read import read_header
from workers.pairing.suv import judge_suv
from workers.pairing.suv_time import average_count_seconds

F18 = 6586.2
ORDINARY = 70_000.0 / (368_080_000.0 * 2.0 ** (-3600.0 / F18))


def item(**fields: object) -> Dataset:
    """A data set of these keywords."""
    dataset = Dataset()
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    return dataset


def instance(sop_class: str, **fields: object) -> Dataset:
    dataset = item(
        SOPClassUID=sop_class,
        SOPInstanceUID="1.2.3",
        StudyInstanceUID="1.2",
        SeriesInstanceUID="1.2.4",
        PatientID="P",
        Modality="PT",
        PatientWeight="70",
        SeriesDate="20250101",
        **fields,
    )
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    return dataset


def classic(**fields: object) -> Dataset:
    return instance(
        "1.2.840.10008.5.1.4.1.1.128",
        SeriesTime="110000",
        AcquisitionDate="20250101",
        AcquisitionTime="110000",
        CorrectedImage=["ATTN", "DECY"],
        DecayCorrection="START",
        RadiopharmaceuticalInformationSequence=[dose(368_080_000)],
        **fields,
    )


def dose(amount: float) -> Dataset:
    return item(
        RadionuclideTotalDose=str(amount),
        RadionuclideHalfLife=str(F18),
        RadiopharmaceuticalStartDateTime="20250101100000",
    )


def axial(z: float) -> Dataset:
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(dataset: Dataset, *, implicit: bool = False) -> Path:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / "instance.dcm"
        dataset.save_as(path, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
        return path

    return write


@pytest.mark.parametrize("corrected", ["YES", "NO"])
def test_an_enhanced_pet_from_a_file(written: Callable[..., Path], corrected: str) -> None:
    frames = [axial(0.0), axial(4.0)]
    for frame, stamp in zip(frames, ("20250101110000", "20250101110500"), strict=True):
        frame.FrameContentSequence = [item(FrameReferenceDateTime=stamp)]
    units = item(CodeValue="Bq/ml", CodingSchemeDesignator="UCUM", CodeMeaning="Bq/ml")
    shared = item(
        RealWorldValueMappingSequence=[
            item(
                MeasurementUnitsCodeSequence=[units],
                RealWorldValueSlope=2.0,
                RealWorldValueIntercept=0.0,
            )
        ],
        PixelValueTransformationSequence=[
            item(RescaleSlope="2", RescaleIntercept="0", RescaleType="US")
        ],
    )
    path = written(
        instance(
            "1.2.840.10008.5.1.4.1.1.130",
            AttenuationCorrected="YES",
            DecayCorrected=corrected,
            DecayCorrectionDateTime="20250101110000",
            RadiopharmaceuticalInformationSequence=[dose(368.08)],
            NumberOfFrames=2,
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=frames,
        )
    )
    facts = read_header(path).facts
    verdict = judge_suv([facts])
    assert verdict.status == "ok"
    each = [ORDINARY, ORDINARY * 2 ** (300 / F18)]
    assert verdict.factor == pytest.approx(ORDINARY if corrected == "YES" else each, rel=1e-9)
    role = judge_role([facts]).role
    assert role is Role.PET_AC
    assert judge_completeness([facts], role, quiet=False).state is SeriesState.COMPLETE


def test_a_legacy_converted_pet_from_a_file(written: Callable[..., Path]) -> None:
    tave = average_count_seconds(F18, 300.0)
    frames = [axial(0.0), axial(4.0)]
    for frame, time, later in zip(frames, ("110000", "110500"), (0, 300), strict=True):
        frame.UnassignedPerFrameConvertedAttributesSequence = [
            item(AcquisitionTime=time, DecayFactor=f"{2 ** ((later + tave) / F18):.7g}")
        ]
    shared = item(
        UnassignedSharedConvertedAttributesSequence=[
            item(
                Units="BQML",
                CorrectedImage=["ATTN", "DECY"],
                DecayCorrection="START",
                SeriesType=["WHOLE BODY", "IMAGE"],
                AcquisitionDate="20250101",
                ActualFrameDuration="300000",
                RadiopharmaceuticalInformationSequence=[dose(368_080_000)],
            )
        ]
    )
    path = written(
        instance(
            "1.2.840.10008.5.1.4.1.1.128.1",
            SeriesTime="150000",
            NumberOfFrames=2,
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=frames,
        )
    )
    facts = read_header(path).facts
    verdict = judge_suv([facts])
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-5)
    assert "back-computed from DecayFactor" in verdict.method
    assert judge_role([facts]).role is Role.PET_AC


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("block", [0x10, 0x42])
def test_private_factors_are_found_by_their_creator(
    written: Callable[..., Path], implicit: bool, block: int
) -> None:
    dataset = classic(Units="CNTS", Manufacturer="Philips Medical Systems")
    dataset.add_new(0x70530000 | block, "LO", "Philips PET Private Group")
    dataset.add_new(0x70530000 | block << 8, "DS", "0.000728")
    verdict = judge_suv([read_header(written(dataset, implicit=implicit)).facts])
    assert (verdict.status, verdict.factor) == ("ok", 0.000728)


def test_private_factors_of_vr_un_are_read(written: Callable[..., Path]) -> None:
    dataset = classic(Units="CNTS", Manufacturer="Philips Medical Systems")
    dataset.add_new(0x70530010, "LO", "Philips PET Private Group")
    dataset.add_new(0x70531000, "UN", b"0.000728")
    path = written(dataset)
    assert b"\x53\x70\x00\x10UN" in path.read_bytes()
    assert judge_suv([read_header(path).facts]).factor == 0.000728


def test_the_block_of_another_creator_is_not_touched(written: Callable[..., Path]) -> None:
    dataset = classic(Units="CNTS", Manufacturer="Philips Medical Systems")
    dataset.add_new(0x70530010, "LO", "SOMEBODY ELSE")
    dataset.add_new(0x70531000, "DS", "0.000728")
    verdict = judge_suv([read_header(written(dataset)).facts])
    assert verdict.status == "refused"


def test_the_private_time_of_ge_is_read(written: Callable[..., Path]) -> None:
    dataset = classic(Units="BQML", Manufacturer="GE MEDICAL SYSTEMS")
    dataset.SeriesTime = "113000"
    dataset.AcquisitionTime = "110500"
    dataset.add_new(0x00090010, "LO", "GEMS_PETD_01")
    dataset.add_new(0x0009100D, "DT", "19990101110000.00")
    verdict = judge_suv([read_header(written(dataset)).facts])
    assert verdict.factor == pytest.approx(ORDINARY, rel=1e-12)
    assert "GEMS_PETD_01" in verdict.method
