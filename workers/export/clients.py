"""The numbers that stand for patients in an OMI-DB export: given once, kept for good."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from config.layout import Layout
from workers.filing.journal import append_facts, read_facts
from workers.index.engine import MetadataIndex, insert_new
from workers.index.tables import client

_KIND = "client"


class Clients:
    """Client numbers of one installation.

    They are kept in the index and, before that, in the archive's journal, from which an index that
    was made anew takes them over.
    """

    def __init__(self, index: MetadataIndex, layout: Layout) -> None:
        self._index = index
        self._layout = layout
        self._restore()

    def number_of(self, patient: str) -> int:
        """Return the number of a patient, from 1 on; a new one is durable before it is used."""
        with self._index.read() as connection:
            known = _number(connection, patient)
        if known is not None:
            return known
        with self._index.write() as connection:
            known = _number(connection, patient)
            if known is None:
                last = connection.execute(sa.select(sa.func.max(client.c.number))).scalar()
                known = int(last or 0) + 1
                fact = {"kind": _KIND, "value": patient, "number": known}
                append_facts(self._layout.output, [fact], self._layout.file_mode)
                connection.execute(client.insert().values(value=patient, number=known))
        return known

    def _restore(self) -> None:
        """Take over what the journal tells and the index does not know."""
        told = [
            fact
            for fact in read_facts(self._layout.output)
            if fact.get("kind") == _KIND
            and isinstance(fact.get("value"), str)
            and isinstance(fact.get("number"), int)
        ]
        with self._index.read() as connection:
            known = set(connection.execute(sa.select(client.c.value)).scalars())
        missing = [fact for fact in told if fact["value"] not in known]
        if missing:
            with self._index.write() as connection:
                for fact in missing:
                    insert_new(connection, client, value=fact["value"], number=fact["number"])


def _number(connection: Connection, patient: str) -> int | None:
    found = connection.execute(sa.select(client.c.number).where(client.c.value == patient)).scalar()
    return None if found is None else int(found)
