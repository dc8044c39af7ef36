"""Tell a duplicate, a variant and a conflict apart: two instances with one SOPInstanceUID.

Senders re-encode: DCMTK's dcmsend changes nearly every file's bytes and not one element. So equal
data-set bytes are a duplicate, and so are equal elements under another encoding (group lengths,
padding, lengths of sequences, byte order, lossless transfer syntaxes aside). Equal pixels under
another header are a variant. All else is a conflict.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom import config, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_sequence
from pydicom.pixels.utils import iter_pixels
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from workers.errors import DataError
from workers.header.pixel_claims import check_pixels, decoder_failures
from workers.header.read import check_whole

_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_TRAILING_PADDING = 0xFFFCFFFC
_SIGNATURES = 0xFFFAFFFA
_ITEM_HEAD = b"\xfe\xff\x00\xe0"
# what decoding to another syntax may rightly change (PS3.5 8.2)
_OF_SYNTAX = frozenset({0x00280004, 0x00280006})
_LOSSLESS = frozenset(
    {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.202",
        "1.2.840.10008.1.2.5",
    }
)
_MOST_TAGS = 50
_NUMBER_CODES = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}
# PS3.5 6.2: spaces mean nothing on both sides of a value, at its end, at the end of the only value
_PADDED_VRS = frozenset({"AE", "CS", "DS", "IS", "LO", "SH"})
_TRAILED_VRS = frozenset({"AS", "DA", "DT", "PN", "TM", "UC", "UI"})
_SINGLE_VRS = frozenset({"LT", "ST", "UR", "UT"})
_TEXT_VRS = _PADDED_VRS | _TRAILED_VRS | _SINGLE_VRS
_READ_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, struct.error,
    RuntimeError, MemoryError, zlib.error, InvalidDicomError,
    BytesLengthException,
)  # fmt: skip
"""What damaged files and the decoders of pixels raise; errors of the system are none of these."""


class Likeness(StrEnum):
    DUPLICATE = "duplicate"
    VARIANT = "variant"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two files with one SOPInstanceUID are to each other."""

    likeness: Likeness
    reason: str
    changed: tuple[str, ...] = ()
    """Tags that differ, "(gggg,eeee)", nested ones with their path; no values."""


