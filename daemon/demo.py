"""The demonstration: a phantom study through an association, the queue and the workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config.settings import Settings, load_settings
from daemon.errors import DaemonError
from daemon.looking import look
from daemon.processes import die_with_parent
from workers.index.engine import open_index
from workers.index.queries import list_studies
from workers.pairing.load import Pair, load_pair
from workers.phantom.study import PhantomSpec, PhantomStudy, PhantomTruth, write_study

_MARK = ".petct-ingest-demo"
_QUIET_SECONDS = 3
_START_SECONDS = 60.0
_PAIR_SECONDS = 120.0
_SETTINGS = f"""\
# the demonstration's settings: a short quiet time, because nobody else sends to it
[receiver]
port = 0
[completeness]
quiet_seconds = {_QUIET_SECONDS}
[spool]
minimum_free_mb = 64
[web]
enabled = false
"""

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much is done, of how much."""


class DemoFailed(DaemonError):
    """The demonstration did not come to its pair."""


@dataclass(frozen=True, slots=True)
class SphereReading:
    """The hot sphere as the pair shows it, beside what is known of it."""

    suv: float
    known_suv: float
    hu: float
    known_hu: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration ends with."""

    settings: Settings
    port: int
    sent: int
    study: dict[str, Any]
    folder: Path
    pair: Pair
    sphere: SphereReading
    status: dict[str, Any]
    seconds: float
    """From the first byte sent to the pair."""


def run_demo(root: Path, progress: Progress) -> DemoResult:
    """Run the whole system under `root`, send it a phantom study and wait for the pair.

    Raises DemoFailed when a part does not do its work in time, or when `root` holds something else.
    """
    _fresh(root)
    config = root / "petct-ingest.toml"
    config.write_text(_SETTINGS)
    settings = load_settings(config, root=root, environ={})
    with tempfile.TemporaryDirectory(prefix="petct-phantom-") as folder:
        phantom = write_study(
            PhantomSpec(), Path(folder), progress=lambda n, of: progress("writing a phantom", n, of)
        )
        with _daemon(root, config) as daemon:
            port = _wait_for_port(settings, daemon)
            begun = time.monotonic()
            sent = _send(Path(folder), settings.receiver.ae_title, port, progress)
            _wait_for_pair(settings, daemon, phantom, progress)
            seconds = time.monotonic() - begun
            status = _wait_until_filed(settings, daemon, sent)
            study = _wait_until_judged(settings, daemon, phantom)
    pair_folder = settings.layout.output / study["pair"]["folder"]
    pair = load_pair(pair_folder)
    sphere = read_sphere(pair, phantom.truth)
    return DemoResult(settings, port, sent, study, pair_folder, pair, sphere, status, seconds)


def read_sphere(pair: Pair, truth: PhantomTruth) -> SphereReading:
    """Average both arrays over the inner half of the hot sphere (away from its edge)."""
    centre = np.linalg.inv(pair.affine) @ np.array([*truth.sphere_centre_mm, 1.0])
    spacing = np.array(pair.meta.spacing)
    reach = np.ceil(truth.sphere_radius_mm / spacing).astype(int)
    middle = np.rint(centre[:3]).astype(int)
    axes = [np.arange(m - r, m + r + 1) for m, r in zip(middle, reach, strict=True)]
    w, h, c = np.meshgrid(*axes, indexing="ij")
    index = np.stack([w, h, c], axis=-1).reshape(-1, 3)
    shape = np.array(pair.pet.shape)[::-1]
    index = index[((index >= 0) & (index < shape)).all(axis=1)]
    distance = np.linalg.norm((index - centre[:3]) * spacing, axis=1)
    inner = index[distance <= truth.sphere_radius_mm / 2]
    where = inner[:, 2], inner[:, 1], inner[:, 0]
    return SphereReading(
        suv=float(np.mean(pair.pet[where])),
        known_suv=truth.sphere_suv,
        hu=float(np.mean(pair.ct[where])),
        known_hu=truth.sphere_hu,
    )


def _fresh(root: Path) -> None:
    """Empty the folder of an earlier demonstration; refuse any other that holds something."""
    if root.exists() and any(root.iterdir()):
        if not (root / _MARK).exists():
            raise DemoFailed(
                f"{root} is not empty and not from a demonstration: give another --root"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).touch()


@contextmanager
def _daemon(root: Path, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `petct-ingest run` as anybody would, its log in a file; ended with SIGTERM."""
    command = [sys.executable, "-P", "-m", "daemon", "run"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PETCT_INGEST_")}
    me = os.getpid()
    with open(root / "daemon.log", "wb") as log:
        daemon = subprocess.Popen(  # noqa: S603 - our own command line, no shell
            [*command, "--root", str(root), "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            preexec_fn=lambda: die_with_parent(me),  # a demonstration that is killed leaves nothing
        )  # fmt: skip
        try:
            yield daemon
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_for_port(settings: Settings, daemon: subprocess.Popen[bytes]) -> int:
    bound = settings.layout.run / "receiver.port"

    def port() -> int | None:
        try:
            return int(bound.read_text())
        except (FileNotFoundError, ValueError):
            return None

    found: int = _await(port, _START_SECONDS, daemon, "the receiver did not open its port")
    return found


def _await(
    found: Callable[[], Any], seconds: float, daemon: subprocess.Popen[bytes], failure: str
) -> Any:
    """Ask until there is an answer other than None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = found()
        if answer is not None:
            return answer
        if daemon.poll() is not None:
            raise DemoFailed(f"the daemon ended with {daemon.returncode}: see daemon.log")
        time.sleep(0.1)
    raise DemoFailed(f"{failure} within {seconds:.0f} s: see daemon.log")


def _send(folder: Path, ae_title: str, port: int, progress: Progress) -> int:
    """Send every file below a folder over one association, as a PACS would."""
    from pydicom import dcmread
    from pynetdicom import AE, evt

    files = sorted(folder.rglob("*.dcm"))
    sender = AE("DEMO")
    kinds = {}
    for file in files:
        meta = dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True).file_meta
        kinds[(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)] = True
    for sop_class, syntax in kinds:
        sender.add_requested_context(sop_class, syntax)
    association = sender.associate(
        "127.0.0.1", port, ae_title=ae_title, evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)]
    )
    if not association.is_established:
        raise DemoFailed("the receiver did not accept the association")
    try:
        for number, file in enumerate(files, start=1):
            _pause_reactor(association)
            answer = association.send_c_store(file)
            if not answer or answer.Status != 0x0000:
                raise DemoFailed(f"a C-STORE was answered with {answer.get('Status')}")
            progress("sending by C-STORE", number, len(files))
    finally:
        association.release()
    return len(files)


def _pause_reactor(association: Any) -> None:
    """Make sure that the association's other thread waits before anything is sent.

    `send_c_store` asks for that itself, but takes the pause before the last message for the one
    that it asks for: on a busy machine that thread then takes the answer, and 30 s later the
    association is aborted.
    """
    checkpoint = association._reactor_checkpoint
    checkpoint.clear()
    while association.is_established and not checkpoint._cond._waiters:
        time.sleep(0.0001)


def _without_delay(event: Any) -> None:
    """Send small messages at once: else Nagle and the peer's delayed ACK cost 40 ms an instance."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _wait_for_pair(
    settings: Settings,
    daemon: subprocess.Popen[bytes],
    phantom: PhantomStudy,
    progress: Progress,
) -> None:
    def ready() -> bool | None:
        pair = (_study(settings, phantom) or {}).get("pair")
        if pair and pair["state"] == "held":
            raise DemoFailed(f"the pair is held: {json.dumps(pair['reasons'])}")
        return True if pair and pair["state"] == "ready" else None

    progress("waiting for the pair", 0, 1)
    _await(ready, _PAIR_SECONDS, daemon, "there was no pair")
    progress("waiting for the pair", 1, 1)


def _study(settings: Settings, phantom: PhantomStudy) -> dict[str, Any] | None:
    index = open_index(settings)
    try:
        with index.read() as connection:
            found = list_studies(connection)
    finally:
        index.close()
    return next((one for one in found if one["study"] == phantom.study_uid), None)


def _wait_until_filed(
    settings: Settings, daemon: subprocess.Popen[bytes], sent: int
) -> dict[str, Any]:
    def status() -> dict[str, Any] | None:
        found = look(settings).to_json_object()
        counts = found["instances"]
        return found if counts["waiting"] == 0 and counts["filed"] >= sent else None

    found: dict[str, Any] = _await(status, _PAIR_SECONDS, daemon, "not every instance was filed")
    return found


def _wait_until_judged(
    settings: Settings, daemon: subprocess.Popen[bytes], phantom: PhantomStudy
) -> dict[str, Any]:
    def judged() -> dict[str, Any] | None:
        one = _study(settings, phantom)
        return one if one and all(member["role"] for member in one["series"]) else None

    found: dict[str, Any] = _await(judged, _PAIR_SECONDS, daemon, "not every series was judged")
    return found
