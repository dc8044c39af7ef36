"""A datalist: which pairs a training script loads, split by patient.

The form is the decathlon's: {"training": [{"ct": …, "pet": …, "study": …}], "validation": […]}.
A patient is in one part alone, and stays there when others join: the part is decided by a hash of
seed and patient, not by drawing lots among those who are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from workers.errors import PairDamaged
from workers.export.writing import replacing
from workers.index.engine import MetadataIndex
from workers.index.tables import pair, study
from workers.pairing.pair_json import from_json

SUV_UNITS = ("suvbw", "suvbw_adapted")

_PAIRS_A_PAGE = 500


@dataclass(frozen=True, slots=True)
class ReadyPair:
    """One finished pair: whose, and where."""

    study: str
    patient: str
    folder: Path
    units: str


@dataclass(frozen=True, slots=True)
class Datalist:
    """The two parts, and what was left out."""

    training: tuple[ReadyPair, ...]
    validation: tuple[ReadyPair, ...]
    other_units: int
    """Pairs whose PET is not in SUV, left out unless asked for."""

    def to_json_object(self, base: Path | None = None) -> dict[str, list[dict[str, str]]]:
        """Return the decathlon's form; paths relative to `base`, else absolute."""
        return {
            "training": [_item(one, base) for one in self.training],
            "validation": [_item(one, base) for one in self.validation],
        }


def split_by_patient(
    pairs: Iterable[ReadyPair], *, validation: float, seed: int, any_units: bool = False
) -> Datalist:
    """Decide which patients validate; `validation` is the share of patients, 0 to 1. Pure."""
    parts: tuple[list[ReadyPair], list[ReadyPair]] = ([], [])
    others = 0
    for one in pairs:
        if one.units not in SUV_UNITS and not any_units:
            others += 1
            continue
        parts[_lot(seed, one.patient) < validation].append(one)
    return Datalist(tuple(parts[0]), tuple(parts[1]), others)


def ready_pairs(index: MetadataIndex, output: Path) -> Iterator[ReadyPair]:
    """Yield every finished pair whose folder below `output` can be read, ordered by study.

    Whoever has no PatientID is a patient of their own.
    """
    chosen = (
        sa.select(study.c.study, study.c["patient_ID"], pair.c.folder)
        .join(pair, pair.c.study_id == study.c.id)
        .where(pair.c.state == "ready", pair.c.folder.is_not(None))
        .order_by(study.c.study)
        .limit(_PAIRS_A_PAGE)
    )
    last = ""
    while True:
        with index.read() as connection:
            rows = connection.execute(chosen.where(study.c.study > last)).all()
        for row in rows:
            folder = output / row.folder
            try:
                units = from_json((folder / "pair.json").read_bytes()).pet.units
            except (OSError, PairDamaged):
                continue  # `check` names it
            yield ReadyPair(row.study, row.patient_ID or f" {row.study}", folder, units)
        if len(rows) < _PAIRS_A_PAGE:
            return
        last = rows[-1].study


def write_datalist(target: Path, found: Datalist, *, relative: bool = False) -> None:
    """Write a datalist as JSON; with `relative`, paths count from the folder of `target`."""
    base = target.resolve().parent if relative else None
    text = json.dumps(found.to_json_object(base), indent=1)
    with replacing(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _lot(seed: int, patient: str) -> float:
    """Return a number in [0, 1) that depends on seed and patient alone."""
    data = f"{seed}\0{patient}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def _item(one: ReadyPair, base: Path | None) -> dict[str, str]:
    folder = one.folder if base is None else Path(os.path.relpath(one.folder.resolve(), base))
    return {"ct": str(folder / "ct.npy"), "pet": str(folder / "pet.npy"), "study": one.study}
