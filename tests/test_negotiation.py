"""What an association may carry, and what stands before a data set in its file."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import UID

from daemon.receiver.negotiation import BIG_ENDIAN, LOSSLESS_LITTLE_ENDIAN, preferred, service_of
from daemon.receiver.part10 import Encoding, file_head, uid_problem

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
J2K = "1.2.840.10008.1.2.4.91"
J2K_LOSSLESS = "1.2.840.10008.1.2.4.90"
PRIVATE = "1.2.840.113619.5.2"


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([JPEG_BASELINE, IMPLICIT], IMPLICIT),
        ([BIG_ENDIAN, JPEG_LOSSLESS, IMPLICIT], JPEG_LOSSLESS),
        ([BIG_ENDIAN, IMPLICIT, EXPLICIT], IMPLICIT),
        ([J2K, J2K_LOSSLESS], J2K_LOSSLESS),
        ([J2K, BIG_ENDIAN], BIG_ENDIAN),
        ([PRIVATE, EXPLICIT], EXPLICIT),
        ([PRIVATE, JPEG_BASELINE], PRIVATE),
        ([JPEG_BASELINE], JPEG_BASELINE),
    ],
)
def test_the_syntax_that_surely_loses_nothing_is_taken(offered, taken):
    assert preferred(offered)[0] == taken


SYNTAXES = st.lists(
    st.sampled_from(
        [IMPLICIT, EXPLICIT, JPEG_BASELINE, JPEG_LOSSLESS, J2K, J2K_LOSSLESS, PRIVATE, BIG_ENDIAN]
    ),
    unique=True,
)


@given(SYNTAXES)
def test_nothing_offered_is_lost_and_the_senders_order_is_kept_within_a_rank(offered):
    ordered = preferred(offered)
    assert sorted(ordered) == sorted(offered)
    lossless = [uid for uid in offered if uid in LOSSLESS_LITTLE_ENDIAN]
    assert ordered[: len(lossless)] == lossless
    others = [uid for uid in offered if uid not in LOSSLESS_LITTLE_ENDIAN and uid != BIG_ENDIAN]
    assert ordered[len(ordered) - len(others) :] == others


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
        "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine, retired
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol, no patient
        "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction, trial
        "1.2.840.10008.5.1.4.1.1.40",  # retired, without a name
        "1.2.840.10008.5.1.4.1.1.999",  # newer than the registry
        "1.3.46.670589.11.0.0.12.1",  # private, Philips
        "1.2.3.4",
    ],
)
def test_every_storage_class_is_storage_private_and_unknown_ones_too(uid):
    assert service_of(UID(uid)) == "storage"


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.31",  # Modality Worklist FIND
        "1.2.840.10008.5.1.4.1.2.2.1",  # Study Root FIND
        "1.2.840.10008.5.1.4.1.2.2.2",  # Study Root MOVE
        "1.2.840.10008.3.1.2.3.3",  # Modality Performed Procedure Step
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.5.1.1.9",  # Basic Grayscale Print, a meta class
        "1.2.840.10008.3.1.2.1.1",  # Detached Patient Management, retired
        "1.2.840.10008.1.3.10",  # Media Storage Directory: of media alone
        "1.2.840.10008.1.2.1",  # a transfer syntax
        "",
    ],
)
def test_what_is_known_to_be_another_service_is_not_taken_for_storage(uid):
    assert service_of(UID(uid)) == "other"


def test_verification_is_served():
    assert service_of(UID("1.2.840.10008.1.1")) == "verification"


def head(sop_instance="1.2.3.45", source="CT_SCANNER"):
    return file_head("1.2.840.10008.5.1.4.1.1.2", sop_instance, Encoding(EXPLICIT, source))


@pytest.mark.parametrize("sop_instance", ["1.2.3.45", "1.2.3.456", "9" * 64])
@pytest.mark.parametrize("source", ["CT_SCANNER", "ODD", " PADDED "])
def test_a_head_is_read_back_as_it_was_written(sop_instance, source):
    data_set = b"\x08\x00\x60\x00CS\x02\x00CT"
    read = dcmread(BytesIO(head(sop_instance, source) + data_set))
    assert read.Modality == "CT"
    meta = read.file_meta
    assert meta.MediaStorageSOPInstanceUID == sop_instance
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.SourceApplicationEntityTitle == source.strip()
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert len(head(sop_instance, source)) == 144 + meta.FileMetaInformationGroupLength


@pytest.mark.parametrize("source", ["", "   ", "MÜNCHEN", "A\\B\x01", "SEVENTEEN_LETTERS"])
def test_an_ae_title_that_is_none_is_left_out(source):
    read = dcmread(BytesIO(head(source=source)))
    assert "SourceApplicationEntityTitle" not in read.file_meta


@pytest.mark.parametrize("uid", ["1.2.3", "../../etc/passwd", "1.2.x", "0", "9" * 64, "1..2"])
def test_a_uid_that_fits_a_header_is_written_down_and_judged_later(uid):
    assert uid_problem(uid) is None
    assert b"DICM" in head(uid)


@pytest.mark.parametrize("uid", [None, "", "9" * 65, "1.2\\1.3", "1.2.ü", "1.2\n", "1.2\0"])
def test_a_uid_that_no_header_can_hold_is_a_problem(uid):
    assert uid_problem(uid)
