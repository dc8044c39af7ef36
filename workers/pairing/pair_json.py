"""The content of pair.json, typed: what a pair is, where it lies, and what it rests on.

docs/pair.schema.json is the JSON Schema of these classes; a test holds the two together. No
PatientID, name or accession number is ever written: UIDs are the only identifiers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from workers.errors import PairDamaged

SCHEMA: Final = "petct-ingest/pair/1"
SCHEMA_VERSION: Final = "1"

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Row4 = tuple[float, float, float, float]

_DOCUMENTED = ConfigDict(use_attribute_docstrings=True, extra="ignore")


@dataclass(frozen=True)
class OriginalGeometry:
    """Where the samples lay in the DICOM series; axes x along a row, y down a column, z normal."""

    __pydantic_config__ = _DOCUMENTED

    size: tuple[int, int, int]
    """Columns, rows, slices."""
    spacing: Vector
    """mm along x, y, z; z is the step of the even grid that fits best."""
    origin: Vector
    """Centre of the first pixel of the first slice, LPS mm."""
    direction: Matrix
    """Rows of the matrix whose columns are the unit vectors of x, y, z in LPS."""
    axes: tuple[int, int, int]
    """Which of x, y, z (0, 1, 2) became W, H, C."""
    flipped: tuple[bool, bool, bool]
    """Whether W, H, C run against that axis."""
    uniform: bool
    """Every slice lies within a tenth of a step of the even grid; else resampled from the true
    places.
    """
    deviation_mm: float
    """Largest distance of a slice from the even grid."""
    patient_position: str | None = None
    """PatientPosition as it stands in the header (HFS, HFP, FFS…)."""


@dataclass(frozen=True)
class VolumeMeta:
    """One array of the pair and the series that it came from."""

    __pydantic_config__ = _DOCUMENTED

    file: str
    dtype: str
    units: str
    """HU; suvbw or suvbw_adapted (g/ml); else the DICOM Units of a PET whose SUV was refused."""
    series: str
    """SeriesInstanceUID."""
    frame_of_reference: str | None
    """FrameOfReferenceUID."""
    original: OriginalGeometry
    resampled: bool
    """False: the samples are the scanner's, only turned and scaled."""
    interpolator: Literal["none", "linear"]
    sigma: Vector
    """Gaussian before interpolation along W, H, C in source voxels; 0 along axes that do not
    shrink.
    """
    fill: float
    """Value outside the field of view."""
    floor: float | None
    """Values below it were raised to it before anything else."""
    padded_slices: int
    """Slices with PixelPaddingValue in them; those pixels became `fill`."""
    minimum: float
    maximum: float
    mean: float
    sha256: str
    """Of the file."""
    inputs: dict[str, str]
    """SHA-256 of every DICOM file that was read, by SOPInstanceUID, in slice order."""


@dataclass(frozen=True)
class SuvMeta:
    """How PET values became SUV, or why they did not."""

    __pydantic_config__ = _DOCUMENTED

    status: Literal["ok", "adapted", "refused"]
    label: str
    factor: float | tuple[float, ...] | None
    """Times (stored * slope + intercept); one number, or one a slice from the feet to the head."""
    method: str
    reference_time: str | None
    reasons: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]
    """Every candidate for the time that decay is corrected to, with what it would have given."""
    dt_seconds: float | tuple[float, ...] | None
    """Injection to reference time, as `factor`."""
    weight_kg: float | None
    dose_bq: float | None
    half_life_s: float | None
    adaptations: tuple[str, ...]
    """Corrections of implausible headers that were made."""


@dataclass(frozen=True)
class QcCheck:
    """One automatic check: it flags, it never blocks."""

    __pydantic_config__ = _DOCUMENTED

    name: str
    value: float | None
    """None: could not be judged on this pair."""
    expected: str
    flagged: bool
    words: str


@dataclass(frozen=True)
class QcMeta:
    """The automatic checks and the hottest voxel."""

    __pydantic_config__ = _DOCUMENTED

    checks: tuple[QcCheck, ...]
    hottest_index: tuple[int, int, int]
    """C, H, W."""
    hottest_mm: Vector
    """LPS."""
    hottest_value: float
    body_mean: float | None
    """Mean PET value inside the CT's body mask."""


@dataclass(frozen=True)
class PairMeta:
    """The whole of pair.json."""

    __pydantic_config__ = _DOCUMENTED

    study: str
    """StudyInstanceUID."""
    revision: int
    made_at: str
    """ISO 8601, UTC."""
    grid: str
    """What was asked: pet, ct, isotropic:<mm>."""
    shape: tuple[int, int, int]
    """C, H, W of both arrays."""
    spacing: Vector
    """mm between voxels along W, H, C."""
    origin: Vector
    """Centre of voxel [0, 0, 0], LPS mm."""
    direction: Matrix
    """Rows of the matrix whose columns are the unit vectors of W, H, C in LPS."""
    affine: tuple[Row4, Row4, Row4, Row4]
    """From (W, H, C, 1) indices to LPS mm."""
    same_frame_of_reference: bool
    covered_fraction: float
    """Part of the PET's length that the CT covers."""
    ct: VolumeMeta
    pet: VolumeMeta
    suv: SuvMeta
    qc: QcMeta
    decision: dict[str, Any]
    """Why these two series: reasons, candidates, completeness evidence."""
    warnings: tuple[str, ...]
    outputs: dict[str, str]
    """SHA-256 of every other file of the pair, by name."""
    software: dict[str, str]
    """Versions of what made it."""
    axis_order: Literal["CHW"] = "CHW"
    """C: feet to head, H: anterior to posterior, W: patient right to left."""
    schema: Literal["petct-ingest/pair/1"] = SCHEMA
    schema_version: Literal["1"] = SCHEMA_VERSION


def to_json(meta: PairMeta) -> str:
    """Return pair.json: readable, one line a short list; NaN is refused (ValueError)."""
    raw = asdict(meta)
    raw = {"schema": raw.pop("schema"), "schema_version": raw.pop("schema_version"), **raw}
    return _pretty(raw, 0) + "\n"


def from_json(text: str | bytes) -> PairMeta:
    """Read pair.json. Raises PairDamaged where it is none, or of an unknown schema."""
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PairDamaged(f"pair.json: {place}: {first['msg']}") from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of pair.json."""
    schema = _adapter().json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


@cache
def _adapter() -> TypeAdapter[PairMeta]:
    return TypeAdapter(PairMeta)


def _pretty(value: Any, depth: int) -> str:
    """Indent objects; keep what holds no object on one line while it fits."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False)
    if len(line) + 2 * depth <= 96 or not isinstance(value, dict | list | tuple):
        return line
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [_pretty(item, depth + 1) for item in value]
        opening, closing = "[", "]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{'  ' * depth}{closing}"
