"""The first inputs of each target: made by the phantom and by hand, nothing real."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import odd_archives
from filing_world import encoded, explicit_element, recoded, tiny
from fuzzing.wire import conversations
from odd_files import write_odd_files
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from workers import queues
from workers.phantom.spec import TRANSFER_SYNTAXES

PROJECT = Path(__file__).resolve().parent.parent.parent


def seeds_of(target: str) -> dict[str, bytes]:
    """Return the seeds of a target by name; of PETCT_TEST_DATA some small files more, if set."""
    if target in ("header", "examining", "comparing", "pixels", "deidentifying"):
        return {**instances(), **odd_instances(), **dict(_given((".dcm", ".IMA", "")))}
    if target == "archives":
        return {**archives(), **dict(_given((".zip", ".tar", ".tgz", ".gz")))}
    return {
        "placing": _texts,
        "spool": _descriptions,
        "jobs": _jobs,
        "settings": _settings,
        "commands": _commands,
        "requests": _requests,
        "commitments": _commitments,
        "conversations": conversations,
    }[target]()


@cache
def instances() -> dict[str, bytes]:
    """A small instance in each transfer syntax, and some with much in them."""
    made = {
        syntax.keyword: encoded(tiny("PET AC", 2, transfer_syntax_uid=syntax))
        for syntax in TRANSFER_SYNTAXES
    }
    made["ct"] = encoded(tiny("CT IMAGES", 1))
    full = encoded(_full())
    made["full"] = full
    made["full-implicit"] = recoded(full, "1.2.840.10008.1.2")
    made["full-deflated"] = recoded(full, "1.2.840.10008.1.2.1.99")
    return made


def _full() -> Dataset:
    dataset = tiny("PET AC", 2)
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.add_new(0x00090010, "LO", "GEMS_PETD_01")
    dataset.add_new(0x0009100D, "DT", "20250101100000")
    dataset.add_new(0x70530010, "LO", "Philips PET Private Group")
    dataset.add_new(0x70531000, "DS", "0.000551")
    frame, plane, content = Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient = [1, 2, 3]
    content.DimensionIndexValues, content.TemporalPositionIndex = [1, 2], 1
    frame.PlanePositionSequence = Sequence([plane])
    frame.FrameContentSequence = Sequence([content])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([frame, frame])
    dataset.SharedFunctionalGroupsSequence = Sequence([frame])
    dataset.ReferencedImageSequence = Sequence([Dataset(), content])
    return dataset


@cache
def odd_instances() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        names = write_odd_files(Path(folder) / "odd", Path(folder) / "aside")
        return {
            name: (Path(folder) / "odd" / name).read_bytes()
            for name in names
            if (Path(folder) / "odd" / name).stat().st_size < 20_000
        }


@cache
def archives() -> dict[str, bytes]:
    made = {f"good{kind}": odd_archives.packed(kind) for kind in odd_archives.KINDS}
    made |= {f"nested{kind}": odd_archives.nested(3, kind) for kind in (".zip", ".tgz", ".tar")}
    made |= {
        "links.zip": odd_archives.linked_zip(),
        "encrypted.zip": odd_archives.encrypted_zip(),
        "overlapping.zip": odd_archives.overlapping(),
        "streamed.zip": odd_archives.streamed_zip(odd_archives.FILES),
        "no-directory.zip": odd_archives.packed(".zip")[:-150],
        "bzip2.zip": odd_archives.zipped(odd_archives.FILES, compression=12),
        "sparse.tar": odd_archives.sparse_chain(3) + bytes(2048),
        "mixed.tar": odd_archives.tarred(
            {"a.zip": odd_archives.packed(".zip"), "b.tgz": odd_archives.packed(".tgz"),
             "n" * 200: b"long", "../up": b"up", "/abs": b"abs"}
        ),
        "gnu.tar": odd_archives.tarred({"n" * 300: b"long"}, 1),
        "bomb.tgz": gzip.compress(odd_archives.tar_header("zeros", 1 << 20) + bytes(1 << 20)),
    }  # fmt: skip
    return made


def _texts() -> dict[str, bytes]:
    words = ["P1\nA1\n1.2.3", "../..\n/etc\n1", "CON\nnul.txt\n", "ä\u0308\n\ud83d\ude00\n1.2",
             ".\n..\n.", "%2e%2e\n\0\n ", "a" * 300 + "\n" + "%" * 70, "\n\n"]  # fmt: skip
    return {str(number): word.encode("utf-8", "surrogatepass") for number, word in enumerate(words)}


def _descriptions() -> dict[str, bytes]:
    note = {"kind": "a", "at": "b", "source": "c", "count": 1, "last_at": "", "details": {"x": 1}}
    return {
        "batch": json.dumps({"kind": "association", "calling_ae": "A", "folder": "/x"}).encode(),
        "wrong": b'{"kind": 5, "folder": ["a"], "archive": "\\ud800"}',
        "note": json.dumps(note).encode() + b"\n" + json.dumps(note).encode(),
        "list": b"[[[[1]]]]",
        "numbers": b'{"kind": "folder", "count": 1e999, "details": [1], "at": NaN}',
        "deep": b"[" * 3000,
    }


def _jobs() -> dict[str, bytes]:
    call = [queues.FILE_ENTRIES, None, [], {"version": queues.JOB_VERSION, "batches": {"f1": []}}]
    return {
        "ours": zlib.compress(json.dumps(call).encode()),
        "plain": json.dumps(call).encode(),
        "forged": zlib.compress(json.dumps(["os.system", None, ["id"], {}]).encode()),
        "batches": b'{"f1": ["0123"], "../x": ["a"], ".": [], "f1/..": ["b"], "\\u0000": []}',
        "shapes": b'{"f1": 7, "f2": {"a": 1}, "f3": [[1], null, {}]}',
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    }


def _settings() -> dict[str, bytes]:
    return {
        "default": (PROJECT / "config" / "default.toml").read_bytes(),
        "small": b'root = "/x"\n[receiver]\nport = 99999\nallow_addresses = ["10.0.0.0/99"]\n',
        "shapes": b'receiver = 3\n[[sources]]\nname = 1\n[archive]\nx = {y = [1, "2"]}\n',
        "bytes": b'root = "\xff\xfe"\n',
        "dates": b"[spool]\nminimum_free_mb = 1979-05-27T07:32:00Z\n",
    }


def _commands() -> dict[str, bytes]:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    store = b"".join(
        (
            element(0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"), element(0x0100, b"\1\0"),
            element(0x0110, b"\1\0"), element(0x0700, b"\2\0"), element(0x0800, b"\1\0"),
            element(0x1000, b"1.2.3.4.1\0"),
        )
    )  # fmt: skip
    echo = element(0x0100, b"\x30\0") + element(0x0110, b"\1\0") + element(0x0800, b"\1\1")
    return {"store": element(0, struct.pack("<L", len(store))) + store, "echo": echo, "empty": b""}


def _requests() -> dict[str, bytes]:
    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    context = item(0x20, b"\1\0\0\0" + item(0x30, b"1.2.840.10008.1.1") +
                   item(0x40, b"1.2.840.10008.1.2"))  # fmt: skip
    user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3"))
    body = (
        struct.pack(">HH", 1, 0) + b"PETCT_INGEST    " + b"SCANNER         " + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    )  # fmt: skip
    return {"usual": struct.pack(">BxL", 1, len(body)) + body, "short": b"\1\0\0\0\0\4abcd"}


def _commitments() -> dict[str, bytes]:
    uid = explicit_element(0x0008, 0x1195, b"UI", b"1.2.3.9\0")
    inside = explicit_element(0x0008, 0x1150, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")
    inside += explicit_element(0x0008, 0x1155, b"UI", b"1.2.3.4.5\0\0\0"[:10])
    item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inside)) + inside
    long = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inside + b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence = b"\x08\x00\x99\x11SQ\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    return {
        "defined": uid + sequence + struct.pack("<L", len(item)) + item,
        "undefined": uid + sequence + b"\xff\xff\xff\xff" + long + end,
        "empty": uid + sequence + bytes(4),
    }


def _given(suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield small files of a folder that the user names; none of them is kept."""
    folder = os.environ.get("PETCT_TEST_DATA")
    found = sorted(Path(folder).rglob("*")) if folder else []
    small = [
        path for path in found
        if path.suffix in suffixes and path.is_file() and path.stat().st_size < 40_000
    ]  # fmt: skip
    for number, path in enumerate(small[:200]):
        yield f"given-{number}", path.read_bytes()
