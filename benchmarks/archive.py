"""Measure how much disk the intake of a large archive takes beside the archive and what is filed.

    python benchmarks/archive.py
    python benchmarks/archive.py --gigabytes 10 --kinds .tar.gz --folder /data/scratch

Makes an archive of synthetic CT slices (525 KB each; `--gigabytes` of them before packing), renames
it into the inbox of a running `petct-ingest run` (watcher, filing and sweeper alone), and looks ten
times a second at what lies below the root. Counted, in blocks of the disk (st_blocks): every file
below the root but the archive itself (whole until it is expanded) and what is filed. An entry of
the spool that has its name in the tree already (st_nlink 2) is filed: it takes no room of its own.
So index, its log and copies, spool, quarantine and temporary files count. Nothing is written
outside the root. In a .tar.gz every slice is two gzip members (RFC 1952 2.2), since the pixels are
packed once for all.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmwrite

from workers.phantom.spec import PhantomSpec
from workers.phantom.study import instance

SIDE = 512
A_SERIES = 400
MARK_UID, MARK_SERIES = f"2.25.{'8' * 38}", f"2.25.{'7' * 38}"
BESIDES = ("spool", "quarantine", "run", "inbox", "archive/.petct")
"""Folders of the root, but for the tree."""


def template() -> bytes:
    dataset = instance(PhantomSpec(size="tiny"), "CT IMAGES", 0)
    dataset.Rows = dataset.Columns = SIDE
    noise = np.random.default_rng(1).integers(0, 4000, (SIDE, SIDE), dtype=np.uint16)
    dataset.PixelData = noise.tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = MARK_UID
    dataset.SeriesInstanceUID = MARK_SERIES
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def slices(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes up to the pixels, which are the same for all."""
    content = template()
    head = content[: -2 * SIDE * SIDE]
    for number in range(count):
        series = number // A_SERIES
        own = head.replace(MARK_UID.encode(), f"2.25.1{number:037d}".encode())
        own = own.replace(MARK_SERIES.encode(), f"2.25.2{series:037d}".encode())
        yield f"delivery/{series:04d}/{number:06d}.dcm", own


def write(path: Path, kind: str, count: int) -> None:
    pixels = template()[-2 * SIDE * SIDE :]
    if kind == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, head in slices(count):
                archive.writestr(name, head + pixels)
        return
    packed = {".tar": bytes, ".tar.gz": lambda data: gzip.compress(data, 1),
              ".tar.bz2": lambda data: bz2.compress(data, 1)}[kind]  # fmt: skip
    tails: dict[int, bytes] = {}
    with open(path, "wb") as file:
        for name, head in slices(count):
            info = tarfile.TarInfo(name)
            info.size = len(head) + len(pixels)
            padding = -info.size % tarfile.BLOCKSIZE
            if padding not in tails:
                tails[padding] = packed(pixels + bytes(padding))
            file.write(packed(info.tobuf() + head))
            file.write(tails[padding])
        file.write(packed(bytes(2 * tarfile.BLOCKSIZE)))


def taken(root: Path, archive: int) -> int:
    """Return the bytes below the root but for the archive (its inode) and what is filed."""
    total, seen = 0, {archive}
    places = [root, *(root / name for name in BESIDES)]
    for place in places:
        for top, folders, names in os.walk(place):
            if place == root:
                folders.clear()
            for name in (*names, "."):
                with contextlib.suppress(OSError):  # it was filed meanwhile
                    found = os.lstat(os.path.join(top, name))
                    is_filed = name != "." and found.st_nlink > 1
                    if not is_filed and found.st_ino not in seen:
                        seen.add(found.st_ino)
                        total += found.st_blocks * 512
    return total


def filed(root: Path) -> tuple[int, int]:
    """Return how many instances are filed and how many archives expanded."""
    address = f"file:{root / 'index.sqlite'}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as connection:
        (instances,) = connection.execute("select count(*) from instance").fetchone()
        (done,) = connection.execute(
            "select count(*) from arrival where outcome = 'expanded'"
        ).fetchone()
    return instances, done


@contextlib.contextmanager
def running(root: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-P", "-m", "daemon", "run", "--root", str(root), "--port",
               str(port), "--roles", "valkey,sweep,watch,filing"]  # fmt: skip
    with open(root.parent / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while b"is ready" not in (root.parent / "log").read_bytes():
            assert process.poll() is None, (root.parent / "log").read_text()
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def measure(place: Path, kind: str, gigabytes: float) -> None:
    root, path = place / "site", place / f"delivery{kind}"
    count = int(gigabytes * 1e9 / (2 * SIDE * SIDE))
    write(path, kind, count)
    size, inode = path.stat().st_size, path.stat().st_ino
    with running(root):
        before, most, taken_at_most = taken(root, inode), 0, 0.0
        began = time.monotonic()
        path.rename(root / "inbox" / path.name)
        while filed(root) != (count, 1):
            now = taken(root, inode)
            if now > most:
                most, taken_at_most = now, time.monotonic() - began
            time.sleep(0.1)
        seconds = time.monotonic() - began
        left = taken(root, inode)
    print(
        f"{kind}: {size / 1e6:,.0f} MB with {count:,} slices taken in in {seconds:.0f} s, "
        f"{count / seconds:.0f} slices/s; extra disk {before / 1e6:.0f} MB before, at most "
        f"{most / 1e6:.0f} MB (after {taken_at_most:.0f} s), {left / 1e6:.0f} MB at the end",
        flush=True,
    )
    shutil.rmtree(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="+", default=[".tar", ".tar.gz", ".zip"])
    parser.add_argument("--folder", type=Path, help="where all of it is made [temporary]")
    asked = parser.parse_args()
    for kind in asked.kinds:
        with tempfile.TemporaryDirectory(dir=asked.folder, ignore_cleanup_errors=True) as place:
            measure(Path(place), kind, asked.gigabytes)


if __name__ == "__main__":
    main()
