"""The OMI-DB form: images/ and data/, by client, study and image, read by the `omidb` package.

    OUT/images/<client>/<StudyInstanceUID>/<SOPInstanceUID>.dcm
    OUT/data/<client>/<StudyInstanceUID>/<SOPInstanceUID>.json     the header, DICOM JSON model
    OUT/data/<client>/imagedb_<client>.json, nbss_<client>.json

A client is a prefix and a number. Run again, it adds what is new and leaves what is there. Nothing
clinical is invented: without a record of NBSS, a study's episode holds its date alone.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset, dcmread

from config.layout import Layout
from workers import durable
from workers.errors import ExportFailed
from workers.export.clients import Clients
from workers.export.writing import replacing
from workers.filing.names import encoded
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, series, study

DERIVED = "derived from DICOM"
"""`Source` of an episode that no record of NBSS stands behind."""

_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_PREFIX = re.compile(r"[a-z]{4}")
_DAY = re.compile(r"\d{4}-?\d{2}-?\d{2}$")


@dataclass(slots=True)
class OmidbReport:
    """What an export did."""

    clients: int = 0
    images: int = 0
    written: int = 0
    undated: list[str] = field(default_factory=list)
    """Studies without a StudyDate: the public reader reaches a study only by its date."""
    unlinked: list[str] = field(default_factory=list)
    """Studies whose date is in no episode of the given NBSS record."""


@dataclass(frozen=True, slots=True)
class _Image:
    uid: str
    series: str
    path: str
    """Relative to the archive."""
    size: int


@dataclass(frozen=True, slots=True)
class _Study:
    uid: str
    date: str | None
    """YYYY-MM-DD."""
    images: tuple[_Image, ...]


def export_omidb(
    index: MetadataIndex,
    layout: Layout,
    out: Path,
    *,
    prefix: str = "optm",
    nbss: Path | None = None,
    hard_links: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> OmidbReport:
    """Write or refresh an OMI-DB below `out`; `advance` is told of each image.

    `nbss` is a folder with one JSON for a PatientID, `<PatientID>.json` (percent-encoded as in the
    tree): an object of episodes, passed through. With `hard_links` files are shared with the
    archive instead of copied: whoever changes one changes both.

    Raises
    ------
    ExportFailed
        A bad prefix, a record of NBSS that is none, a file missing in the tree, or `out` cannot be
        written.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ExportFailed(f"a client's prefix is four lower-case letters, not {prefix!r}")
    clients = Clients(index, layout)
    report = OmidbReport()
    try:
        for patient, studies in _patients(index):
            name = f"{prefix}{clients.number_of(patient)}"
            for one in studies:
                _write_study(layout, out, name, one, report, hard_links=hard_links, advance=advance)
            _write_records(out, name, studies, _nbss(nbss, patient), report)
            report.clients += 1
    except OSError as error:
        raise ExportFailed(f"{out} cannot be written: {error.strerror}") from error
    return report


def _patients(index: MetadataIndex) -> Iterator[tuple[str, list[_Study]]]:
    """Yield patients with their studies, in their order of arrival, so that numbers are too."""
    patient = study.c["patient_ID"]
    with index.read() as connection:
        known = connection.execute(
            sa.select(patient, sa.func.min(study.c.id))
            .where(sa.exists().where(series.c.study_id == study.c.id, series.c.instances > 0))
            .group_by(sa.case((patient == "", study.c.study), else_=patient), patient)
            .order_by(sa.func.min(study.c.id))
        ).all()
    for value, first in known:
        mine = study.c.id == first if not value else patient == value
        with index.read() as connection:
            rows = connection.execute(
                sa.select(study.c.id, study.c.study, study.c.study_date)
                .where(mine)
                .order_by(study.c.study)
            ).all()
        studies = [
            found
            for row in rows
            if (found := _Study(row.study, _day(row.study_date), _images(index, row.id))).images
        ]
        yield (value or f" {rows[0].study}"), studies


def _images(index: MetadataIndex, study_id: int) -> tuple[_Image, ...]:
    with index.read() as connection:
        rows = connection.execute(
            sa.select(instance.c.instance_uid, instance.c.file_name, instance.c.size,
                      series.c.series, folder.c.home, folder.c.digits)
            .join(series, series.c.id == instance.c.series_id)
            .join(folder, folder.c.id == instance.c.folder_id)
            .where(series.c.study_id == study_id)
            .order_by(series.c.series, instance.c.instance_number, instance.c.instance_uid)
        )  # fmt: skip
        return tuple(
            _Image(row.instance_uid, row.series,
                   f"{row.home}/studies/{row.digits}/{row.file_name}", row.size)
            for row in rows
        )  # fmt: skip


