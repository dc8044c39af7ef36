"""Give a pair its folder, and never one that somebody else made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from workers.index.tables import folder, pair, series

FOLDER = "Auto-Paired"
_OURS = "petct-ingest/pair/"


def claim_folder(
    connection: Connection, output: Path, pair_id: int, study_id: int, study_uid: str, pet_uid: str
) -> str:
    """Give the pair its folder beside the PET's `studies`, relative to `output`.

    The first study there owns the plain name; another's, and one whose place is taken by a folder
    that is not of this pair, gets the first two folders of its study behind it.
    """
    home, digits = connection.execute(
        sa.select(folder.c.home, folder.c.digits)
        .join(series, series.c.id == folder.c.series_id)
        .where(series.c.series == pet_uid, series.c.study_id == study_id)
        .order_by(folder.c.id)
        .limit(1)
    ).one()
    for name in _names(digits):
        place = f"{home}/{name}"
        owner = connection.execute(sa.select(pair.c.id).where(pair.c.folder == place)).scalar()
        if owner in (None, pair_id) and is_free(output / place, study_uid):
            break
    connection.execute(pair.update().where(pair.c.id == pair_id).values(folder=place))
    return place


def is_free(place: Path, study_uid: str) -> bool:
    """Tell whether a pair of this study may stand there: nothing does, or an older one of it."""
    if place.is_symlink():
        return True  # not followed, and refused in words when the pair is put there
    try:
        if not os.listdir(place):
            return True
        made = json.loads((place / "pair.json").read_bytes())
        return bool(made["study"] == study_uid and str(made["schema"]).startswith(_OURS))
    except FileNotFoundError:
        return not place.exists()
    except NotADirectoryError:
        return True  # as a link
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _names(digits: str) -> Iterator[str]:
    yield FOLDER
    with_study = "-".join([FOLDER, *digits.split("/")[:2]])
    yield with_study
    for number in count(2):
        yield f"{with_study}-{number}"
