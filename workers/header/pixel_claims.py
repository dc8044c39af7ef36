"""Check what a data set claims about its pixels, before a decoder takes memory for it.

Rows, Columns and NumberOfFrames may lie, and so may the frame inside JPEG and JPEG 2000, for which
a decoder believes the codestream alone (PS3.5 8.2 asks that both agree).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.errors import BytesLengthException
from pydicom.uid import UID

from workers import limits
from workers.errors import Exceeded, PixelError, Truncated

_JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81))
"""JPEG and JPEG-LS."""
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
"""JPEG 2000 and High-Throughput JPEG 2000: one header for both."""
_NO_NUMBERS = (AttributeError, TypeError, ValueError, OverflowError, BytesLengthException)
_BITS = (1, 8, 16, 32, 64)
_ITEM = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True, slots=True)
class PixelClaims:
    """What the header says of the pixels."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    frames: int

    @property
    def frame_bits(self) -> int:
        return self.rows * self.columns * self.samples * self.bits_allocated


def check_pixels(dataset: Dataset, frame: int | None = None) -> PixelClaims:
    """Check that the pixels, or one frame, can be what the header and the codestreams claim.

    Raises
    ------
    PixelError
        A claim is missing, absurd, or none of the codestream's.
    Truncated
        There is less pixel data than claimed.
    Exceeded
        Decoded, they would take more than any real image.
    """
    claims = _claims(dataset)
    frame_bytes = (claims.frame_bits + 7) // 8
    if frame_bytes > limits.FRAME.maximum:
        raise Exceeded(limits.FRAME, frame_bytes)
    total = (claims.frame_bits * claims.frames + 7) // 8
    if total > limits.PIXELS.maximum:
        raise Exceeded(limits.PIXELS, total)
    if frame is not None and not 0 <= frame < claims.frames:
        raise PixelError(f"there is no frame {frame + 1}, there are {claims.frames}")
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    value = dataset.get("PixelData")
    if not isinstance(value, bytes):
        return claims  # float pixels are never compressed: their length is checked when decoded
    if not syntax.is_compressed or not value.startswith(_ITEM):
        if len(value) < total:
            raise Truncated(f"pixel data is cut: {len(value)} bytes, {total} are needed")
        return claims
    if _count_fragments(value) < claims.frames:
        raise Truncated(f"{claims.frames} frames are claimed, there are fewer fragments")
    if syntax in _JPEG or syntax in _JPEG_2000:  # RLE has no size of its own
        for codestream in _codestreams(value, claims.frames, frame):
            check_codestream(codestream, claims)
    return claims


@contextmanager
def decoder_failures() -> Iterator[None]:
    """Raise the panic of a decoder written in Rust (RLE) as PixelError.

    It comes as a BaseException of a class that cannot be imported, and would end a worker.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise PixelError(f"the decoder failed: {error}") from None


def check_codestream(frame: bytes, claims: PixelClaims) -> None:
    """Check that a compressed JPEG or JPEG 2000 frame is as large as the header says."""
    is_jpeg = frame.startswith(b"\xff\xd8")
    found = _jpeg_size(frame) if is_jpeg else _jpeg_2000_size(frame)
    said = (claims.columns, claims.rows, claims.samples)
    if found != said:
        raise PixelError(
            "a compressed frame of {}x{} pixels, {} samples each, where the header has {}x{}, "
            "{} samples".format(*found, *said)
        )


def _claims(dataset: Dataset) -> PixelClaims:
    try:
        claims = PixelClaims(
            int(dataset.Rows),
            int(dataset.Columns),
            int(dataset.get("SamplesPerPixel") or 1),
            int(dataset.BitsAllocated),
            int(dataset.get("NumberOfFrames") or 1),
        )
    except _NO_NUMBERS as error:
        raise PixelError(f"the size of the pixels cannot be read: {type(error).__name__}") from None
    within = (
        0 < claims.rows <= 0xFFFF
        and 0 < claims.columns <= 0xFFFF
        and claims.samples in (1, 3, 4)
        and claims.bits_allocated in _BITS
        and claims.frames > 0
    )
    if not within:
        raise PixelError(
            f"no image has {claims.frames} frames of {claims.columns}x{claims.rows} pixels, "
            f"{claims.samples} samples of {claims.bits_allocated} bits"
        )
    return claims


def _count_fragments(value: bytes) -> int:
    """Count the items behind the basic offset table (PS3.5 A.4)."""
    count, place = -1, 0
    while value[place : place + 4] == _ITEM and len(value) >= place + 8:
        place += 8 + int(struct.unpack_from("<L", value, place + 4)[0])
        count += 1
    return count


def _codestreams(value: bytes, frames: int, only: int | None) -> Iterator[bytes]:
    if only is None:
        yield from generate_frames(value, number_of_frames=frames)
    else:
        yield get_frame(value, only, number_of_frames=frames)


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Return columns, rows and components of a JPEG frame (ISO/IEC 10918-1 B.2.2)."""
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        # SOF0-15 without DHT, JPG and DAC; SOF55 is JPEG-LS
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
            return columns, rows, components
        place += 2 + int(struct.unpack_from(">H", frame, place + 2)[0])
    raise PixelError("a compressed frame without a frame header (JPEG)")


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int]:
    """Return columns, rows and components of a JPEG 2000 frame (ISO/IEC 15444-1 A.5.1)."""
    start = _codestream_start(frame)
    if frame[start : start + 4] != b"\xff\x4f\xff\x51" or len(frame) < start + 42:
        raise PixelError("a compressed frame that is neither JPEG nor JPEG 2000")
    right, bottom, left, top, wide, high, first_left, first_top, components = struct.unpack_from(
        ">8LH", frame, start + 8
    )
    if not (wide and high) or right <= left or bottom <= top:
        raise PixelError("a JPEG 2000 frame without an area")
    tiles = -(-(right - first_left) // wide) * -(-(bottom - first_top) // high)
    if tiles > limits.TILES.maximum:
        raise Exceeded(limits.TILES, tiles)
    return right - left, bottom - top, components


def _codestream_start(frame: bytes) -> int:
    """Skip the boxes of a JP2 file, which some writers leave around the codestream."""
    place = 0
    while frame[place : place + 2] != b"\xff\x4f" and len(frame) >= place + 16:
        length, kind = struct.unpack_from(">L4s", frame, place)
        head = 8
        if length == 1:
            length, head = int(struct.unpack_from(">Q", frame, place + 8)[0]), 16
        if kind == b"jp2c":
            return place + head
        if length < head:
            break
        place += length
    return place
