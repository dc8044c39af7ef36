"""Which phantom study: its numbers, its size, how the patient lies, how its pixels are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from workers.phantom.anatomy import Point
from workers.phantom.numbers import Identity, identity, uid

Size = Literal["tiny", "small", "whole-body", "total-body"]
Orientation = Literal["HFS", "HFP", "FFS", "FFP"]

TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
)
"""What a phantom can be written in; the pixels are the same in each."""


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """One study; equal specs give equal bytes.

    UIDs derive from the numbers, the size and the orientation, not from the transfer syntax or the
    overrides: the same instance can be made in two encodings, or under two patients.
    """

    patient_number: int = 1
    study_number: int = 1
    size: Size = "small"
    orientation: Orientation = "HFS"
    transfer_syntax_uid: str = ExplicitVRLittleEndian
    accession_number: str | None = None
    patient_id: str | None = None
    references_ct: bool = True
    """The PET names its CT as scanners do (related series, attenuation correction method)."""

    def __post_init__(self) -> None:
        if self.size not in get_args(Size):
            raise ValueError(f"no phantom of size {self.size!r}: {', '.join(get_args(Size))}")
        if self.orientation not in get_args(Orientation):
            raise ValueError(
                f"no patient position {self.orientation!r}: {', '.join(get_args(Orientation))}"
            )
        if self.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            raise ValueError(
                f"a phantom cannot be written in {self.transfer_syntax_uid}; it can in "
                + ", ".join(f"{syntax} ({syntax.name})" for syntax in TRANSFER_SYNTAXES)
            )

    @property
    def identity(self) -> Identity:
        """Patient, study and injection of these numbers."""
        return identity(self.patient_number, self.study_number)

    @property
    def layout(self) -> Layout:
        """Grids of this size."""
        return LAYOUTS[self.size]

    def uid(self, *parts: object) -> str:
        """Derive a UID of something in this study."""
        numbers = (self.patient_number, self.study_number, self.size, self.orientation)
        return uid("study", *numbers, *parts)


@dataclass(frozen=True, slots=True)
class AxialGrid:
    """A stack of square axial slices; lengths in mm."""

    matrix: int
    pixel_mm: float
    slices: int
    step_mm: float
    centre_mm: Point
    """Centre of the stack, LPS."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a size is made of."""

    scale: float
    """Of the body, 1 is an adult."""
    pet: AxialGrid
    ct: AxialGrid
    lesion_centre_mm: Point
    lesion_radius_mm: float
    coarse_mm: float
    """Sampling of scouts and MIPs, and at most of reformatted images along z."""
    bed_mm: float
    """Axial length of one PET bed position."""
    mip_views: int
    reformats: int
    """Planes in each reformatted series."""


# No image has fewer than 32 rows or columns: OpenJPEG's encoder refuses smaller ones.
LAYOUTS: dict[Size, Layout] = {
    "tiny": Layout(
        scale=0.5,
        pet=AxialGrid(32, 6.8, 8, 10.0, (0.4, 0.7, 200.0)),
        ct=AxialGrid(48, 4.5, 12, 8.0, (0.0, 0.0, 201.0)),
        lesion_centre_mm=(-40.0, 1.0, 200.0),
        lesion_radius_mm=29.0,
        coarse_mm=2.5,
        bed_mm=40.0,
        mip_views=4,
        reformats=3,
    ),
    "small": Layout(
        scale=0.5,
        pet=AxialGrid(64, 4.0, 80, 6.2, (0.6, -0.9, 152.5)),
        ct=AxialGrid(128, 2.1, 84, 6.0, (0.0, 0.0, 153.3)),
        lesion_centre_mm=(-41.0, 1.5, 205.0),
        lesion_radius_mm=18.0,
        coarse_mm=2.5,
        bed_mm=100.0,
        mip_views=12,
        reformats=12,
    ),
    "whole-body": Layout(
        scale=1.0,
        pet=AxialGrid(200, 4.07283, 600, 1.65, (1.2, -1.8, 305.0)),
        ct=AxialGrid(512, 0.976562, 600, 1.7, (0.0, 0.0, 306.3)),
        lesion_centre_mm=(-82.0, 3.0, 410.0),
        lesion_radius_mm=26.0,
        coarse_mm=4.0,
        bed_mm=150.0,
        mip_views=36,
        reformats=40,
    ),
    "total-body": Layout(
        scale=1.0,
        pet=AxialGrid(440, 1.65, 645, 1.65, (1.2, -1.8, 275.0)),
        ct=AxialGrid(512, 0.976562, 1000, 1.1, (0.0, 0.0, 276.3)),
        lesion_centre_mm=(-82.0, 3.0, 410.0),
        lesion_radius_mm=26.0,
        coarse_mm=4.0,
        bed_mm=1100.0,
        mip_views=36,
        reformats=40,
    ),
}
