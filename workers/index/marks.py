"""Marks in the index: small texts by which a role remembers how far it came, with the index."""

from __future__ import annotations

import secrets
from collections.abc import Collection

import sqlalchemy as sa

from workers.index.engine import MetadataIndex, insert_new
from workers.index.tables import meta

_ORIGIN = "notify_origin"


def read_mark(index: MetadataIndex, key: str) -> str | None:
    """Return a mark, or None before it was first written."""
    with index.read() as connection:
        return connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar()


def write_mark(index: MetadataIndex, key: str, value: str) -> None:
    """Write a mark, durably."""
    with index.write() as connection:
        if not insert_new(connection, meta, key=key, value=value):
            connection.execute(meta.update().where(meta.c.key == key).values(value=value))


def forget_marks(index: MetadataIndex, prefix: str, keep: Collection[str]) -> None:
    """Remove the marks of a prefix but for those to keep."""
    with index.read() as connection:
        keys = set(connection.execute(sa.select(meta.c.key)).scalars())
    gone = {key for key in keys if key.startswith(prefix)} - set(keep)
    if gone:
        with index.write() as connection:
            connection.execute(meta.delete().where(meta.c.key.in_(gone)))


def origin_of(index: MetadataIndex) -> str:
    """Return the name under which this index numbers its events, given when it is first asked.

    One that is made anew from the tree has another: the same number is then another event.
    """
    with index.write() as connection:
        insert_new(connection, meta, key=_ORIGIN, value=secrets.token_hex(8))
        asked = sa.select(meta.c.value).where(meta.c.key == _ORIGIN)
        return str(connection.execute(asked).scalar_one())
