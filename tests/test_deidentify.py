"""De-identification: what identifies goes, what links and what SUV needs stays."""

from __future__ import annotations

import copy
import io
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from filing_world import encoded, tiny
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.sequence import Sequence

from workers.deidentify.removed import OF_DATA2BIDS, OF_TABLE_E_1_1
from workers.deidentify.rules import REPLACED, Deidentifier, why_held
from workers.deidentify.secret import read_seed
from workers.errors import DataError, StoreUnavailable
from workers.header.facts import InstanceFacts
from workers.header.read import read_header
from workers.pairing.suv import judge_suv

SEED = "0123456789abcdef" * 4


def deidentified(dataset: Dataset, seed: str = SEED, patient_id: str | None = None) -> Dataset:
    changed = copy.deepcopy(dataset)
    Deidentifier(seed).apply(changed, patient_id=patient_id)
    return changed


def facts_of(dataset: Dataset, folder: Path) -> InstanceFacts:
    path = folder / "one.dcm"
    path.write_bytes(encoded(dataset))
    return read_header(path).facts


@pytest.mark.parametrize("keyword", REPLACED)
def test_every_attribute_of_the_first_table_is_replaced(keyword: str) -> None:
    dataset = tiny()
    value = "Doe^Jane" if keyword == "OtherPatientNames" else "ORIGINAL VALUE"[:14]
    setattr(dataset, keyword, value)
    first = deidentified(dataset)
    assert first.get(keyword)
    assert "ORIGINAL" not in str(first[keyword].value)
    assert "Doe" not in str(first[keyword].value)
    assert first[keyword] == deidentified(dataset)[keyword], "the same for the same seed"


def test_every_attribute_of_the_second_table_is_removed_in_items_too() -> None:
    removed = (*OF_DATA2BIDS, *OF_TABLE_E_1_1)
    dataset, inner = tiny(), Dataset()
    for keyword in removed:
        setattr(dataset, keyword, some_value(dictionary_VR(keyword)))
        setattr(inner, keyword, some_value(dictionary_VR(keyword)))
    dataset.RequestAttributesSequence = Sequence([inner])
    result = deidentified(dataset)
    for place in (result, result.RequestAttributesSequence[0]):
        assert not [keyword for keyword in removed if keyword in place]


def some_value(vr: str) -> Any:
    if vr == "SQ":
        return Sequence([Dataset()])
    if vr in ("FD", "FL", "DS", "IS", "US"):
        return 1
    words = {"DA": "20200131", "DT": "20200131", "UR": "https://oxford.example", "CS": "OXFORD"}
    return b"Oxford" if vr in ("OB", "UN") else words.get(vr, "Oxford Street 1")


