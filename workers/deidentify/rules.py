"""What de-identification does to a data set: dicognito's replacements, made safe for PET.

dicognito shifts dates by hours and a time only together with its date; the injection time of a PET
has no date, so it would move against the others and SUV with it. Here dates move by whole days and
times stay. Private elements go, but for those that SUV needs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass, field

from dicognito.anonymizer import Anonymizer
from dicognito.element_anonymizer import ElementAnonymizer
from pydicom import DataElement, Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from workers.deidentify.removed import OF_DATA2BIDS, OF_TABLE_E_1_1
from workers.header.extract import KEPT_PRIVATE
from workers.header.facts import InstanceFacts

REPLACED = (
    "AccessionNumber",
    "FillerOrderNumberImagingServiceRequest",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "OtherPatientNames",
    "PatientID",
    "PerformedProcedureStepID",
    "PlacerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "ScheduledProcedureStepID",
    "StationName",
    "StudyID",
)
"""Attributes whose values are replaced, as data2bids lists them; names, UIDs and dates besides."""

_OF_THE_SENDER = (
    "SourceApplicationEntityTitle",
    "PrivateInformationCreatorUID",
    "PrivateInformation",
)
"""Of the file meta: they say from where, or anything."""
_OVERLAYS = range(0x6000, 0x6020)
"""Groups of overlays: graphics that may hold words."""

_HELD = (
    ("1.2.840.10008.5.1.4.1.1.7", "a secondary capture may show a name in its pixels"),
    ("1.2.840.10008.5.1.4.1.1.104.", "an encapsulated document holds text that is not searched"),
    ("1.2.840.10008.5.1.4.1.1.88.", "a structured report holds text that is not searched"),
)
_UNRESERVED = 0x10
"""The block that some scanners' data use without reserving it (header/extract.py reads it too)."""
_OF_DICTIONARIES = ("ContextGroupVersion", "ContextGroupLocalVersion")
"""Dates of code lists, not of a person."""
_FIRST_OFFSET_DAYS = 62
_OFFSETS = 668
_DAYS = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})$")
_MOMENT = re.compile(r"(\d{4})(\d{2})(\d{2})(\d{0,6}(?:\.\d{1,6})?(?:[+-]\d{4})?)$")


@dataclass(slots=True)
class Changes:
    """What was done to one data set: keywords, or tags of private elements; no values."""

    replaced: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    emptied: set[str] = field(default_factory=set)
    """Dates that could not be read as such."""


def why_held(facts: InstanceFacts) -> str | None:
    """Say why an instance cannot be de-identified by its header, or return None."""
    if facts.burned_in_annotation.strip().upper() == "YES":
        return "BurnedInAnnotation is YES: its pixels name somebody"
    for uid, words in _HELD:
        if facts.sop_class_uid.startswith(uid):
            return words
    return None


class Deidentifier:
    """Replace what identifies, always in the same way for the same seed."""

    def __init__(self, seed: str) -> None:
        self._anonymizer = Anonymizer(seed=seed)
        self._days = dt.timedelta(days=-_offset(seed))

    def apply(self, dataset: Dataset, *, patient_id: str | None = None) -> Changes:
        """De-identify a data set and its file meta in place.

        Parameters
        ----------
        dataset : Dataset
            With `file_meta`.
        patient_id : str, optional
            A PatientID to give in the place of a replaced one (a subject's label).
        """
        changes = Changes()
        dataset.preamble = bytes(128)
        for keyword in _OF_THE_SENDER:
            if keyword in dataset.file_meta:
                delattr(dataset.file_meta, keyword)
        _remove_private(dataset, changes)
        before = _fingerprints(dataset)
        for handler in (_Addresses(), _Dates(self._days, changes), _Remove(changes)):  # last first
            self._anonymizer.add_element_handler(handler)
        try:
            self._anonymizer.anonymize(dataset)
        finally:
            del self._anonymizer._element_handlers[:3]
        if patient_id is not None:
            dataset.PatientID = patient_id
        for keyword, value in _fingerprints(dataset).items():
            if before.get(keyword) not in (None, value):
                changes.replaced.add(keyword)
        changes.replaced -= changes.emptied
        return changes