def compare_files(kept: Path, other: Path) -> Comparison:
    """Compare two files element by element, and their pixels.

    What cannot be compared (an element or compression that cannot be read, or more than a limit
    allows) is a conflict, never a guess.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd files are compared, not complained about
            first, second = _read(kept), _read(other)
            changed = tuple(_differences(first, second))
            pixels = _same_pixels(first, second)
    except OSError as error:
        if error.errno is not None:
            raise  # of the system; pydicom's own have no number
        return Comparison(Likeness.CONFLICT, f"they cannot be compared: {error}")
    except DataError as error:
        return Comparison(Likeness.CONFLICT, f"they cannot be compared: {error}")
    except _READ_ERRORS as error:
        return Comparison(Likeness.CONFLICT, f"they cannot be compared: {type(error).__name__}")
    recoded = first.file_meta.TransferSyntaxUID != second.file_meta.TransferSyntaxUID
    if recoded and pixels is True:
        changed = tuple(tag for tag in changed if tag not in _tags_of_syntax())
    if not changed and pixels in (True, None):
        return Comparison(Likeness.DUPLICATE, "equal elements, encoded differently")
    if pixels is True:
        listed = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
        return Comparison(Likeness.VARIANT, f"equal pixels, other header: {listed}", changed)
    what = "no pixels to compare and other elements" if pixels is None else "other pixels"
    return Comparison(Likeness.CONFLICT, f"{what} under the same SOPInstanceUID", changed)


def _tags_of_syntax() -> frozenset[str]:
    return frozenset(_shown(BaseTag(tag)) for tag in _OF_SYNTAX)


def _read(path: Path) -> FileDataset:
    config.settings.reading_validation_mode = config.IGNORE
    with open(path, "rb") as file:
        check_whole(file)
        file.seek(0)
        dataset = dcmread(file)
    if not dataset:
        raise DataError("empty data set")
    return dataset


def _differences(first: Dataset, second: Dataset, path: str = "") -> Iterator[str]:
    """Yield the tags whose values differ, at most fifty at each level."""
    found = 0
    for tag in sorted(set(first.keys()) | set(second.keys())):
        if tag.element == 0 or tag in _PIXEL_TAGS or tag in (_TRAILING_PADDING, _SIGNATURES):
            continue
        name = path + _shown(tag)
        if tag not in first or tag not in second:
            present = first if tag in first else second
            if _is_empty(present, tag) and path:
                continue
            yield name
            found += 1
        else:
            inner = list(_element_differences(first, second, tag, name))
            yield from inner
            found += len(inner)
        if found >= _MOST_TAGS:
            return


def _is_empty(dataset: Dataset, tag: BaseTag) -> bool:
    return not dataset.get_item(tag).value


def _element_differences(first: Dataset, second: Dataset, tag: BaseTag, name: str) -> Iterator[str]:
    one, other = _items(first, tag), _items(second, tag)
    if one is not None and other is not None:
        if len(one) != len(other):
            yield name
            return
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, f"{name}[{number}].")
    elif one is not None or other is not None or not _equal_values(first, second, tag):
        yield name


def _items(dataset: Dataset, tag: BaseTag) -> list[Dataset] | None:
    """Return the items of a sequence however it is encoded, None for any other element."""
    raw = dataset.get_item(tag)
    if not isinstance(raw, RawDataElement):
        value = raw.value
        return list(value) if isinstance(value, Sequence) else None
    known = dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
    if raw.VR not in (None, "SQ", "UN") or not isinstance(raw.value, bytes | None):
        return None
    if not raw.value:
        return [] if known or raw.VR == "SQ" else None
    if raw.VR == "SQ" or known or raw.value.startswith(_ITEM_HEAD):
        implicit = raw.VR != "SQ" if raw.VR == "UN" else raw.is_implicit_VR
        data = DicomBytesIO(raw.value)
        return list(
            read_sequence(
                data, implicit, raw.is_little_endian, len(raw.value), dataset._character_set
            )
        )
    return None


def _equal_values(first: Dataset, second: Dataset, tag: BaseTag) -> bool:
    """Compare two plain values: text without its padding, all else byte for byte."""
    one, other = first.get_item(tag), second.get_item(tag)
    vr = next((e.VR for e in (one, other) if e.VR not in (None, "UN")), None)
    if vr is None:
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    left, right = _bytes(first, tag), _bytes(second, tag)
    if vr in _TEXT_VRS:
        return _unpadded(left, vr) == _unpadded(right, vr)
    if abs(len(left) - len(right)) == 1:  # an odd length and its padding byte (PS3.5 7.1.1)
        longer, shorter = (left, right) if len(left) > len(right) else (right, left)
        return longer[:-1] == shorter and longer[-1] in b" \0"
    return left == right


def _unpadded(value: bytes, vr: str) -> list[bytes]:
    """Return the values of an element without the padding that writers add and drop."""
    whole = value.rstrip(b" \0")
    if vr in _SINGLE_VRS:
        return [whole]
    parts = whole.split(b"\\")
    if vr in _PADDED_VRS:
        return [part.strip(b" \0") for part in parts]
    return [part.rstrip(b" \0") for part in parts]


def _bytes(dataset: Dataset, tag: BaseTag) -> bytes:
    """Return a value's bytes as little endian would write them."""
    raw = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and (raw.is_little_endian or raw.VR in _TEXT_VRS):
        return raw.value or b""
    element = dataset[tag]
    if isinstance(element.value, bytes):
        swapped = element.VR == "OW" and isinstance(raw, RawDataElement)
        return _swapped(element.value) if swapped else element.value
    values = element.value if element.VM > 1 else [element.value]
    if element.VR == "AT":
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in values)
    code = _NUMBER_CODES.get(element.VR)
    if code is not None:
        return struct.pack(f"<{element.VM}{code}", *(values if element.VM else ()))
    return b"\\".join(_text_bytes(value) for value in values if value is not None)


def _swapped(words: bytes) -> bytes:
    """Exchange the two bytes of each word."""
    both = bytearray(words)
    both[0::2], both[1::2] = words[1::2], words[0::2]
    return bytes(both)


def _text_bytes(value: object) -> bytes:
    original = getattr(value, "original_string", None) or str(value)
    return original if isinstance(original, bytes) else original.encode("iso8859", "replace")


def _same_pixels(first: FileDataset, second: FileDataset) -> bool | None:
    """Tell whether the pixels are equal; None where neither has any."""
    present = [tag for tag in _PIXEL_TAGS if tag in first or tag in second]
    if not present:
        return None
    if any((tag in first) != (tag in second) for tag in present):
        return False
    one, other = first.file_meta.TransferSyntaxUID, second.file_meta.TransferSyntaxUID
    if all(_equal_values(first, second, BaseTag(tag)) for tag in present) and (
        one == other or not (one.is_compressed or other.is_compressed)
    ):
        return True
    if not {str(one), str(other)} <= _LOSSLESS:
        return False
    if one == other and not one.is_compressed:
        return False
    if check_pixels(first).frames != check_pixels(second).frames:
        return False
    # one frame of each at a time: both whole would be gigabytes
    pairs = zip(iter_pixels(first), iter_pixels(second), strict=True)
    with decoder_failures():
        return all(left.shape == right.shape and (left == right).all() for left, right in pairs)


def _shown(tag: BaseTag) -> str:
    return f"({tag.group:04X},{tag.element:04X})"
