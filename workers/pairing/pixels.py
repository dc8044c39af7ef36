"""Read the stored pixels of one image plane, and how they become values.

Uncompressed little endian pixels are viewed in place; every other transfer syntax is pydicom's to
decode.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from workers import limits
from workers.errors import Exceeded, PairingRefused, PixelError
from workers.header.facts import FrameFacts, InstanceFacts
from workers.header.pixel_claims import PixelClaims, check_pixels, decoder_failures

Stored = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

_LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
_LOSSY = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
)
"""JPEG baseline and extended, JPEG-LS near-lossless, JPEG 2000 and HTJ2K that may lose (PS3.5 annex
A).
"""
_DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom and the decoders behind it raise on pixels that they cannot read; of bytes in
memory, an OSError is pydicom's own.
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """How stored pixels of one plane become values: stored * slope + intercept."""

    slope: float
    intercept: float
    padding: tuple[int, int] | None
    """Lowest and highest stored value that means "no image here" (PS3.3 C.7.5.1.1.2), inclusive."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One file that was read whole: its data set and the SHA-256 of its bytes."""

    dataset: Dataset
    sha256: str


def open_file(path: Path, facts: InstanceFacts) -> OpenFile:
    """Read one Part 10 file. Raises PixelError where it is not the instance that `facts` tell
    of, Exceeded where it is too large to be read whole.
    """
    size = path.stat().st_size
    if size > limits.WHOLE_FILE.maximum:
        raise Exceeded(limits.WHOLE_FILE, size)
    data = path.read_bytes()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        uid, rows, columns = dataset.get("SOPInstanceUID"), dataset.Rows, dataset.Columns
    except _DECODING_ERRORS as error:
        raise PixelError(f"cannot be read: {_brief(error)}") from error
    if uid != facts.sop_instance_uid:
        raise PixelError(f"the file holds {uid}, not {facts.sop_instance_uid} as recorded")
    if (rows, columns) != (facts.rows, facts.columns):
        raise PixelError(
            f"the file holds {columns}x{rows} pixels, not {facts.columns}x{facts.rows} as recorded"
        )
    return OpenFile(dataset, hashlib.sha256(data).hexdigest())


def stored_pixels(dataset: Dataset, frame: int | None) -> Stored:
    """Return the stored values of one plane, (rows, columns); read only where they are a view.

    Raises PixelError (no pixels, colour, a compression that nothing here decodes), Truncated, and
    Exceeded where they claim to be larger than any real image.
    """
    if "PixelData" not in dataset:
        raise PixelError("no pixel data")
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    try:
        return _decoded(dataset, syntax, frame or 0)
    except _DECODING_ERRORS as error:
        name = UID(syntax).name
        raise PixelError(f"pixels in {name} cannot be decoded: {_brief(error)}") from error


def _decoded(dataset: Dataset, syntax: str, frame: int) -> Stored:
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise PixelError(f"{dataset.SamplesPerPixel} samples a pixel: colour, not measured values")
    claims = check_pixels(dataset, frame)
    if syntax in _LITTLE_ENDIAN and claims.bits_allocated in (8, 16, 32):
        return _native(dataset, claims, frame)
    with decoder_failures():
        pixels: Stored = pixel_array(dataset, index=frame, raw=True)
    expected = (claims.rows, claims.columns)
    if pixels.shape != expected:
        raise PixelError(f"decoded pixels have the shape {pixels.shape}, not {expected}")
    return pixels


def scale_of(facts: InstanceFacts, frame: int | None, *, real_world: bool = True) -> Scale:
    """Return how stored values of one plane become values.

    Where an enhanced frame has a real-world value mapping, its units belong to that mapping (PS3.3
    C.7.6.16.2.11): it is used with `real_world`. Without, the rescale alone is, for an SUV factor
    that already holds the ratio of both (`judge_suv`; an absent rescale counts as 1 and 0 there).

    Raises PairingRefused without RescaleSlope and RescaleIntercept, or where they are no finite
    numbers: what stored values mean is never guessed.
    """
    per_frame = facts.frames[frame] if frame is not None else FrameFacts()
    slope, intercept = per_frame.rescale_slope, per_frame.rescale_intercept
    slope = facts.rescale_slope if slope is None else slope
    intercept = facts.rescale_intercept if intercept is None else intercept
    if per_frame.real_world_value_slope is not None:
        if real_world:
            slope = per_frame.real_world_value_slope
            intercept = per_frame.real_world_value_intercept
        elif slope is None and intercept is None:
            slope, intercept = 1.0, 0.0
    return Scale(
        _finite(facts, "RescaleSlope", slope),
        _finite(facts, "RescaleIntercept", intercept),
        _padding(facts),
    )


def is_lossy(transfer_syntax_uid: str) -> bool:
    """Tell whether a transfer syntax may have changed the measured values."""
    return transfer_syntax_uid in _LOSSY


def padded(stored: Stored, scale: Scale) -> npt.NDArray[np.bool_] | None:
    """Mark the pixels that are padding; None where there are none.

    A padding value that would be an ordinary value of the image (0 HU, say) is believed only where
    the four corners of the plane carry it: real padding surrounds the round field of view.
    """
    if scale.padding is None:
        return None
    low, high = scale.padding
    mask = (stored == low) if low == high else (stored >= low) & (stored <= high)
    if (
        high * scale.slope + scale.intercept > -1000
        and not mask[:: len(mask) - 1 or 1][:, [0, -1]].all()
    ):
        return None
    return mask if mask.any() else None


def _finite(facts: InstanceFacts, keyword: str, value: float | None) -> float:
    if keyword in facts.unreadable or (value is not None and not math.isfinite(value)):
        raise PairingRefused(f"{keyword} of a slice is not a number: its values are not known")
    if value is None:
        raise PairingRefused(f"a slice without {keyword}: what its values mean is not known")
    return value


def _padding(facts: InstanceFacts) -> tuple[int, int] | None:
    value = facts.pixel_padding_value
    if value is None:
        return None
    limit = facts.pixel_padding_range_limit
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _native(dataset: Dataset, claims: PixelClaims, frame: int) -> Stored:
    rows, columns, bits = claims.rows, claims.columns, claims.bits_allocated
    signed = dataset.get("PixelRepresentation", 0) == 1
    size = claims.frame_bits // 8
    kind = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    data: bytes = dataset.PixelData
    pixels: Stored = np.frombuffer(data, kind, rows * columns, size * frame).reshape(rows, columns)
    used = int(dataset.get("BitsStored") or bits)
    if not 0 < used <= bits or dataset.get("HighBit", used - 1) != used - 1:
        raise PixelError(
            f"BitsStored {used}, HighBit {dataset.get('HighBit')}: unknown packing of pixels"
        )
    unused = bits - used
    return (pixels << unused) >> unused if unused else pixels


def _brief(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words[:200] or type(error).__name__
