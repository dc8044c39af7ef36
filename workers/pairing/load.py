"""Open a pair: arrays, geometry and provenance in one call, never mixed and never partial.

    from workers.pairing.load import load_pair
    pair = load_pair("archive/P1/A1/Auto-Paired")
    pair.ct.shape, pair.pet.max(), pair.meta.pet.units, pair.pet_image.GetSpacing()

A study that is paired again has its folder exchanged whole. The folder is therefore opened once,
and every file of it through that descriptor: what was opened is of one revision, whatever happens
to the path.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from workers.errors import PairDamaged
from workers.pairing.grid import Grid
from workers.pairing.pair_json import PairMeta, VolumeMeta, from_json

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 - the name that the whole field uses

PATIENCE_SECONDS = 2.0
"""An exchange takes microseconds, on NFS (two renames) milliseconds; who waits longer has no
pair.
"""
_PAUSE_SECONDS = 0.005
_ATTEMPTS = 5
"""On a machine so busy that patience passes between two tries, this many are made all the same."""


@dataclass(frozen=True)
class Pair:
    """One revision of a pair; the arrays stay readable when the study is paired again."""

    ct: npt.NDArray[np.generic]
    """(C, H, W), HU; read-only, mapped from the file."""
    pet: npt.NDArray[np.float32]
    """(C, H, W) in `units`; read-only, mapped from the file."""
    meta: PairMeta
    """pair.json."""

    @property
    def units(self) -> str:
        """Units of the PET: suvbw, suvbw_adapted (g/ml), or its DICOM Units."""
        return self.meta.pet.units

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Return the 4x4 matrix from (W, H, C, 1) indices to LPS mm."""
        return np.array(self.meta.affine)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        c, h, w = self.meta.shape
        return Grid((w, h, c), self.meta.spacing, self.meta.origin, self.meta.direction)

    @property
    def ct_image(self) -> sitk.Image:
        """A copy of the CT as a SimpleITK image at its place in the patient."""
        return self._image(self.ct)

    @property
    def pet_image(self) -> sitk.Image:
        """A copy of the PET as a SimpleITK image at its place in the patient."""
        return self._image(self.pet)

    def _image(self, array: npt.NDArray[np.generic]) -> sitk.Image:
        from workers.pairing.turned import as_image

        return as_image(array, self.grid)


def load_pair(path: Path | str) -> Pair:
    """Open the pair in a folder (Auto-Paired).

    Raises FileNotFoundError where there is none, PairDamaged where its files do not belong
    together; both only after about two seconds of trying, since a folder that is being exchanged
    may be gone for a moment, or its handle stale where another host exchanges it (NFS).
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    attempts = 0
    while True:
        attempts += 1
        try:
            return open_pair(path)
        except (OSError, PairDamaged) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            if attempts >= _ATTEMPTS and time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def open_pair(path: Path | str) -> Pair:
    """Open the pair in a folder at the first try, as `load_pair` does for as long as it takes."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_in(folder, "pair.json") as file:
            meta = from_json(file.read())
        ct = _map(folder, meta.ct, meta.shape)
        pet = _map(folder, meta.pet, meta.shape)
    finally:
        os.close(folder)
    return Pair(ct, pet, meta)


def _open_in(folder: int, name: str) -> BinaryIO:
    if "/" in name:
        raise PairDamaged(f"pair.json names a file outside the folder: {name!r}")
    return open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb")


def _map(folder: int, meta: VolumeMeta, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Map one array; its header and its size must be those that pair.json tells of."""
    with _open_in(folder, meta.file) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"npy version {version}")
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise PairDamaged(f"{meta.file} is no array: {error}") from error
        if found != shape or fortran or kind != np.dtype(meta.dtype):
            raise PairDamaged(
                f"{meta.file} holds {kind} {found}, pair.json says {meta.dtype} {shape}"
            )
        start = file.tell()
        size = os.fstat(file.fileno()).st_size
        expected = start + int(np.prod(shape)) * kind.itemsize
        if size != expected:
            raise PairDamaged(f"{meta.file} is {size} bytes long, {expected} are needed")
        return np.memmap(file, kind, "r", start, shape)
