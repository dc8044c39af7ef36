"""Write the arrays of a pair: streamed slice by slice, hashed on the way, durable when closed."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from workers.durable import fsync_file
from workers.pairing.grid import Grid

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Written:
    """One array that was written."""

    sha256: str
    minimum: float
    maximum: float
    mean: float


class _Hashing(io.RawIOBase):
    """A file that is written once, front to back, and knows its SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: npt.ArrayLike) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._hash.update(view)
        self._file.write(view)
        return len(view)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def write_npy(
    path: Path, slices: Iterable[npt.NDArray[np.floating]], shape: tuple[int, int, int], dtype: str
) -> Written:
    """Write slices (H, W) as one C-contiguous .npy of (C, H, W) that must not exist yet; fsynced.

    Integer types are rounded to the nearest value and clipped to their range.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    header = {"descr": kind.str, "fortran_order": False, "shape": shape}
    rounding = _rounding(kind)
    low, high, total, count = math.inf, -math.inf, 0.0, 0
    with open(path, "xb") as file:
        hashing = _Hashing(file)
        np.lib.format.write_array_header_1_0(hashing, header)
        for plane in slices:
            kept = np.ascontiguousarray(rounding(plane), kind)
            if kept.shape != shape[1:]:
                raise ValueError(f"a slice of {kept.shape} in an array of {shape}")
            hashing.write(kept)
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
            total += float(kept.sum(dtype=np.float64))
            count += 1
        if count != shape[0]:
            raise ValueError(f"{count} slices in an array of {shape}")
        file.flush()
        os.fsync(file.fileno())
    return Written(hashing.sha256, low, high, total / math.prod(shape))


def write_nifti(path: Path, array: npt.NDArray[np.generic], grid: Grid) -> str:
    """Write (C, H, W) as gzipped NIfTI-1 with its place as sform (RAS, mm); return its SHA-256.

    The same array gives the same bytes: no name and no time stands in the gzip header.
    """
    with open(path, "xb") as file:
        hashing = _Hashing(file)
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=3, fileobj=hashing, mtime=0
        ) as zipped:
            zipped.write(_nifti_header(array, grid))
            for plane in array:
                zipped.write(np.ascontiguousarray(plane).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return hashing.sha256


def write_bytes(path: Path, data: bytes) -> str:
    """Write a small file that must not exist yet, fsynced; return its SHA-256."""
    with open(path, "xb") as file:
        file.write(data)
    fsync_file(path)
    return hashlib.sha256(data).hexdigest()


def _rounding(
    kind: np.dtype[np.generic],
) -> Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]]:
    if kind.kind != "i":
        return lambda plane: plane
    limits = np.iinfo(kind.name)
    return lambda plane: np.clip(np.rint(plane), limits.min, limits.max)


def _nifti_header(array: npt.NDArray[np.generic], grid: Grid) -> bytes:
    """Return the 352 bytes before the voxels (nifti1.h): both forms say the same place."""
    code = {"int16": 4, "float32": 16}[array.dtype.name]
    affine = _LPS_TO_RAS @ grid.affine
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *grid.size, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, array.dtype.itemsize * 8)
    quaternion, handed = _quaternion(affine[:3, :3] / np.array(grid.spacing))
    struct.pack_into("<8f", header, 76, handed, *grid.spacing, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<2f", header, 112, 1.0, 0.0)
    struct.pack_into("<B", header, 123, 2)  # xyzt_units: mm
    struct.pack_into("<2h", header, 252, 1, 1)  # qform and sform: scanner coordinates
    struct.pack_into("<6f", header, 256, *quaternion, *affine[:3, 3])
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)


def _quaternion(rotation: npt.NDArray[np.floating]) -> tuple[tuple[float, float, float], float]:
    """Return (b, c, d) and the handedness of a direction matrix, as nifti1.h defines them."""
    handed = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    proper = rotation * np.array([1.0, 1.0, handed])
    # the eigenvector of the largest eigenvalue is the unit quaternion (Bar-Itzhack, 2000)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = proper.ravel()
    matrix = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    b, c, d, a = np.linalg.eigh(matrix / 3)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return (float(sign * b), float(sign * c), float(sign * d)), handed
