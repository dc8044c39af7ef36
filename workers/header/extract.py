"""Which elements the system wants, and what they mean: raw elements into `InstanceFacts`."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

from pydicom import charset, config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from workers import limits
from workers.errors import DataError
from workers.header import uids
from workers.header.elements import Encoding, RawElement, Walk, Window, walk_elements
from workers.header.facts import InstanceFacts, PrivateFact
from workers.header.nesting import check_nesting
from workers.header.sequences import SEQUENCES, sequence_facts

# field of InstanceFacts -> how its value is read; the keyword follows from the field's name
_UIDS = ("sop_class_uid", "sop_instance_uid", "study_instance_uid", "series_instance_uid",
         "frame_of_reference_uid", "concatenation_uid")  # fmt: skip
_TEXTS = ("patient_id", "issuer_of_patient_id", "accession_number", "manufacturer",
          "manufacturer_model_name", "study_description", "series_description",
          "attenuation_correction_method")  # fmt: skip
_WORDS = ("modality", "burned_in_annotation", "study_date", "study_time", "series_date",
          "series_time", "acquisition_date", "acquisition_time", "acquisition_date_time",
          "content_date", "content_time", "timezone_offset_from_utc", "patient_sex",
          "patient_position", "anatomical_orientation_type", "photometric_interpretation",
          "rescale_type", "units", "suv_type", "decay_correction", "collimator_type",
          "decay_corrected", "attenuation_corrected", "decay_correction_date_time",
          "imaged_nucleus")  # fmt: skip
_LISTS = ("image_type", "convolution_kernel", "scan_options", "series_type", "corrected_image",
          "scanning_sequence")  # fmt: skip
_FLOATS = ("patient_size", "patient_weight", "slice_thickness", "spacing_between_slices",
           "gantry_detector_tilt", "rescale_slope", "rescale_intercept", "kvp",
           "actual_frame_duration", "frame_reference_time", "decay_factor", "trigger_time",
           "repetition_time", "echo_time", "magnetic_field_strength")  # fmt: skip
_VECTORS = {"image_position_patient": 3, "image_orientation_patient": 6, "pixel_spacing": 2}
_INTEGERS = ("series_number", "instance_number", "acquisition_number", "number_of_frames",
             "images_in_acquisition", "temporal_position_identifier")  # fmt: skip
_SHORTS = ("rows", "columns", "samples_per_pixel", "bits_allocated", "bits_stored",
           "pixel_representation", "number_of_slices", "number_of_time_slices",
           "number_of_rr_intervals", "number_of_time_slots", "image_index",
           "in_concatenation_number", "in_concatenation_total_number")  # fmt: skip
_SIGNED_BY_PIXELS = ("pixel_padding_value", "pixel_padding_range_limit")
_OWN_KEYWORDS = {
    "patient_id": "PatientID",
    "issuer_of_patient_id": "IssuerOfPatientID",
    "kvp": "KVP",
    "suv_type": "SUVType",
    "timezone_offset_from_utc": "TimezoneOffsetFromUTC",
    "acquisition_date_time": "AcquisitionDateTime",
    "number_of_rr_intervals": "NumberOfRRIntervals",
}
_BINARY = {"FD": "d", "FL": "f", "US": "H", "SS": "h", "UL": "L", "SL": "l"}
_OF_SLICES = ("sop_instance_uid", "instance_number", "acquisition_number", "acquisition_date",
              "acquisition_time", "acquisition_date_time", "content_time",
              "image_position_patient", "rescale_slope", "frame_reference_time", "decay_factor",
              "trigger_time", "image_index", "temporal_position_identifier")  # fmt: skip
"""What differs from slice to slice: read for each. No text, whose character set stands apart."""
_CHARACTER_SET = 0x00080005
_REPEATED_BYTES = 1 << 13
"""Sequences up to this size are decoded once: the slices of a series say the same in them."""
# groups of the private elements that SUV needs, and their creators (pairing-science: SUVbw)
KEPT_PRIVATE = {
    0x7053: ("Philips PET Private Group", (0x00, 0x09)),
    0x0009: ("GEMS_PETD_01", (0x0D,)),
    0x0071: ("SIEMENS MED PT", (0x22,)),
}


@lru_cache(maxsize=4096)
def wanted_tag(tag: int) -> limits.Limit | None:
    """Return how long the value of a top-level element may be, None where it is not kept."""
    if tag in _tags():
        return limits.KEPT if tag in SEQUENCES() else limits.VALUE
    group, element = tag >> 16, tag & 0xFFFF
    if group not in KEPT_PRIVATE:
        return None
    kept = 0x10 <= element <= 0xFF or element & 0xFF in KEPT_PRIVATE[group][1]
    return limits.VALUE if kept else None


def extract_facts(
    walk: Walk, encoding: Encoding, transfer_syntax_uid: str, *, fallback_class: str = ""
) -> InstanceFacts:
    """Decode the kept elements of one data set.

    A value that cannot be read is None and named in `unreadable`; only what makes the whole header
    unreadable raises DataError.
    """
    plain, unreadable = _plain_facts(walk, encoding)
    nested, unreadable_nested = _nested_facts(walk, encoding)
    values: dict[str, Any] = {
        "sop_class_uid": fallback_class,
        "sop_instance_uid": "",
        "study_instance_uid": "",
        "series_instance_uid": "",
        **plain,
        **nested,
    }
    if values.get("reference_frame") is None or values.get("frame_of_reference_uid"):
        values["reference_frame"] = values.get("frame_of_reference_uid")
    return InstanceFacts(
        transfer_syntax_uid=transfer_syntax_uid,
        has_pixel_data=walk.has_pixel_data,
        unreadable=unreadable + unreadable_nested,
        **values,
    )


_Facts = tuple[dict[str, Any], tuple[str, ...]]
"""Fields of InstanceFacts, and the keywords of what could not be read."""


def _plain_facts(walk: Walk, encoding: Encoding) -> _Facts:
    """Read the kept elements that are no sequences; what the slices of a series repeat, once."""
    of_slices, nested = _tags_of_slices(), SEQUENCES()
    own, repeated = {}, []
    for tag, element in walk.elements.items():
        if tag in of_slices:
            own[tag] = element
        elif tag not in nested:
            repeated.append(element.encoded)
    encoded = b"".join(repeated)
    if len(encoded) <= _REPEATED_BYTES:
        values, unreadable = _repeated_plain(encoded, encoding)
        reader = _Reader(own, encoding)
        mine = reader.values()
        if not reader.unreadable:
            return values | mine, unreadable
    return _decode_plain(walk.elements, encoding)


@lru_cache(maxsize=64)
def _repeated_plain(encoded: bytes, encoding: Encoding) -> _Facts:
    window = Window(io.BytesIO(encoded))
    walk = walk_elements(window, 0, len(encoded), encoding, wanted_tag)
    return _decode_plain(walk.elements, encoding)


def _decode_plain(elements: dict[int, RawElement], encoding: Encoding) -> _Facts:
    reader = _Reader(elements, encoding)
    with _without_warnings():
        values = reader.values()
    for name in _SIGNED_BY_PIXELS:
        values[name] = reader.short(name, signed=bool(values.get("pixel_representation")))
    values["private"] = tuple(_private_facts(elements, encoding))
    return values, tuple(reader.unreadable)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Let pydicom's warnings be: they quote values; what matters is in the facts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Reader:
    """Read single values; remembers the keywords that could not be read."""

    def __init__(self, elements: dict[int, RawElement], encoding: Encoding) -> None:
        self._elements = elements
        self._order = encoding.order
        self.unreadable: list[str] = []

    def values(self) -> dict[str, Any]:
        """Read every field that has an element and can be read."""
        found = {}
        for tag, (name, read) in _fields().items():
            if tag in self._elements and (value := read(self, name)) is not None:
                found[name] = value
        return found

    def _raw(self, name: str) -> bytes | None:
        element = self._elements.get(_tag_of(name))
        return element.value if element is not None else None

    def uid(self, name: str) -> str | None:
        raw = self._raw(name)
        return uids.clean(raw) or None if raw is not None else None

    def text(self, name: str) -> str | None:
        raw = self._raw(name)
        if raw is None:
            return None
        encodings = _encodings(self._elements.get(_CHARACTER_SET))
        decoded = charset.decode_bytes(raw, encodings, {ord("\\"), 0x0D, 0x0A, 0x09, 0x0C})
        return uids.without_nul(decoded.strip(" \0")) or None

    def word(self, name: str) -> str | None:
        raw = self._raw(name)
        return _ascii(raw) or None if raw is not None else None

    def words(self, name: str) -> tuple[str, ...] | None:
        word = self.word(name)
        return tuple(part.strip() for part in word.split("\\")) if word else None

    def number(self, name: str) -> float | None:
        values = self._numbers(name)
        return values[0] if values else None

    def integer(self, name: str) -> int | None:
        value = self.number(name)
        if value is None or not -(2**31) <= value < 2**31:  # NaN too; the index has 32 bits
            return None
        return int(value)

    def vector(self, name: str) -> tuple[float, ...] | None:
        values = self._numbers(name)
        if not values:
            return None
        if len(values) != _VECTORS[name]:
            self._note(name)
            return None
        return tuple(values)

    def short(self, name: str, signed: bool = False) -> int | None:
        raw = self._raw(name)
        if not raw:
            return None
        element = self._elements[_tag_of(name)]
        if element.vr in ("IS", "DS"):
            return self.integer(name)
        if len(raw) in (2, 4, 6):
            code = "h" if signed or element.vr == "SS" else "H"
            return int(struct.unpack_from(self._order + code, raw)[0])
        self._note(name)
        return None

    def _numbers(self, name: str) -> list[float]:
        element = self._elements.get(_tag_of(name))
        if element is None or not element.value:
            return []
        binary = _BINARY.get(element.vr or "")
        if element.vr is None and name in ("magnetic_field_strength",) and len(element.value) == 8:
            binary = "d"
        try:
            if binary:
                size = struct.calcsize("<" + binary)
                count = len(element.value) // size
                return list(struct.unpack_from(f"{self._order}{count}{binary}", element.value))
            words = _ascii(element.value)
            return [float(word) for word in words.split("\\")] if words else []
        except (ValueError, struct.error):
            self._note(name)
            return []

    def _note(self, name: str) -> None:
        self.unreadable.append(keyword_of(name))


def keyword_of(name: str) -> str:
    """Return the DICOM keyword that a field is named after."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return _OWN_KEYWORDS.get(name) or re.sub(r"Uid$", "UID", camel).replace("SopC", "SOPC").replace(
        "SopI", "SOPI"
    )