def _write_study(
    layout: Layout,
    out: Path,
    client: str,
    one: _Study,
    report: OmidbReport,
    *,
    hard_links: bool,
    advance: Callable[[int], None],
) -> None:
    images, data = out / "images" / client / one.uid, out / "data" / client / one.uid
    images.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    for image in one.images:
        source = layout.archive / image.path
        target, header = images / f"{image.uid}.dcm", data / f"{image.uid}.json"
        try:
            facts = source.stat(follow_symlinks=False)
        except FileNotFoundError:
            raise ExportFailed(
                f"{image.path} is missing in the tree: see `petct-ingest check`"
            ) from None
        if not _is_there(target, facts) or not header.is_file():
            _give(source, target, facts, hard_links=hard_links)
            with replacing(header) as temporary:
                temporary.write_text(json.dumps(header_json(source)), encoding="utf-8")
            report.written += 1
        report.images += 1
        advance(report.images)
    durable.fsync_folder(images)


def header_json(path: Path) -> dict[str, Any]:
    """Return the header of a file as the DICOM JSON model (PS3.18 F), without bulk data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        dataset = dcmread(path, stop_before_pixels=True)
        _drop_bulk(dataset)
        found: dict[str, Any] = dataset.to_json_dict(suppress_invalid_tags=True)
    return found


def _drop_bulk(dataset: Dataset) -> None:
    for element in list(dataset):
        if element.VR in _BULK:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value or ():
                _drop_bulk(item)


def _is_there(target: Path, source: os.stat_result) -> bool:
    try:
        facts = target.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (facts.st_size, facts.st_mtime_ns) == (source.st_size, source.st_mtime_ns)


def _give(source: Path, target: Path, facts: os.stat_result, *, hard_links: bool) -> None:
    """Copy a file (as a reflink where possible) under a temporary name, then rename it."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        if hard_links:
            os.link(source, temporary)
        else:
            durable.copy_new(source, temporary, 0o640)
            os.utime(temporary, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # rename of two links to one file does nothing


def _write_records(
    out: Path,
    client: str,
    studies: Sequence[_Study],
    given: dict[str, Any] | None,
    report: OmidbReport,
) -> None:
    """Write what is in the images, and the episodes that lead to them."""
    imagedb: dict[str, Any] = {"Site": "", "STUDIES": {}}
    episodes: dict[str, Any] = dict(given or {})
    for one in studies:
        entry: dict[str, Any] = {}
        if one.date is None:
            report.undated.append(one.uid)
        else:
            entry["StudyDate"] = one.date
        if given is None:
            entry["EpisodeID"] = one.uid
            opened = {} if one.date is None else {"EpisodeOpenedDate": one.date}
            episodes[one.uid] = {**opened, "Source": DERIVED}
        else:
            episode = _episode_of(given, one.date)
            if episode is None:
                report.unlinked.append(one.uid)
            else:
                entry["EpisodeID"] = episode
        for image in one.images:
            entry.setdefault(image.series, {})[image.uid] = {}
        imagedb["STUDIES"][one.uid] = entry
    for name, content in (("imagedb", imagedb), ("nbss", episodes)):
        with replacing(out / "data" / client / f"{name}_{client}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _nbss(records: Path | None, patient: str) -> dict[str, Any] | None:
    """Read the record of one patient; None where there is none."""
    if records is None or patient.startswith(" "):
        return None
    path = records / f"{encoded(patient)}.json"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ExportFailed(f"{path.name} is no JSON") from None
    if not isinstance(record, dict) or not any(isinstance(one, dict) for one in record.values()):
        raise ExportFailed(f"{path.name} is no record of episodes: an object of objects is wanted")
    return record


def _episode_of(record: dict[str, Any], date: str | None) -> str | None:
    """Return the episode that holds a study's date anywhere."""
    if date is None:
        return None
    for name, episode in record.items():
        if isinstance(episode, dict) and date in set(_days(episode)):
            return name
    return None


def _days(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _days(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _days(inner)
    elif isinstance(value, str) and _DAY.match(value):
        yield _day(value.replace("-", "")) or ""


def _day(text: str | None) -> str | None:
    try:
        return dt.datetime.strptime(text or "", "%Y%m%d").date().isoformat()  # noqa: DTZ007
    except ValueError:
        return None
