"""What is read of an N-ACTION, however it is encoded, cut or mutated; what a report says."""

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from daemon.receiver.answering import event_information, event_type
from daemon.receiver.asking import Refused, read_asked
from workers.commitment.transactions import MOST_REFERENCES, Reference, Transaction
from workers.spool.batches import BatchSource

CT = "1.2.840.10008.5.1.4.1.1.2"


def asking(count=2, *, undefined=False, extras=False):
    data = Dataset()
    data.TransactionUID = "1.2.3"
    items = []
    for number in range(count):
        item = Dataset()
        item.ReferencedSOPClassUID = CT
        item.ReferencedSOPInstanceUID = f"1.2.3.{number}"
        if extras:
            item.RetrieveAETitle = "ELSEWHERE"
            item.StorageMediaFileSetID = "DISK"
            deep = Dataset()
            deep.TransactionUID = "9.9"  # deeper ones mean nothing
            item.ReferencedSeriesSequence = [deep]
            item["ReferencedSeriesSequence"].is_undefined_length = undefined
            deep.is_undefined_length_sequence_item = undefined
        item.is_undefined_length_sequence_item = undefined
        items.append(item)
    data.ReferencedSOPSequence = items
    data["ReferencedSOPSequence"].is_undefined_length = undefined
    if extras:
        data.RetrieveAETitle = "ELSEWHERE"
    return data


def encoded(data, explicit):
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, not explicit
    write_dataset(buffer, data)
    return buffer.getvalue()


def status_of(data, *, explicit=True):
    with pytest.raises(Refused) as refused:
        read_asked(data, explicit=explicit)
    assert len(refused.value.comment) <= 64
    return refused.value.status


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [True, False], ids=["delimited", "lengths"])
@pytest.mark.parametrize("extras", [True, False])
def test_every_encoding_of_a_request_says_the_same(explicit, undefined, extras):
    data = encoded(asking(undefined=undefined, extras=extras), explicit)
    expected = tuple(Reference(CT, f"1.2.3.{number}") for number in range(2))
    assert read_asked(data, explicit=explicit) == ("1.2.3", expected)


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [True, False], ids=["delimited", "lengths"])
def test_what_is_cut_anywhere_is_refused_and_never_a_shorter_list(explicit, undefined):
    data = encoded(asking(undefined=undefined), explicit)
    boundary = len(encoded(asking(0), explicit)) - (12 if explicit else 8)  # behind the UID
    for length in range(len(data)):
        status = status_of(data[:length], explicit=explicit)
        assert status == (0x0120 if length in (0, boundary) else 0x0115), length


@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_no_mutation_raises_anything_but_a_refusal(explicit, undefined, changes):
    data = bytearray(encoded(asking(undefined=undefined, extras=True), explicit))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        uid, references = read_asked(bytes(data), explicit=explicit)
    except Refused:
        return
    assert uid.strip("0123456789.") == ""
    assert all(one.sop_instance.strip("0123456789.") == "" for one in references)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_anything_but_a_refusal(data, explicit):
    assert status_of(data, explicit=explicit) in (0x0115, 0x0120, 0x0121)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3\\1.2.4", "1..2", "1" * 66, "a", "1.2."])
def test_a_uid_that_is_none_is_refused(uid):
    data = encoded(asking(1), True)
    assert status_of(replaced(data, b"1.2.3\0", uid)) == 0x0115
    assert status_of(replaced(data, b"1.2.3.0\0", uid)) == 0x0115


def replaced(data, old, new):
    """Put another value in the place of a UID, and mend the lengths around it."""
    value = new.encode() + b"\0" * (len(new) % 2)
    at = data.index(struct.pack("<H", len(old)) + old)
    grown = len(value) - len(old)
    changed = data[:at] + struct.pack("<H", len(value)) + value + data[at + 2 + len(old) :]
    if len(old) == 6:  # the transaction's stands outside of the sequence
        return changed
    head = changed.index(b"\x08\0\x99\x11SQ\0\0") + 8
    (sequence,) = struct.unpack_from("<L", changed, head)
    (item,) = struct.unpack_from("<L", changed, head + 8)
    return (
        changed[:head]
        + struct.pack("<L", sequence + grown)
        + changed[head + 4 : head + 8]
        + struct.pack("<L", item + grown)
        + changed[head + 12 :]
    )


def test_what_is_missing_or_empty_is_named():
    without_transaction, without_instance, empty = asking(1), asking(1), asking(1)
    del without_transaction.TransactionUID
    del without_instance.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    empty.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = ""
    assert status_of(encoded(without_transaction, True)) == 0x0120
    assert status_of(encoded(without_instance, True)) == 0x0120
    assert status_of(encoded(empty, True)) == 0x0121
    assert status_of(encoded(asking(0), True)) == 0x0121


def test_as_many_references_as_are_allowed_are_read():
    one = encoded(asking(1), True)
    head = one.index(b"SQ\0\0") + 4
    item = one[head + 4 :]

    def of(count):
        return one[:head] + struct.pack("<L", count * len(item)) + item * count

    assert len(read_asked(of(MOST_REFERENCES), explicit=True)[1]) == MOST_REFERENCES
    assert status_of(of(MOST_REFERENCES + 1)) == 0x0213


def test_sequences_nested_without_end_are_refused():
    undefined = b"\x08\0\x99\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
    assert status_of(undefined * 100_000) == 0x0115


# what a report says -------------------------------------------------------------------------------


def decided(*reasons):
    references = tuple(Reference(CT, f"1.2.3.{number}") for number in range(len(reasons)))
    source = BatchSource("association", "PACS", "US", "10.0.0.7")
    at = "2026-01-01T00:00:00.000Z"
    return Transaction("1.2.30", source, at, references, decided_at=at, reasons=reasons)


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("reasons", [(0,), (0, 0x0110, 0, 0x0213), (0x0112, 0x0119)])
def test_pydicom_reads_a_report_as_it_was_decided(explicit, reasons):
    transaction = decided(*reasons)
    data = event_information(transaction, explicit=explicit)
    found = read_dataset(BytesIO(data), is_implicit_VR=not explicit, is_little_endian=True)
    assert found.TransactionUID == "1.2.30"
    assert event_type(transaction) == (2 if any(reasons) else 1)
    committed = found.get("ReferencedSOPSequence", [])
    failed = found.get("FailedSOPSequence", [])
    assert {one.ReferencedSOPClassUID for one in (*committed, *failed)} == {CT}
    assert {one.ReferencedSOPInstanceUID: 0 for one in committed} | {
        one.ReferencedSOPInstanceUID: one.FailureReason for one in failed
    } == {f"1.2.3.{number}": reason for number, reason in enumerate(reasons)}
    keywords = {"ReferencedSOPSequence"} if 0 in reasons else set()
    keywords |= {"FailedSOPSequence"} if any(reasons) else set()
    assert {element.keyword for element in found} == {"TransactionUID"} | keywords
    assert encoded(found, explicit) == data  # pydicom would write the same bytes