@cache
def _tag_of(name: str) -> int:
    tag = tag_for_keyword(keyword_of(name))
    if tag is None:
        raise KeyError(f"{keyword_of(name)} is no DICOM keyword")
    return int(tag)


_Read = Callable[["_Reader", str], Any]


@cache
def _fields() -> dict[int, tuple[str, _Read]]:
    """Return by tag which field it is and how it is read, in the order of reading."""
    kinds: tuple[tuple[Iterable[str], _Read], ...] = (
        (_UIDS, _Reader.uid),
        (_TEXTS, _Reader.text),
        (_WORDS, _Reader.word),
        (_LISTS, _Reader.words),
        (_FLOATS, _Reader.number),
        (_INTEGERS, _Reader.integer),
        (_SHORTS, _Reader.short),
        (_VECTORS, _Reader.vector),
    )
    return {_tag_of(name): (name, read) for names, read in kinds for name in names}


@cache
def _tags() -> frozenset[int]:
    padding = map(_tag_of, _SIGNED_BY_PIXELS)
    return frozenset({*_fields(), *padding, _CHARACTER_SET, *SEQUENCES()})


@cache
def _tags_of_slices() -> frozenset[int]:
    return frozenset(map(_tag_of, _OF_SLICES))


def _nested_facts(walk: Walk, encoding: Encoding) -> _Facts:
    """Read the kept sequences; those that the slices of a series repeat, once."""
    kept = [walk.elements[tag] for tag in sorted(SEQUENCES()) if tag in walk.elements]
    encoded = b"".join(
        one.encoded for one in kept if one.vr in (None, "SQ", "UN") and not one.is_empty
    )
    if not encoded:
        return {}, ()
    if len(encoded) <= _REPEATED_BYTES:
        return _repeated_nested(encoded, encoding)
    nested = _decode_nested(encoded, encoding)
    del encoded  # it may be large, and is in `nested` once more
    return _facts_of(nested)


