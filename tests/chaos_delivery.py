"""What a run delivers: small instances and tiny studies, some to send, some to drop, some both."""

import hashlib
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from chaos_plan import Plan

from workers.phantom.study import PhantomSpec, write_many, write_study

_FILES_A_FOLDER = 50
_SENT, _BOTH = 0.75, 0.1
_FIRST_STUDY = 101


@dataclass(frozen=True, slots=True)
class Piece:
    """One instance to deliver."""

    uid: str
    path: Path


@dataclass(slots=True)
class Delivery:
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the data set (file meta aside) of every SOPInstanceUID."""
    send: list[list[Piece]] = field(default_factory=list)
    """What goes on one association each, at first."""
    drop: list[list[Piece]] = field(default_factory=list)
    """What is dropped as one folder each."""
    held: list[list[Piece]] = field(default_factory=list)
    """Studies that the killer releases when it needs a pair to be made; they are dropped."""

    @property
    def to_send(self) -> int:
        return sum(map(len, self.send))

    @property
    def to_drop(self) -> int:
        return sum(map(len, self.drop)) + sum(map(len, self.held))


def data_set_digest(path: Path) -> str:
    """SHA-256 of what stands behind the File Meta Information (PS3.10 7.1); independent of ours."""
    with path.open("rb") as file:
        head = file.read(144)
        if head[128:132] != b"DICM" or head[132:138] != b"\x02\x00\x00\x00UL":
            raise ValueError(f"no DICOM file: {path.name}")
        file.seek(144 + struct.unpack("<L", head[140:144])[0])
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_delivery(plan: Plan, folder: Path) -> Delivery:
    """Write everything that a plan delivers below a folder."""
    rng = plan.draw("delivery")
    delivery = Delivery()
    sent = round(plan.instances * _SENT)
    for name, count, patient in (("sent", sent, 1), ("dropped", plan.instances - sent, 2)):
        folders = max(1, count // _FILES_A_FOLDER)
        written = write_many(folder / name, count, folders=folders, patient_number=patient)
        by_folder: dict[Path, list[Piece]] = {}
        for uid, path in written.items():
            by_folder.setdefault(path.parent, []).append(Piece(uid, path))
        (delivery.send if name == "sent" else delivery.drop).extend(by_folder.values())
    both = rng.sample([p for part in delivery.send for p in part], round(plan.instances * _BOTH))
    delivery.drop += _parts(_copies(both, folder / "both"), _FILES_A_FOLDER)
    for number in range(plan.studies):
        _add_study(delivery, rng.choice(("sent", "dropped", "split", "both")),
                   study_pieces(folder, number), folder, number < plan.horses)  # fmt: skip
    rng.shuffle(delivery.send)
    rng.shuffle(delivery.drop)
    for part in (*delivery.send, *delivery.drop, *delivery.held):
        for piece in part:
            if piece.uid not in delivery.digests:
                delivery.digests[piece.uid] = data_set_digest(piece.path)
    return delivery


def study_pieces(folder: Path, number: int) -> list[Piece]:
    """Write the tiny study of a number; the same for every seed."""
    target = folder / f"study-{number}"
    write_study(PhantomSpec(_FIRST_STUDY + number, size="tiny"), target)
    return [
        Piece(str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID), path)
        for path in sorted(target.rglob("*.dcm"))
    ]


def _add_study(delivery: Delivery, way: str, pieces: list[Piece], folder: Path, held: bool) -> None:
    if held:
        delivery.held.append(pieces)
    elif way == "sent":
        delivery.send.append(pieces)
    elif way == "dropped":
        delivery.drop.append(pieces)
    elif way == "split":
        delivery.send.append(pieces[::2])
        delivery.drop.append(pieces[1::2])
    else:
        delivery.send.append(pieces)
        delivery.drop.append(_copies(pieces, folder / f"again-{pieces[0].uid}"))


def _copies(pieces: Iterable[Piece], folder: Path) -> list[Piece]:
    """Copy pieces, for a drop that moves its files away."""
    folder.mkdir(parents=True)
    return [Piece(p.uid, shutil.copyfile(p.path, folder / f"{p.uid}.dcm")) for p in pieces]


def _parts(pieces: list[Piece], size: int) -> list[list[Piece]]:
    return [pieces[start : start + size] for start in range(0, len(pieces), size)]
