"""Look at the folders of an installation: whose they are, on what they lie, how fast that is."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from config.layout import Layout
from daemon.doctor.findings import Finding, Level, judge_file_system, judge_speed
from daemon.watcher.territory import Mount, mounts
from workers.durable import fsync_folder, write_new

_TRIAL_FILES = 20
_TRIAL_BYTES = 512 << 10


def examine_stores(layout: Layout) -> Iterator[Finding]:
    """Yield what is to be said of the folders; writes into the spool for a moment."""
    yield _permissions(layout)
    yield judge_file_system("index", file_system_of(layout.root))
    for what, folder in (("spool", layout.spool), ("archive", layout.output)):
        yield judge_file_system(what, file_system_of(folder))
    with suppress(FileNotFoundError):
        yield _one_disk(layout)
    if layout.spool_private.is_dir() and os.access(layout.spool_private, os.W_OK):
        try:
            yield judge_speed("spool", files_per_second(layout.spool_private))
        except OSError as error:
            why = error.strerror or "cannot be written to"
            yield Finding("speed of the spool", Level.FAIL, why, "see free space and permissions")


def file_system_of(folder: Path) -> str:
    """Name the kind of file system that a folder lies on, or would lie on."""
    place = os.path.realpath(_there(folder)).rstrip("/") + "/"
    nearest = Mount("", "")
    for mount in mounts():
        if place.startswith(mount.point.rstrip("/") + "/") and len(mount.point) >= len(
            nearest.point
        ):
            nearest = mount
    return nearest.kind


def files_per_second(folder: Path) -> float:
    """Write some files as the receiver does: fsync of each and of its folder."""
    trial = folder / f"doctor-{secrets.token_hex(4)}"
    trial.mkdir(mode=0o700)
    try:
        data = secrets.token_bytes(_TRIAL_BYTES)
        began = time.monotonic()
        for number in range(_TRIAL_FILES):
            write_new(trial / str(number), (data,))
            fsync_folder(trial)
        return _TRIAL_FILES / (time.monotonic() - began)
    finally:
        shutil.rmtree(trial)


def _permissions(layout: Layout) -> Finding:
    name = "permissions"
    above = _there(layout.root)
    if above != layout.root:
        if os.access(above, os.W_OK | os.X_OK):
            return Finding(name, Level.OK, f"{layout.root} can be made")
        return Finding(name, Level.FAIL, f"{above} cannot be written to", _as_user(above))
    for folder in (
        layout.root, layout.archive, layout.inbox, layout.spool, layout.quarantine, layout.run
    ):  # fmt: skip
        if folder == layout.archive and layout.is_read_only:
            continue
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return Finding(name, Level.FAIL, f"{folder} is not ours to use", _as_user(folder))
    for folder in (layout.spool, layout.quarantine, layout.run):
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) & 0o077:
            words = f"others may look into {folder}, which holds what patients' files hold"
            return Finding(name, Level.WARN, words, f"chmod 0700 {folder}")
    owner = layout.root.stat().st_uid
    if os.geteuid() != owner:
        words = f"{layout.root} belongs to {_name_of(owner)}, and this is {_name_of(os.geteuid())}"
        return Finding(name, Level.WARN, words, _as_user(layout.root))
    return Finding(name, Level.OK, f"all belongs to {_name_of(owner)}")


def _one_disk(layout: Layout) -> Finding:
    """Filing is a link and taking from the inbox a rename, on one file system."""
    name, devices = "one file system", layout.spool.stat().st_dev
    for what, folder in (("archive", layout.output), ("inbox", layout.inbox)):
        if folder.stat().st_dev != devices:
            advice = "it works, and every file is copied once more"
            return Finding(name, Level.WARN, f"{what} and spool lie on two disks", advice)
    return Finding(name, Level.OK, "filing is a link, not a copy")


def _there(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _as_user(folder: Path) -> str:
    return f"run it as the service does: sudo -u {_name_of(folder.stat().st_uid)} petct-ingest …"


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