@lru_cache(maxsize=256)
def _repeated_nested(encoded: bytes, encoding: Encoding) -> _Facts:
    return _facts_of(_decode_nested(encoded, encoding))


def _facts_of(nested: Dataset) -> _Facts:
    unreadable: list[str] = []
    with _without_warnings():
        return sequence_facts(nested, unreadable), tuple(unreadable)


def _decode_nested(encoded: bytes, encoding: Encoding) -> Dataset:
    """Decode sequences with pydicom, all in one small data set."""
    config.settings.reading_validation_mode = config.IGNORE
    check_nesting(encoded, encoding)
    try:
        with _without_warnings():
            return read_dataset(
                io.BytesIO(encoded), encoding.implicit_vr, encoding.little_endian, len(encoded)
            )
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, struct.error,
            NotImplementedError, IndexError) as error:  # fmt: skip
        raise DataError(f"a sequence of the header cannot be read: {error}") from None


def _encodings(element: RawElement | None) -> list[str]:
    names = _ascii(element.value).split("\\") if element else [""]
    try:
        return charset.convert_encodings([name.strip() for name in names])
    except LookupError:
        return ["iso8859"]


def _ascii(raw: bytes) -> str:
    return uids.without_nul(raw.decode("iso8859").strip(" \0\t\r\n"))


def _private_facts(elements: dict[int, RawElement], encoding: Encoding) -> Iterable[PrivateFact]:
    """Yield private values whose block's creator is the one we know (PS3.5 7.8.1).

    A first block that nobody reserved (the IBSI reference objects, some de-identified series) comes
    with an empty creator: who uses it must know the manufacturer, and say so.
    """
    present = {tag >> 16 for tag in elements}
    for group, (known, offsets) in KEPT_PRIVATE.items():
        for block in range(0x10, 0x100) if group in present else ():
            reserved = elements.get(group << 16 | block)
            creator = _ascii(reserved.value) if reserved is not None else ""
            if creator != known and not (reserved is None and block == 0x10):
                continue
            for offset in offsets:
                element = elements.get(group << 16 | block << 8 | offset)
                if element is not None and element.value:
                    text = _private_text(element, encoding)
                    yield PrivateFact(creator, f"{group:04x},xx{offset:02x}", text)


def _private_text(element: RawElement, encoding: Encoding) -> str:
    binary = {"FD": "d", "FL": "f"}.get(element.vr or "")
    if binary and len(element.value) >= struct.calcsize("<" + binary):
        return repr(struct.unpack_from(encoding.order + binary, element.value)[0])
    return _ascii(element.value)
