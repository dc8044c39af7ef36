"""What a message says of one event: by default nothing that belongs to a patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from config.tables.telling import NotifySettings
from workers.index.queries import SET_ASIDE
from workers.pairing.held import HELD_WORDS, held_reason


class Topic(StrEnum):
    """What `notify.on` names."""

    READY = "ready"
    HELD = "held"
    QUARANTINED = "quarantined"
    DISK = "disk"


KINDS: Mapping[Topic, tuple[str, ...]] = MappingProxyType(
    {
        Topic.READY: ("pair-ready",),
        Topic.HELD: ("pair-held",),
        Topic.QUARANTINED: SET_ASIDE,
        Topic.DISK: ("intake-refused", "intake-resumes"),
    }
)
"""The events of each topic."""

_CODE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "not-dicom": "it is no DICOM file",
        "truncated": "it ends before its data set does",
        "bad-identity": "it has no usable UIDs",
        "identifiable": "it may name somebody, and is to be de-identified",
        "archive": "a member of an archive cannot be read",
        "damaged-archive": "the archive cannot be unpacked",
        "poison": "workers died while they read it",
        "variant": "the same instance is filed under another header",
        "conflict": "the same instance is filed with other content",
        "replaced": "a newer one took its place",
    }
)
_OTHER_CODE = "it cannot be read"


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that somebody is told; `id` is the same however often it is sent."""

    id: str
    at: str
    """ISO 8601 UTC."""
    topic: Topic
    kind: str
    words: str
    code: str = ""
    study: int | None = None
    """Its number in the index, which the page shows it under."""
    link: str = ""
    identifiers: Mapping[str, Any] = field(default_factory=dict)
    """PatientID and the like; only where the settings ask for it."""

    def to_json_object(self) -> dict[str, Any]:
        """Return what a webhook is sent; what is not known is left out."""
        told = {
            "id": self.id,
            "at": self.at,
            "topic": str(self.topic),
            "kind": self.kind,
            "words": self.words,
            "code": self.code,
            "study": self.study,
            "link": self.link,
            "identifiers": dict(self.identifiers),
        }
        return {key: value for key, value in told.items() if value not in ("", None, {})}


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of the index, with what is known of its study and of what was set aside."""

    id: int
    at: str
    kind: str
    details: Mapping[str, Any]
    study_id: int | None = None
    source: str | None = None
    study_uid: str | None = None
    patient_id: str | None = None
    study_date: str | None = None
    study_description: str | None = None
    reason: str | None = None


def wanted_kinds(settings: NotifySettings) -> tuple[str, ...]:
    """Return the kinds of events that somebody is told of."""
    return tuple(kind for topic in settings.on for kind in KINDS[Topic(topic)])


def notice_of(row: EventRow, origin: str, settings: NotifySettings) -> Notice:
    """Put an event into words."""
    topic = next(topic for topic, kinds in KINDS.items() if row.kind in kinds)
    words, code = _words(row, topic)
    return Notice(
        id=f"{origin}-{row.id}-{row.at}",  # a backup that was put back counts its ids again
        at=row.at,
        topic=topic,
        kind=row.kind,
        words=words,
        code=code,
        study=row.study_id,
        link=_link(topic, row.study_id, settings.public_url),
        identifiers=_identifiers(row) if settings.include_identifiers else {},
    )


def _words(row: EventRow, topic: Topic) -> tuple[str, str]:
    if topic is Topic.READY:
        return f"a pair is ready (revision {int(row.details.get('revision', 0))})", ""
    if topic is Topic.HELD:
        reasons = row.details.get("reasons") or [""]
        reason = held_reason(str(reasons[0]))
        return f"a study is held: {HELD_WORDS[reason]}", str(reason)
    if topic is Topic.QUARANTINED:
        code = str(row.details.get("code") or row.kind)
        return f"a file was set aside: {_CODE_WORDS.get(code, _OTHER_CODE)}", code
    who = str(row.details.get("by", "intake"))
    if row.kind == "intake-resumes":
        return f"the {who} takes files again", ""
    return f"the {who} takes nothing: {row.details.get('reason', '')}", ""


def _link(topic: Topic, study_id: int | None, public_url: str | None) -> str:
    """Return where the page shows more; it names nothing but a number of the index."""
    if public_url is None:
        return ""
    base = public_url.rstrip("/")
    if topic is Topic.QUARANTINED:
        return f"{base}/quarantine"
    return f"{base}/studies/{study_id}" if study_id is not None else f"{base}/"


def _identifiers(row: EventRow) -> dict[str, Any]:
    known = {
        "patient_ID": row.patient_id,
        "study": row.study_uid,
        "study_date": row.study_date,
        "study_description": row.study_description,
        "source": row.source,
        "reasons": list(row.details.get("reasons") or ([row.reason] if row.reason else [])),
    }
    return {key: value for key, value in known.items() if value}


def parse_details(text: str) -> dict[str, Any]:
    """Read the details of an event; what is no object tells nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
