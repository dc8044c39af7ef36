"""The judge: does the archive hold exactly what was promised? It shares no code with the system.

The tree is walked and parsed with pydicom, the index read with sqlite3.
"""

import contextlib
import hashlib
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pydicom
from chaos_delivery import data_set_digest

_INSTANCE = re.compile(r"[^/]+/[^/]+/studies/\d{5}/\d{5}/\d{5}/\d{5}/([0-9.]+)\.dcm")
_PAIR = re.compile(
    r"([^/]+/[^/]+/Auto-Paired(?:-\d{5}-\d{5})?)/(ct\.npy|pet\.npy|pair\.json|qc\.png)"
)
_PAIR_FILES = {"ct.npy", "pet.npy", "pair.json", "qc.png"}
_MOST = 5
"""Examples of one kind of fault in the report."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the archive must hold, and what it may."""

    digests: Mapping[str, str]
    """SHA-256 of the data set of every SOPInstanceUID that was delivered."""
    acknowledged: Counter[str]
    unanswered: Counter[str]
    """Sent, but the answer was lost: it may have been stored that often more."""
    dropped: Counter[str]
    pairs: Mapping[str, Mapping[str, str]]
    """SHA-256 of ct.npy and pet.npy of every study, from an undisturbed run."""


@dataclass(slots=True)
class Verdict:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    corrupted: list[str] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    """Where index, spool, counts or pairs are not what they must be."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.corrupted or self.drift)

    def say(self, words: str, cases: object = ()) -> None:
        listed = sorted(map(str, cases))
        more = f" … {len(listed)} in all" if len(listed) > _MOST else ""
        self.drift.append(": ".join(filter(None, (words, ", ".join(listed[:_MOST]) + more))))


class Index(Protocol):
    """A connection of sqlite3 or psycopg."""

    def execute(self, query: str, /) -> Any: ...


def judge_archive(index: Index, archive: Path, promise: Promise) -> Verdict:
    """Judge tree, rows, counts and pairs."""
    verdict = Verdict()
    tree = _judge_tree(archive, promise, verdict)
    _judge_rows(index, archive, tree, verdict)
    _judge_counts(index, promise, set(tree), verdict)
    _judge_pairs(index, archive, promise, verdict)
    return verdict


def judge(root: Path, inboxes: list[Path], promise: Promise) -> Verdict:
    """Judge an installation whose processes have ended."""
    with contextlib.closing(
        sqlite3.connect(f"file:{root}/index.sqlite?mode=ro", uri=True)
    ) as index:
        verdict = judge_archive(index, root / "archive", promise)
        if index.execute("pragma integrity_check").fetchall() != [("ok",)]:
            verdict.say("the index is damaged")
    left = [
        path
        for top in (root / "spool/ready", root / "spool/incoming", root / "quarantine",
                    root / "archive/.petct/tmp", *inboxes)
        for path in files_below(top)
    ]  # fmt: skip
    if left:
        verdict.say("left over", left)
    if batches := os.listdir(root / "spool/ready"):
        verdict.say("batches without entries", batches)
    return verdict


def files_below(top: Path) -> Iterator[str]:
    for folder, _, names in os.walk(top):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), top)


def _judge_tree(archive: Path, promise: Promise, verdict: Verdict) -> dict[str, str]:
    """Walk the tree; return where each instance lies."""
    places: dict[str, list[str]] = {}
    pairs: dict[str, set[str]] = {}
    strange = []
    for path in files_below(archive):
        if path.startswith(".petct/"):
            continue
        if found := _INSTANCE.fullmatch(path):
            places.setdefault(found[1], []).append(path)
        elif found := _PAIR.fullmatch(path):
            pairs.setdefault(found[1], set()).add(found[2])
        else:
            strange.append(path)
    if strange:
        verdict.say("strange files in the tree", strange)
    torn = [folder for folder, names in pairs.items() if names != _PAIR_FILES]
    if torn:
        verdict.say("pairs that are not whole", torn)
    promised = promise.acknowledged.keys() | promise.dropped.keys()
    verdict.lost = sorted(promised - places.keys())
    verdict.doubled = sorted(uid for uid, found in places.items() if len(found) > 1)
    if foreign := places.keys() - promised - promise.unanswered.keys():
        verdict.say("instances that nobody sent", foreign)
    for uid, found in places.items():
        for path in found:
            file = archive / path
            if not _is_right(file, uid, promise.digests.get(uid)):
                verdict.corrupted.append(uid)
            if file.stat().st_nlink != 1:
                verdict.say("a file that has another name too", [path])
    return {uid: found[0] for uid, found in places.items()}


def _is_right(file: Path, uid: str, digest: str | None) -> bool:
    try:
        if data_set_digest(file) != digest:
            return False
        head = pydicom.dcmread(file, stop_before_pixels=True)
    except Exception:  # noqa: BLE001 - whatever it is, the file cannot be read
        return False
    return bool(head.SOPInstanceUID == head.file_meta.MediaStorageSOPInstanceUID == uid)


def _judge_rows(index: Index, archive: Path, tree: dict[str, str], verdict: Verdict) -> None:
    rows = index.execute(
        "select instance_uid, home || '/studies/' || digits || '/' || file_name, size, sha256"
        " from instance join folder on folder.id = folder_id"
    ).fetchall()
    counted = Counter(uid for uid, *_ in rows)
    if several := [uid for uid, count in counted.items() if count > 1]:
        verdict.doubled += several
    if missing := tree.keys() - counted.keys():
        verdict.say("in the tree without a row", missing)
    if missing := counted.keys() - tree.keys():
        verdict.say("rows without a file", missing)
    for uid, path, size, sha256 in rows:
        if uid not in tree:
            continue
        content = (archive / tree[uid]).read_bytes()
        known = (tree[uid], len(content), hashlib.sha256(content).hexdigest())
        if (path, size, sha256) != known:
            verdict.say("a row that is not its file", [uid])
    wrong = index.execute(
        "select series.series from series left join instance on instance.series_id = series.id"
        " group by series.id having count(instance.id) != series.instances"
    ).fetchall()
    if wrong:
        verdict.say("series whose count is wrong", (uid for (uid,) in wrong))


def _judge_counts(index: Index, promise: Promise, tree: set[str], verdict: Verdict) -> None:
    """Every entry is counted once: filed once for each instance, a duplicate each other time."""
    arrivals: dict[str, Counter[str]] = {}
    for uid, outcome in index.execute("select instance_uid, outcome from arrival"):
        arrivals.setdefault(outcome, Counter())[uid] += 1
    filed, duplicates = arrivals.pop("filed", Counter()), arrivals.pop("duplicate", Counter())
    if arrivals:
        verdict.say("other outcomes", [f"{name} {sum(c.values())}" for name, c in arrivals.items()])
    if filed != Counter(tree):
        verdict.say("filed counts are not one for each file", filed.keys() ^ tree)
    events = index.execute("select details from event where kind = 'filed'")
    if sum(json.loads(details)["instances"] for (details,) in events) != len(tree):
        verdict.say("the events do not tell of every filed instance")
    least = promise.acknowledged + promise.dropped
    most = least + promise.unanswered
    arrived = filed + duplicates
    if few := [uid for uid, count in least.items() if arrived[uid] < count]:
        verdict.say("counted too seldom", few)
    if many := [uid for uid, count in arrived.items() if count > most[uid]]:
        verdict.say("counted too often", many)


def _judge_pairs(index: Index, archive: Path, promise: Promise, verdict: Verdict) -> None:
    rows = index.execute(
        "select study.study, folder, state, generation = done_generation"
        " from pair join study on study.id = study_id"
    ).fetchall()
    ready = {study: folder for study, folder, state, done in rows if state == "ready" and done}
    if ready.keys() != promise.pairs.keys():
        verdict.say("pairs not as in an undisturbed run", ready.keys() ^ promise.pairs.keys())
    for study, folder in ready.items():
        wanted = promise.pairs.get(study, {})
        if digests_of_pair(archive / folder) != wanted:
            verdict.say("a pair whose arrays differ from those of an undisturbed run", [study])
        told = json.loads((archive / folder / "pair.json").read_bytes())
        if {"ct.npy": told["ct"]["sha256"], "pet.npy": told["pet"]["sha256"]} != wanted:
            verdict.say("a pair.json that tells of other arrays", [study])
        if told["study"] != study:
            verdict.say("a pair in another study's folder", [study])


def digests_of_pair(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("ct.npy", "pet.npy")
        if (folder / name).exists()
    }
