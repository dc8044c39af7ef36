"""A sample of one study, ready to be handed to somebody: pair, DICOM files, two notebooks.

OUT/Auto-Paired/{ct.npy, pet.npy, pair.json, qc.png}
OUT/DICOM/<SOPInstanceUID>.dcm      the CT and the PET of the pair
OUT/read_npy.ipynb, read_dicom.ipynb
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from config.layout import Layout
from workers import durable
from workers.errors import ExportFailed
from workers.index.engine import MetadataIndex
from workers.index.tables import folder, instance, pair, series, study
from workers.pairing.load import load_pair

NOTEBOOKS = ("read_npy.ipynb", "read_dicom.ipynb")


def export_sample(
    index: MetadataIndex,
    layout: Layout,
    study_uid: str,
    out: Path,
    notebooks: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the sample of a study into the new folder `out`; return how many DICOM files it has.

    `advance` is told (files done, files in all). The pair and its files are of one revision.

    Raises
    ------
    ExportFailed
        Unknown study, no finished pair, a file is missing, or `out` exists and is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ExportFailed(f"{out} is not empty: give a new folder")
    found = _ready(index, study_uid)
    building = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        count = _build(index, layout, found, building, notebooks, advance)
        if out.exists():
            out.rmdir()
        os.rename(building, out)
        durable.fsync_folder(out.parent)
    except OSError as error:
        raise ExportFailed(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return count


def _build(
    index: MetadataIndex,
    layout: Layout,
    found: Any,
    building: Path,
    notebooks: Path,
    advance: Callable[[int, int], None],
) -> int:
    pair_folder = layout.output / found.folder
    (building / "DICOM").mkdir(parents=True)
    meta = load_pair(pair_folder).meta
    shutil.copytree(pair_folder, building / "Auto-Paired")
    if load_pair(building / "Auto-Paired").meta != meta:
        raise ExportFailed("the study was paired again meanwhile: export it once more")
    files = _files(index, found.id, (meta.ct.series, meta.pet.series))
    for number, (uid, path) in enumerate(files):
        advance(number, len(files))
        source = layout.archive / path
        if not source.is_file():
            raise ExportFailed(f"{path} is missing in the tree: see `petct-ingest check`")
        durable.copy_new(source, building / "DICOM" / f"{uid}.dcm", 0o644)
    advance(len(files), len(files))
    for name in NOTEBOOKS:
        shutil.copyfile(notebooks / name, building / name)
    return len(files)


def _ready(index: MetadataIndex, study_uid: str) -> Any:
    with index.read() as connection:
        found = connection.execute(
            sa.select(study.c.id, pair.c.state, pair.c.folder, pair.c.revision)
            .join(pair, pair.c.study_id == study.c.id, isouter=True)
            .where(study.c.study == study_uid)
        ).first()
    if found is None:
        raise ExportFailed(f"no study {study_uid}: `petct-ingest studies` lists them")
    if not found.revision or found.folder is None:
        raise ExportFailed(f"study {study_uid} has no finished pair (it is {found.state or '-'})")
    return found


def _files(index: MetadataIndex, study_id: int, wanted: tuple[str, str]) -> list[tuple[str, str]]:
    """Return (SOPInstanceUID, path in the archive) of two series; a CT may be another study's.

    An adopted file has any name, and two series may call theirs alike.
    """
    own = sa.case((series.c.study_id == study_id, 0), else_=1)
    files: list[tuple[str, str]] = []
    with index.read() as connection:
        for uid in wanted:
            series_id = connection.execute(
                sa.select(series.c.id).where(series.c.series == uid).order_by(own).limit(1)
            ).scalar_one()
            rows = connection.execute(
                sa.select(
                    folder.c.home, folder.c.digits, instance.c.file_name, instance.c.instance_uid
                )
                .join(folder, folder.c.id == instance.c.folder_id)
                .where(instance.c.series_id == series_id)
                .order_by(instance.c.instance_number, instance.c.instance_uid)
            )
            files += [
                (row.instance_uid, f"{row.home}/studies/{row.digits}/{row.file_name}")
                for row in rows
            ]
    return files
