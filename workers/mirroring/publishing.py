"""Publish a pair: its arrays, then pair.json, then latest.json, which readers begin with.

The folder is opened once, and each of its files through that: a study that is paired again
meanwhile has its folder exchanged whole, and what was opened stays as it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from config.layout import Layout
from config.logs import get_logger, short
from workers.errors import PairDamaged
from workers.mirroring.planning import LATEST, Latest, Wanted, lacking, revision_folder
from workers.mirroring.reading import MadePair
from workers.mirroring.sending import Sender, Sent, open_in
from workers.pairing.pair_json import PairMeta, from_json
from workers.rooted import LinkRefused, folder_below

log = get_logger(__name__)

_PAIR_JSON = "pair.json"


@dataclass(frozen=True)
class OpenPair:
    """One revision of a pair, its files open; as long as it is entered."""

    meta: PairMeta
    folder: str
    """Key of the revision's folder."""
    data: tuple[Wanted, ...]
    """Everything but pair.json."""
    pair_json: Wanted
    files: dict[str, BinaryIO]

    def open(self, wanted: Wanted) -> BinaryIO:
        """Return the file of an object, to be read by whoever closes it."""
        file = self.files[wanted.key]
        return open(os.dup(file.fileno()), "rb", buffering=0)

    def latest(self, state: str) -> tuple[Wanted, bytes]:
        """Return latest.json: as an object, and its bytes."""
        named = {
            PurePosixPath(one.key).name: {"size": one.size, "sha256": one.sha256}
            for one in (*self.data, self.pair_json)
        }
        place = PurePosixPath(self.folder)
        content = Latest(self.meta.study, state, self.meta.revision, place.name, named).to_json()
        digest = hashlib.sha256(content).hexdigest()
        return Wanted(f"{place.parent}/{LATEST}", len(content), digest), content


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Let nobody else point to a revision meanwhile: who looked earlier would point back."""
    with open(layout.locks / "mirror-pairs", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def opened(output: Path, made: MadePair) -> Iterator[OpenPair]:
    """Open the revision that stands in its place now.

    Raises FileNotFoundError, LinkRefused or PairDamaged where none does.
    """
    with ExitStack() as stack:
        home = stack.enter_context(folder_below(output, PurePosixPath(made.folder)))
        content = stack.enter_context(open_in(home, _PAIR_JSON)).read()
        meta = from_json(content)
        digest = hashlib.sha256(content).hexdigest()
        place = f"{made.folder}/{revision_folder(meta.revision, digest)}"
        digests = {meta.ct.file: meta.ct.sha256, meta.pet.file: meta.pet.sha256, **meta.outputs}
        files = {}
        wanted = []
        for name, sha256 in digests.items():
            if "/" in name:
                raise PairDamaged("pair.json names a file outside the folder")
            key = f"{place}/{name}"
            files[key] = stack.enter_context(open_in(home, name))
            wanted.append(Wanted(key, os.fstat(files[key].fileno()).st_size, sha256))
        last = Wanted(f"{place}/{_PAIR_JSON}", len(content), digest)
        files[last.key] = stack.enter_context(open_in(home, _PAIR_JSON))
        yield OpenPair(meta, place, tuple(wanted), last, files)


def publish(sender: Sender, layout: Layout, made: MadePair) -> Sent:
    """Let the store hold the revision of a pair that stands in its place, and name it the latest.

    What is there already is not sent again. Raises as `Sender.send`.
    """
    sent = Sent()
    try:
        with alone(layout), opened(layout.output, made) as pair:
            there = sender.store.listed(f"{pair.folder}/")
            for step in (pair.data, (pair.pair_json,)):
                sent.add(sender.send(lacking(step, there), pair.open))
                if sent.left_out:
                    return sent  # it is not whole: nothing points to it
            wanted, content = pair.latest(made.state)
            if sender.store.get(wanted.key) != content:
                sender.store.put(wanted.key, content, wanted.sha256)
                sent.objects, sent.bytes = sent.objects + 1, sent.bytes + wanted.size
                log.info("pair-mirrored", study=short(made.study), revision=pair.meta.revision)
    except (FileNotFoundError, LinkRefused, PairDamaged):
        log.warning("mirror-left-out", pair=short(made.study))
        sent.left_out.append(Wanted(f"{made.folder}/{_PAIR_JSON}", 0, ""))
    return sent
