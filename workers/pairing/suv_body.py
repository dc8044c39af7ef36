"""Body normalisers of SUV types, and the checks of weight, dose and half-life."""

from __future__ import annotations

import re
from dataclasses import dataclass

WEIGHTS_KG = (0.001, 999.0)
"""From a mouse's leg to more than any patient."""
SIZES_M = (0.01, 3.0)
"""Centimetres are not recognised: 175 is refused."""
HIGHEST_BQ = 1e12
GRAMS_FROM = 1000.0
MCI_BELOW = 30.0
MBQ_BELOW = 1e4
HALF_LIFE_TOLERANCE = 0.02
LONGEST_HALF_LIFE = 1e9
"""Thirty years: no tracer has a longer one."""
# physical half-lives in seconds (DDEP / NuDat); the key is symbol and mass number
_HALF_LIVES = {
    "C11": 1221.8, "N13": 597.9, "O15": 122.2, "F18": 6586.2, "CU62": 580.4, "CU64": 45_721.0,
    "GA68": 4062.6, "RB82": 76.4, "ZR89": 282_276.0, "Y86": 53_064.0, "Y90": 230_550.0,
    "I124": 360_806.0, "BR76": 58_320.0, "SC44": 14_292.0, "CO55": 63_108.0, "TB152": 63_000.0,
    "TC99": 21_624.0, "IN111": 242_326.0, "LU177": 573_696.0, "I123": 47_605.0, "I131": 693_377.0,
}  # fmt: skip
# SNOMED codes of CID 18 and 4020 where a header has no meaning beside the code
_SNOMED = {
    "C-111A1": "F18", "C-131A3": "GA68", "C-105A1": "C11", "C-107A1": "N13", "C-B1038": "O15",
    "C-159A2": "RB82", "C-127A2": "CU64", "C-168A4": "ZR89", "C-114A5": "I124", "C-163AA": "TC99",
    "C-145A4": "IN111", "C-114A4": "I123", "C-114A6": "I131",
}  # fmt: skip
_ELEMENTS = {
    "FLUORINE": "F", "FLUOR": "F", "GALLIUM": "GA", "CARBON": "C", "NITROGEN": "N", "OXYGEN": "O",
    "RUBIDIUM": "RB", "COPPER": "CU", "ZIRCONIUM": "ZR", "IODINE": "I", "YTTRIUM": "Y",
    "TECHNETIUM": "TC", "INDIUM": "IN", "LUTETIUM": "LU", "SCANDIUM": "SC", "BROMINE": "BR",
    "COBALT": "CO", "TERBIUM": "TB",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """A number that may be used, what was adapted to get it, or why not."""

    value: float | None
    adaptation: str = ""
    refusal: str = ""
    overridden: bool = False
    """The number was recorded by a person for this study."""


def check_weight(weight: float | None, override: float | None) -> Checked:
    """Return the weight in kg; grams are recognised, a missing weight is never invented."""
    if override is not None:
        if not WEIGHTS_KG[0] <= override <= WEIGHTS_KG[1]:
            return Checked(None, refusal=f"the recorded weight of {override:g} kg is none")
        told = f"weight {override:g} kg as recorded for this study"
        return Checked(override, adaptation=told, overridden=True)
    if weight is None:
        return Checked(None, refusal="PatientWeight is absent")
    if not WEIGHTS_KG[0] <= weight <= WEIGHTS_KG[1] * 1000:
        return Checked(None, refusal=f"PatientWeight is {weight:g}")
    if weight >= GRAMS_FROM:
        return Checked(weight / 1000.0, adaptation=f"PatientWeight {weight:g} read as grams")
    return Checked(weight)


def check_dose(
    dose: float | None, override: float | None, *, enhanced: bool, dose_is_bq: bool
) -> Checked:
    """Return the dose in Bq: classic headers give Bq, Enhanced PET gives MBq (PS3.3 C.8.22.4)."""
    if override is not None:
        if not 0 < override <= HIGHEST_BQ:
            return Checked(None, refusal=f"the recorded dose of {override:g} Bq is none")
        told = f"dose {override:g} Bq as recorded for this study"
        return Checked(override, adaptation=told, overridden=True)
    if dose is None:
        return Checked(None, refusal="RadionuclideTotalDose is absent")
    if not 0 < dose <= HIGHEST_BQ:
        return Checked(None, refusal=f"RadionuclideTotalDose is {dose:g}")
    if dose_is_bq:
        return Checked(dose)
    if enhanced:
        if dose >= MBQ_BELOW:
            return Checked(dose, adaptation=f"RadionuclideTotalDose {dose:g} read as Bq, not MBq")
        return Checked(dose * 1e6)
    if dose < MCI_BELOW:
        return Checked(
            None, refusal=f"RadionuclideTotalDose is {dose:g}: too small for MBq, perhaps mCi"
        )
    if dose < MBQ_BELOW:
        return Checked(dose * 1e6, adaptation=f"RadionuclideTotalDose {dose:g} read as MBq")
    return Checked(dose)


def check_half_life(half_life: float | None, nuclide: str) -> Checked:
    """Return the half-life in s as the header gives it, with a warning off the nuclide's own."""
    if half_life is None:
        return Checked(None, refusal="RadionuclideHalfLife is absent")
    if not 0 < half_life <= LONGEST_HALF_LIFE:
        return Checked(None, refusal=f"RadionuclideHalfLife is {half_life:g}")
    name = nuclide_of(nuclide)
    known = _HALF_LIVES.get(name or "")
    if known and abs(half_life / known - 1) > HALF_LIFE_TOLERANCE:
        return Checked(
            half_life,
            adaptation=f"RadionuclideHalfLife {half_life:g} s, but {name} has {known:g} s:"
            " computed with the header's",
        )
    return Checked(half_life)


def nuclide_of(text: str) -> str | None:
    """Read a radionuclide ("^18^Fluorine", "F^18^[^18^Fluorine]", "18F", C-111A1) as "F18"."""
    if text.strip().upper() in _SNOMED:
        return _SNOMED[text.strip().upper()]
    plain = text.upper()
    for name, symbol in _ELEMENTS.items():
        plain = plain.replace(name, symbol)
    plain = re.sub(r"[\^\-\s]", "", plain)
    names = [f"{symbol}{mass}" for mass, symbol in re.findall(r"(\d{2,3})M?([A-Z]{1,2})", plain)]
    names += [f"{symbol}{mass}" for symbol, mass in re.findall(r"([A-Z]{1,2})(\d{2,3})", plain)]
    return next((name for name in names if name in _HALF_LIVES), None)


def body_grams(kind: str, weight_kg: float, size_m: float | None, sex: str) -> Checked:
    """Return what an SUV type divides the dose by, in g (cm2 for BSA), as PS3.16 CID 85 defines it.

    SUVType O of PatientSex takes the mean of the male and the female value (IBSI SUV).
    """
    if size_m is None or not SIZES_M[0] <= size_m <= SIZES_M[1]:
        what = "is absent" if size_m is None else f"is {size_m:g}"
        return Checked(None, refusal=f"SUVType {kind} needs PatientSize, which {what}")
    cm = size_m * 100.0
    if kind == "BSA":  # Du Bois
        return Checked(weight_kg**0.425 * cm**0.725 * 0.007184 * 1e4)
    values = _by_sex(kind, weight_kg, cm)
    if values is None:
        return Checked(None, refusal=f"SUVType {kind} is not known")
    male, female = values
    adaptation = ""
    if sex == "M":
        chosen = male
    elif sex == "F":
        chosen = female
    elif sex == "O":
        chosen = (male + female) / 2
        adaptation = f"PatientSex O: mean of the male and the female {kind}"
    else:
        what = f"is {sex!r}" if sex else "is absent"
        return Checked(None, refusal=f"SUVType {kind} needs PatientSex, which {what}")
    if chosen <= 0:
        return Checked(None, refusal=f"SUVType {kind} gives no positive mass for this size")
    return Checked(chosen * 1000.0, adaptation=adaptation)


def _by_sex(kind: str, kg: float, cm: float) -> tuple[float, float] | None:
    square = (kg / cm) ** 2
    index = kg / (cm / 100.0) ** 2
    values = {
        "LBM": (1.10 * kg - 120 * square, 1.07 * kg - 148 * square),
        "LBMJAMES128": (1.10 * kg - 128 * square, 1.07 * kg - 148 * square),
        "LBMJANMA": (9270 * kg / (6680 + 216 * index), 9270 * kg / (8780 + 244 * index)),
        "IBW": (48.0 + 1.06 * (cm - 152), 45.5 + 0.91 * (cm - 152)),
    }
    return values.get(kind)
