"""A generated PET/CT study that behaves like a real one, with every HU and SUV known.

One study holds what a Gradient delivery holds: SCOUT, CT IMAGES, two REFORMATTED, PET NAC, PET AC
and MIP, in one frame of reference. Instances are made when they are asked for, one at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from workers.phantom import headers
from workers.phantom.anatomy import Body, Organ, Point, Quantity, adult
from workers.phantom.encoding import complete, write
from workers.phantom.many import write_many
from workers.phantom.pictures import CT_EDGE_MM, PET_EDGE_MM, Camera
from workers.phantom.spec import TRANSFER_SYNTAXES, PhantomSpec

__all__ = [
    "SERIES_NAMES",
    "TRANSFER_SYNTAXES",
    "PhantomSeries",
    "PhantomSpec",
    "PhantomStudy",
    "PhantomTruth",
    "instance",
    "make_study",
    "write_many",
    "write_study",
]

SERIES_NAMES = (
    "SCOUT",
    "CT IMAGES",
    "REFORMATTED COR",
    "REFORMATTED SAG",
    "PET NAC",
    "PET AC",
    "MIP",
)

LESION_HU = 60.0
LUNG_HU, LUNG_SUV = -780.0, 0.5


@dataclass(frozen=True, slots=True)
class PhantomTruth:
    """What is known of the study without looking at its images; lengths in mm, LPS."""

    sphere_centre_mm: Point
    sphere_radius_mm: float
    sphere_hu: float
    sphere_suv: float
    background_hu: float
    """Of the lung round the sphere."""
    background_suv: float
    suv_factor: float
    """SUVbw per Bq/ml: multiplies stored * slope + intercept of PET AC."""
    body: Body
    ct_edge_mm: float = CT_EDGE_MM
    pet_edge_mm: float = PET_EDGE_MM
    """An organ's values are exact deeper than half an edge below its surface."""

    @property
    def organs(self) -> tuple[Organ, ...]:
        """All organs in painting order: later ones lie over earlier ones."""
        return self.body.organs

    def hu_at(self, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """HU at points of shape (n, 3)."""
        return self.body.at(Quantity.HU, points_mm, edge_mm=self.ct_edge_mm)

    def suv_at(self, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """SUVbw at points of shape (n, 3)."""
        return self.body.at(Quantity.SUV, points_mm, edge_mm=self.pet_edge_mm)


@dataclass(frozen=True, slots=True)
class PhantomSeries:
    """One series; instances are numbered from 0 here and from 1 in InstanceNumber."""

    name: str
    series_uid: str
    modality: str
    count: int
    _name: Callable[[int], str] = field(repr=False, compare=False)
    _make: Callable[[int], Dataset] = field(repr=False, compare=False)

    def dataset(self, i: int) -> Dataset:
        """Make instance `i` (0 to count - 1) with its file meta information."""
        return self._make(self._checked(i))

    def sop_instance_uid(self, i: int) -> str:
        """Name instance `i` without making it."""
        return self._name(self._checked(i))

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.count:
            raise IndexError(f"{self.name} has instances 0 to {self.count - 1}, not {i}")
        return i


@dataclass(frozen=True, slots=True)
class PhantomStudy:
    """A study whose instances are made on demand."""

    spec: PhantomSpec
    study_uid: str
    series: tuple[PhantomSeries, ...]
    truth: PhantomTruth

    @property
    def count(self) -> int:
        """Instances in all series."""
        return sum(series.count for series in self.series)

    def named(self, name: str) -> PhantomSeries:
        """The series of this name (SERIES_NAMES)."""
        for series in self.series:
            if series.name == name:
                return series
        raise KeyError(f"no series {name!r} in a phantom study: {', '.join(SERIES_NAMES)}")


def make_study(spec: PhantomSpec) -> PhantomStudy:
    """Describe a study; nothing is drawn before `PhantomSeries.dataset` asks for it."""
    truth = _truth(spec)
    camera = Camera(spec, truth.body)
    series = tuple(_series(spec, plan, camera) for plan in _plans(spec))
    return PhantomStudy(spec, spec.uid(), series, truth)


def write_study(
    spec: PhantomSpec,
    folder: Path,
    *,
    only: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomStudy:
    """Write `folder/<series name>/<nnnn>.dcm`, nnnn being InstanceNumber; return the whole study.

    `only` limits what is written to the series named; `progress` is called with (done, total).
    """
    study = make_study(spec)
    chosen = study.series if only is None else tuple(study.named(name) for name in only)
    total, done = sum(series.count for series in chosen), 0
    for series in chosen:
        target = Path(folder) / series.name
        target.mkdir(parents=True, exist_ok=True)
        for index in range(series.count):
            write(series.dataset(index), target / f"{index + 1:04d}.dcm")
            done += 1
            if progress is not None:
                progress(done, total)
    return study


def instance(spec: PhantomSpec, series: str, index: int) -> Dataset:
    """Make one instance, numbered from 0."""
    return make_study(spec).named(series).dataset(index)


def _truth(spec: PhantomSpec) -> PhantomTruth:
    layout, who = spec.layout, spec.identity
    radius = layout.lesion_radius_mm
    lesion = Organ(
        "lesion", layout.lesion_centre_mm, (radius, radius, radius), LESION_HU, who.lesion_suv
    )
    return PhantomTruth(
        sphere_centre_mm=layout.lesion_centre_mm,
        sphere_radius_mm=radius,
        sphere_hu=LESION_HU,
        sphere_suv=who.lesion_suv,
        background_hu=LUNG_HU,
        background_suv=LUNG_SUV,
        suv_factor=who.suv_factor,
        body=adult(layout.scale, lesion),
    )


def _plans(spec: PhantomSpec) -> tuple[headers.SeriesPlan, ...]:
    layout, who = spec.layout, spec.identity
    scout, ct = (who.study_start + dt.timedelta(minutes=after) for after in (1, 3))
    rows: tuple[tuple[str, str, int, str, int, dt.datetime, tuple[str, ...]], ...] = (
        ("SCOUT", "SCOUT", 1, "CT", 2, scout, ("ORIGINAL", "PRIMARY", "LOCALIZER")),
        ("CT IMAGES", headers.CT_DESCRIPTION, 2, "CT", layout.ct.slices, ct, _AXIAL),
        ("REFORMATTED COR", "REFORMATTED", 200, "CT", layout.reformats, ct, _REFORMATTED),
        ("REFORMATTED SAG", "REFORMATTED", 201, "CT", layout.reformats, ct, _REFORMATTED),
        ("PET NAC", "PET NAC", 3, "PT", layout.pet.slices, who.pet_start, ("ORIGINAL", "PRIMARY")),
        ("PET AC", "PET AC", 4, "PT", layout.pet.slices, who.pet_start, ("ORIGINAL", "PRIMARY")),
        ("MIP", "MIP", 400, "PT", layout.mip_views, who.pet_start, ("DERIVED", "PRIMARY")),
    )
    return tuple(
        headers.SeriesPlan(name, text, number, modality, count, spec.uid(name), start, kind)
        for name, text, number, modality, count, start, kind in rows
    )


_AXIAL = ("ORIGINAL", "PRIMARY", "AXIAL")
_REFORMATTED = ("DERIVED", "SECONDARY", "REFORMATTED")


def _series(spec: PhantomSpec, plan: headers.SeriesPlan, camera: Camera) -> PhantomSeries:
    name = partial(headers.instance_uid, spec, plan)
    make = partial(_instance, spec, plan, camera)
    return PhantomSeries(plan.name, plan.series_uid, plan.modality, plan.count, name, make)


def _instance(spec: PhantomSpec, plan: headers.SeriesPlan, camera: Camera, index: int) -> Dataset:
    shots = {
        "SCOUT": camera.scout,
        "CT IMAGES": camera.ct,
        "REFORMATTED COR": camera.coronal,
        "REFORMATTED SAG": camera.sagittal,
        "PET NAC": camera.pet_nac,
        "PET AC": camera.pet_ac,
        "MIP": camera.mip,
    }
    picture = shots[plan.name](index)
    bed = _bed(spec, picture.plane.zs[0]) if plan.name.startswith("PET") else 0
    acquired = plan.start + _delay(plan, index, bed)
    ds = headers.common(spec, plan, index, acquired)
    headers.image(ds, picture)
    if plan.modality == "CT":
        headers.ct(ds, padded=plan.name == "CT IMAGES")
    else:
        headers.pet(ds, spec, plan, index, bed)
    return complete(ds, picture.pixels, spec.transfer_syntax_uid)


def _bed(spec: PhantomSpec, z_mm: float) -> int:
    """Bed position of a slice, from 0 at the thighs: the bladder is scanned while it is empty."""
    pet = spec.layout.pet
    lowest = pet.centre_mm[2] - pet.step_mm * (pet.slices - 1) / 2.0
    return int((z_mm - lowest) / spec.layout.bed_mm)


def _delay(plan: headers.SeriesPlan, index: int, bed: int) -> dt.timedelta:
    """Time from the series' start to a slice: a CT takes 20 s, a PET bed its frame."""
    if plan.name == "CT IMAGES":
        return dt.timedelta(milliseconds=20_000 * index // plan.count)
    return dt.timedelta(seconds=bed * (headers.FRAME_SECONDS + headers.BED_MOVE_SECONDS))