def test_names_go_whatever_their_characters() -> None:
    for charset, name in (
        ("ISO_IR 192", "山田^太郎"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг"),
    ):
        dataset = tiny()
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = dataset.ReferringPhysicianName = name
        dataset.OperatorsName = [name, name]
        read = dcmread(io.BytesIO(encoded(dataset)))
        result = dcmread(io.BytesIO(encoded(deidentified(read))))
        for keyword in ("PatientName", "ReferringPhysicianName", "OperatorsName"):
            assert name.split("^")[0] not in str(result[keyword].value)
            assert result[keyword].value


def test_an_empty_identifier_stays_empty() -> None:
    dataset = tiny()
    dataset.PatientID = dataset.AccessionNumber = ""
    dataset.InstitutionName = None
    result = deidentified(dataset)
    assert (result.PatientID, result.AccessionNumber) == ("", "")


def test_an_address_without_its_institution_goes_too() -> None:
    dataset = tiny()
    dataset.InstitutionAddress = "Oxford Street 1"
    if "InstitutionName" in dataset:
        del dataset.InstitutionName
    assert "Oxford" not in str(deidentified(dataset).InstitutionAddress)


def test_references_still_link() -> None:
    ct, structure = tiny("CT IMAGES"), tiny("PET AC")
    item = Dataset()
    item.ReferencedSOPClassUID = ct.SOPClassUID
    item.ReferencedSOPInstanceUID = ct.SOPInstanceUID
    structure.ReferencedImageSequence = Sequence([item])
    first, second = deidentified(ct), deidentified(structure)
    assert first.SOPInstanceUID != ct.SOPInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPClassUID == ct.SOPClassUID
    assert second.FrameOfReferenceUID == first.FrameOfReferenceUID != ct.FrameOfReferenceUID
    assert second.StudyInstanceUID == first.StudyInstanceUID
    assert second.PatientID == first.PatientID != ct.PatientID


def test_dates_move_by_whole_days_and_suv_stays(tmp_path: Path) -> None:
    dataset = tiny()
    before = judge_suv((facts_of(dataset, tmp_path),))
    result = deidentified(dataset)
    after = judge_suv((facts_of(result, tmp_path),))
    assert (after.status, after.factor, after.method) == (
        before.status, before.factor, before.method,
    )  # fmt: skip
    assert result.SeriesTime == dataset.SeriesTime
    assert result.StudyDate < dataset.StudyDate
    item = result.RadiopharmaceuticalInformationSequence[0]
    was = dataset.RadiopharmaceuticalInformationSequence[0]
    assert item.RadiopharmaceuticalStartTime == was.RadiopharmaceuticalStartTime
    start, was_start = (one.get("RadiopharmaceuticalStartDateTime") for one in (item, was))
    if was_start:
        assert str(start)[8:] == str(was_start)[8:]


@given(st.text(max_size=12), st.sampled_from(["StudyDate", "AcquisitionDateTime"]))
def test_a_date_that_is_none_is_emptied_and_named(text: str, keyword: str) -> None:
    dataset = Dataset()
    dataset.file_meta = tiny().file_meta
    element = dataset.setdefault(keyword, None)
    object.__setattr__(element, "_value", text)
    changes = Deidentifier(SEED).apply(dataset)
    value = str(dataset[keyword].value or "")
    assert value != text or not text.strip()
    if not value and text:
        assert keyword in changes.emptied or not text.strip()


def test_private_elements_go_but_for_those_that_suv_needs() -> None:
    dataset = tiny()
    philips = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    philips.add_new(0x00, "DS", "0.000512")
    philips.add_new(0x10, "LO", "Jane Doe")
    other = dataset.private_block(0x0029, "ACME 1.0", create=True)
    other.add_new(0x01, "LO", "Jane Doe")
    inner = Dataset()
    inner.private_block(0x0029, "ACME 1.0", create=True).add_new(0x02, "LO", "Jane Doe")
    dataset.RequestAttributesSequence = Sequence([inner])
    liar = dataset.private_block(0x0009, "GEMS_PETD_01", create=True)
    liar.add_new(0x0D, "UN", b"20200101101112")
    result = deidentified(dataset)
    assert "Jane" not in str(result)
    assert float(result.private_block(0x7053, "Philips PET Private Group")[0x00].value) == 0.000512
    assert not [tag for tag in result if tag.tag.group == 0x0029]
    assert b"20200101" not in encoded(result)


def test_another_seed_gives_other_names_and_a_label_takes_the_patients_place() -> None:
    dataset = tiny()
    assert deidentified(dataset).PatientID != deidentified(dataset, seed=SEED[::-1]).PatientID
    assert deidentified(dataset, patient_id="EPL31_LHS_0001").PatientID == "EPL31_LHS_0001"


def test_what_the_header_cannot_vouch_for_is_held(tmp_path: Path) -> None:
    dataset = tiny()
    assert why_held(facts_of(dataset, tmp_path)) is None
    dataset.BurnedInAnnotation = "YES"
    assert "BurnedIn" in str(why_held(facts_of(dataset, tmp_path)))
    del dataset.BurnedInAnnotation
    for uid in ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.4",
                "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.88.11"):  # fmt: skip
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
        assert why_held(facts_of(dataset, tmp_path))


def test_real_suv_verdicts_are_the_same_after_it(test_data: Path, tmp_path: Path) -> None:
    compared = 0
    for path in sorted((test_data / "pet-slices").rglob("*")):
        try:
            facts = read_header(path).facts if path.is_file() else None
        except DataError:
            continue
        if facts is None or facts.modality != "PT" or why_held(facts):
            continue
        before = judge_suv((facts,))
        dataset = dcmread(path)
        Deidentifier(SEED).apply(dataset)
        after = judge_suv((facts_of(dataset, tmp_path),))
        assert (after.status, after.factor, after.method) == (
            before.status, before.factor, before.method,
        ), path.name  # fmt: skip
        compared += 1
    assert compared >= 40


# the seed -----------------------------------------------------------------------------------------


def test_the_seed_is_made_once_for_our_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read_seed(path))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["seed"]


def test_a_seed_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    read_seed(path)
    path.chmod(0o644)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        read_seed(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(StoreUnavailable, match="too short"):
        read_seed(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text(SEED)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        read_seed(path)
