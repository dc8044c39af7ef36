"""Everybody and everything in a phantom study, derived from two numbers.

The same numbers give the same study on every machine and in every run, so that tests, demo and
benchmarks can name an instance without keeping it.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

_NAMESPACE = uuid.UUID("6f2d1f3e-6d0a-5c0e-9a55-70e7c7160b1d")
_EPOCH = dt.datetime(2015, 1, 5, 9, 0)  # noqa: DTZ001 - DICOM times are the scanner's wall clock

HALF_LIFE_S = 6586.2
"""Fluorine-18, seconds (109.77 min, QIBA FDG-PET profile)."""


def uid(*parts: object) -> str:
    """Derive a UID of exactly 44 characters from what it identifies (PS3.5 B.2, UUID form).

    The top bit of the name-based UUID is set, so that its decimal form always has 39 digits: files
    that differ only in their numbers have the same length.
    """
    name = "/".join(str(part) for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int | 1 << 127}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A patient at the time of one study, and the injection."""

    patient_name: str
    patient_id: str
    birth_date: dt.date
    sex: str
    weight_kg: float
    height_m: float
    accession_number: str
    study_id: str
    study_start: dt.datetime
    injection: dt.datetime
    pet_start: dt.datetime
    """Start of the first bed: SeriesTime, to which START decay correction refers."""
    dose_bq: int
    lesion_suv: float

    @property
    def suv_factor(self) -> float:
        """SUVbw per Bq/ml at the series time: F = 1000 kg / (D 2^(-dt/T))."""
        elapsed = (self.pet_start - self.injection).total_seconds()
        return float(1000.0 * self.weight_kg / (self.dose_bq * 2.0 ** (-elapsed / HALF_LIFE_S)))


def identity(patient_number: int, study_number: int) -> Identity:
    """Describe the patient and the study with these numbers, both from 1."""
    if patient_number < 1 or study_number < 1:
        raise ValueError(
            f"patient and study numbers start at 1, not {patient_number} and {study_number}"
        )
    start = _EPOCH + dt.timedelta(
        days=(3 * patient_number + 91 * study_number) % 3000, minutes=7 * patient_number % 240
    )
    weight = 58.5 + 7 * patient_number % 37 - 0.5 * (study_number % 5)
    uptake = dt.timedelta(minutes=56 + (5 * patient_number + 3 * study_number) % 14)
    pet_start = start + dt.timedelta(minutes=9, seconds=14)
    return Identity(
        patient_name=f"Phantom^{patient_number}",
        patient_id=f"PHANTOM-{patient_number:04d}",
        birth_date=dt.date(1948, 3, 1) + dt.timedelta(days=431 * patient_number % 14000),
        sex="MF"[patient_number % 2],
        weight_kg=weight,
        height_m=1.56 + 0.03 * (patient_number % 11),
        accession_number=f"P{patient_number:06d}S{study_number:04d}",
        study_id=f"{study_number}",
        study_start=start,
        injection=pet_start - uptake,
        pet_start=pet_start,
        dose_bq=round(weight * (3.1e6 + 0.3e6 * (patient_number % 6)))
        + 1_000_000 * (study_number % 7),
        lesion_suv=8.0 + 0.5 * ((patient_number - 1) % 7) + 0.25 * ((study_number - 1) % 2),
    )