class _Remove(ElementAnonymizer):
    """Remove what the list says; leave alone what is empty."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._tags = {tag_for_keyword(keyword) for keyword in (*OF_DATA2BIDS, *OF_TABLE_E_1_1)}

    def __call__(self, dataset: Dataset, data_element: DataElement) -> bool:
        if data_element.tag in self._tags:
            self._changes.removed.add(data_element.keyword)
            del dataset[data_element.tag]
            return True
        # an empty PatientID that got a value would join all who have none
        return data_element.VR != "SQ" and data_element.value in (None, "", b"", [])


class _Dates(ElementAnonymizer):
    """Move dates by whole days; times of day stay what they are."""

    def __init__(self, days: dt.timedelta, changes: Changes) -> None:
        self._days = days
        self._changes = changes

    def __call__(self, dataset: Dataset, data_element: DataElement) -> bool:
        if data_element.VR not in ("DA", "DT"):
            return False
        if data_element.keyword in _OF_DICTIONARIES:
            return True
        value = data_element.value
        values = list(value) if isinstance(value, MultiValue | list) else [value]
        moved = [self._moved(data_element.VR, str(one)) for one in values]
        if None in moved:
            self._changes.emptied.add(data_element.keyword or str(data_element.tag))
            data_element.value = None
        else:
            data_element.value = moved if len(moved) > 1 else moved[0]
        return True

    def _moved(self, vr: str, text: str) -> str | None:
        found = (_DAYS if vr == "DA" else _MOMENT).match(text.strip(" \0"))
        if found is None:
            return None
        try:
            day = dt.date(*(int(part) for part in found.groups()[:3])) + self._days
        except (ValueError, OverflowError):
            return None
        rest = found.group(4) if vr == "DT" else ""
        return f"{day.year:04d}{day:%m%d}{rest}"


class _Addresses(ElementAnonymizer):
    """An address without the institution's name is left to nobody else."""

    def __call__(self, dataset: Dataset, data_element: DataElement) -> bool:
        if data_element.keyword != "InstitutionAddress" or dataset.get("InstitutionName"):
            return False
        data_element.value = "REMOVED"
        return True


def _remove_private(dataset: Dataset, changes: Changes) -> None:
    """Remove private elements, in items of sequences too, but for those that SUV needs."""
    for tag in list(dataset.keys()):
        if tag.group in _OVERLAYS:
            changes.removed.add(f"{tag:08x}")
            del dataset[tag]
        elif tag.is_private:
            if not _is_kept(dataset, tag):
                changes.removed.add(f"{tag:08x}")
                del dataset[tag]
        elif dataset[tag].VR == "SQ":
            for item in dataset[tag].value or ():
                _remove_private(item, changes)


def _is_kept(dataset: Dataset, tag: int) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    if group not in KEPT_PRIVATE:
        return False
    creator, offsets = KEPT_PRIVATE[group]
    block = element >> 8 or element
    reserved = dataset.get((group, block))
    name = None if reserved is None else str(reserved.value).strip(" \0")
    if name != creator and not (name is None and block == _UNRESERVED):
        return False
    if element == block:
        return True
    # bytes that nobody can read as a date would keep it as it was
    return element & 0xFF in offsets and dataset[tag].VR != "UN"


def _fingerprints(dataset: Dataset) -> dict[str, str]:
    """Return every standard element as text, to see afterwards which ones changed; no pixels."""
    found: dict[str, str] = {}
    for element in dataset.iterall():
        if element.keyword and element.VR not in ("SQ", "OB", "OW", "UN", "OF", "OD", "OL", "OV"):
            found[element.keyword] = found.get(element.keyword, "") + "\\" + str(element.value)
    return found


def _offset(seed: str) -> int:
    """Return by how many days dates go back: two months to two years, as dicognito has it."""
    digest = hashlib.blake2b(f"{seed}\0days".encode(), digest_size=8).digest()
    return _FIRST_OFFSET_DAYS + int.from_bytes(digest, "big") % _OFFSETS
